"""The embedded scenes as labelled stream, unlabelled stream and validation set.

A name in braces stands for the top-level setting of that name, filled in when the command starts.
"""

from mmcv.transforms import RandomResize
from mmdet.datasets.transforms import RandomCrop, RandomFlip, Resize
from mmengine.dataset import DefaultSampler
from mmengine.dataset.utils import pseudo_collate

from pipeline.data.instance_dataset import CheckedDataset, InstanceDataset, StreamDataset, StreamSampler
from pipeline.data.transforms import DropSmallInstances, HideGroundTruth, PackSample
from pipeline.models.training_hooks import MaskApMetric

data_root = "demo/scenes"
"""Where ``s4m-pipeline demo`` writes them."""
split_file = "{data_root}/split.json"
max_broken_share = 0.01
"""Broken images are named and left out; more than this share of a set ends the run."""
repeat_threshold = None
"""Labelled images of classes in a smaller share of the images come more often (repeat-factor sampling); None: each once
a pass. S4M's paper has no such rule; its released student has 10.0."""

geometry = [
    dict(type=RandomResize, scale=(192, 192), ratio_range=(0.8, 1.25), keep_ratio=True, resize_type=Resize),
    dict(type=RandomCrop, crop_size=(192, 192), crop_type="absolute", allow_negative_crop=True),
    dict(type=RandomFlip, prob=0.5, direction="horizontal"),
    dict(type=RandomFlip, prob=0.5, direction="vertical"),
]
train_images = dict(
    type=InstanceDataset,
    annotation_file="{data_root}/annotations/train.json",
    image_root="{data_root}/images",
    split_file="{split_file}",
)
labelled_stream = dict(
    type=StreamDataset,
    seed="{seed}",
    name="labelled",
    max_broken_share="{max_broken_share}",
    repeat_threshold="{repeat_threshold}",
    dataset=dict(
        **train_images,
        part="labelled",
        # Unlike S4M: a crop is drawn again until it shows an object of 16 pixels, and smaller rests are background.
        pipeline=[*geometry, dict(type=DropSmallInstances, min_pixels=16, keep_empty=False), dict(type=PackSample)],
    ),
)
unlabelled_stream = dict(
    type=StreamDataset,
    seed="{seed}",
    name="unlabelled",
    max_broken_share="{max_broken_share}",
    dataset=dict(
        **train_images, part="unlabelled", pipeline=[*geometry, dict(type=HideGroundTruth), dict(type=PackSample)]
    ),
)
val_annotations = "{data_root}/annotations/val.json"
val_images = "{data_root}/images"
val_dataloader = dict(
    batch_size=8,
    num_workers=0,
    sampler=dict(type=DefaultSampler, shuffle=False),
    collate_fn=dict(type=pseudo_collate),
    dataset=dict(
        type=CheckedDataset,
        annotation_file="{val_annotations}",
        image_root="{val_images}",
        with_masks=False,
        max_broken_share="{max_broken_share}",
        pipeline=[dict(type=PackSample)],
    ),
)
val_evaluator = dict(type=MaskApMetric, annotation_file="{val_annotations}", image_root="{val_images}")
train_sampler = dict(type=StreamSampler)
collate = dict(type=pseudo_collate)
