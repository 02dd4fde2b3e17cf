"""RefCOCO, RefCOCO+, G-Ref and gRefCOCO in the standard layout: labelled, unlabelled and validation data.

::

    data/refer/{refcoco,refcoco+,refcocog}/refs(unc|umd|google).p and instances.json
    data/refer/grefcoco/grefs(unc).json and instances.json
    data/coco/train2014/*.jpg

``benchmark`` and ``refs`` choose one of them; their configs set both. A share P of labels is its split:

    s4m-pipeline split "data/refer/refcoco/instances.json" --expressions "data/refer/refcoco/refs(unc).p" \
        --image-root data/coco/train2014 --percent P --draw published --out data/refer/refcoco/split_P
"""

from mmengine.dataset import DefaultSampler
from mmengine.dataset.utils import pseudo_collate

from pipeline.data.instance_dataset import StreamDataset, StreamSampler
from pipeline.data.referring.dataset import CheckedReferDataset, ReferDataset
from pipeline.data.referring.transforms import FlipWithWords, PackReferred, RandomBlur, ResizeToSquare
from pipeline.models.referring.metric import ReferMetric

benchmark = "refcoco"
refs = "refs(unc).p"
expressions = "data/refer/{benchmark}/{refs}"
annotations = "data/refer/{benchmark}/instances.json"
image_root = "data/coco/train2014"
percent = 1
"""Of the training images that are labelled: 0.5 | 1 | 2 | 5 in SemiRES' tables."""
split_file = "data/refer/{benchmark}/split_{percent}/split.json"
side = 480
"""Pixels of the square; a multiple of 32, 64 or more."""
flip = 0.0
"""Probability of a flip with the words for sides exchanged; the papers have none."""
mask_overlap = "union"
"""Of a mask's polygons: union, or hole (released code: where two overlap, there is no object)."""
max_broken_share = 0.01
num_workers = 4

train_objects = dict(
    type=ReferDataset,
    expressions_file="{expressions}",
    annotation_file="{annotations}",
    image_root="{image_root}",
    split="train",
    split_file="{split_file}",
    mask_overlap="{mask_overlap}",
)
geometry = [dict(type=ResizeToSquare, size="{side}"), dict(type=FlipWithWords, horizontal="{flip}")]
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
        pipeline=[*geometry, dict(type=RandomBlur, probability=0.5, radius=1.0), dict(type=PackReferred)],
    ),
)
val_split = "val"
"""val | testA | testB (RefCOCO, RefCOCO+, gRefCOCO); val | test (G-Ref)."""
val_files = dict(
    expressions_file="{expressions}", annotation_file="{annotations}", image_root="{image_root}", split="{val_split}"
)
val_dataloader = dict(
    batch_size=8,
    num_workers="{num_workers}",
    sampler=dict(type=DefaultSampler, shuffle=False),
    collate_fn=dict(type=pseudo_collate),
    dataset=dict(
        type=CheckedReferDataset,
        **val_files,
        epoch="expression",
        sentence="all",
        text="raw",
        mask_overlap="{mask_overlap}",
        max_broken_share="{max_broken_share}",
        pipeline=[dict(type=ResizeToSquare, size="{side}"), dict(type=PackReferred)],
    ),
)
val_evaluator = dict(
    type=ReferMetric,
    files=val_files,
    mask_overlap="{mask_overlap}",
    resolutions=["native", "view"],
    generalised=False,
)
"""``generalised=True``: expressions may mean nothing or several objects (gRefCOCO); gIoU, cIoU, N-acc and T-acc too."""
train_sampler = dict(type=StreamSampler)
collate = dict(type=pseudo_collate)
