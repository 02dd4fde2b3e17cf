"""The sentences of the embedded scenes as labelled stream, unlabelled stream and validation set.

A name in braces stands for the top-level setting of that name, filled in when the command starts. Images are stretched
to a square; labelled ones are not augmented, as in SemiRES, unless ``flip`` says so.
"""

from mmengine.dataset import DefaultSampler
from mmengine.dataset.utils import pseudo_collate

from pipeline.data.instance_dataset import StreamDataset, StreamSampler
from pipeline.data.referring.dataset import CheckedReferDataset, ReferDataset
from pipeline.data.referring.transforms import (
    FlipWithWords,
    HideReferredTruth,
    PackReferred,
    RandomBlur,
    ResizeToSquare,
)
from pipeline.models.referring.metric import ReferMetric

data_root = "demo/scenes"
"""Where ``s4m-pipeline demo`` writes them."""
split_file = "{data_root}/split.json"
"""Which images are labelled; an image's objects all are, or none is."""
side = 192
"""Pixels of the square; a multiple of 32, 64 or more."""
flip = 0.0
"""Probability of a flip to the left, and of one upside down, with the words for sides exchanged; papers: none."""
max_broken_share = 0.01
"""Broken images are named and left out; more than this share of a set ends the run."""

train_objects = dict(
    type=ReferDataset,
    expressions_file="{data_root}/expressions/train.json",
    annotation_file="{data_root}/annotations/train.json",
    image_root="{data_root}/images",
    split="train",
    split_file="{split_file}",
)
geometry = [dict(type=ResizeToSquare, size="{side}"), dict(type=FlipWithWords, horizontal="{flip}", vertical="{flip}")]
labelled_stream = dict(
    type=StreamDataset,
    seed="{seed}",
    name="labelled",
    max_broken_share="{max_broken_share}",
    dataset=dict(**train_objects, part="labelled", pipeline=[*geometry, dict(type=PackReferred)]),
)
unlabelled_stream = dict(
    type=StreamDataset,
    seed="{seed}",
    name="unlabelled",
    max_broken_share="{max_broken_share}",
    dataset=dict(
        **train_objects,
        part="unlabelled",
        truth="hidden",
        pipeline=[
            *geometry,
            dict(type=RandomBlur, probability=0.5, radius=1.0),
            dict(type=HideReferredTruth),
            dict(type=PackReferred),
        ],
    ),
)
"""``truth="hidden"``: the scenes know their masks, which only measure pseudo-labels here."""
val_split = "val"
"""Which sentences are measured on."""
val_files = dict(
    expressions_file="{data_root}/expressions/val.json",
    annotation_file="{data_root}/annotations/val.json",
    image_root="{data_root}/images",
    split="{val_split}",
)
val_dataloader = dict(
    batch_size=8,
    num_workers=0,
    sampler=dict(type=DefaultSampler, shuffle=False),
    collate_fn=dict(type=pseudo_collate),
    dataset=dict(
        type=CheckedReferDataset,
        **val_files,
        epoch="expression",
        sentence="all",
        text="raw",
        max_broken_share="{max_broken_share}",
        pipeline=[dict(type=ResizeToSquare, size="{side}"), dict(type=PackReferred)],
    ),
)
val_evaluator = dict(type=ReferMetric, files=val_files, generalised=False)
train_sampler = dict(type=StreamSampler)
collate = dict(type=pseudo_collate)
