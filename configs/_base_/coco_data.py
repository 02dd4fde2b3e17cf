"""A data set in COCO format (COCO itself, or yours): labelled and unlabelled stream, validation set.

S4M's COCO views: flip, large-scale jitter 0.1 to 2.0, a crop of 1024, padding on the right and below.
"""

from mmcv.transforms import RandomResize
from mmdet.datasets.transforms import RandomCrop, RandomFlip, Resize
from mmengine.dataset import DefaultSampler
from mmengine.dataset.utils import pseudo_collate

from pipeline.data.instance_dataset import CheckedDataset, InstanceDataset, StreamDataset, StreamSampler
from pipeline.data.transforms import DropSmallInstances, HideGroundTruth, LoadSimilarityTargets, PackSample
from pipeline.models.training_hooks import MaskApMetric

annotations = "data/coco/annotations/instances_train2017.json"
image_root = "data/coco/train2017"
percent = 10
"""Of the training images that are labelled: 1 | 2 | 5 | 10 in S4M's tables, or what you have split."""
split_file = "data/coco/split_{percent}/split.json"
"""Written by ``s4m-pipeline split``."""
unlabelled_part = "unlabelled"
"""What the unlabelled stream shows: unlabelled (the paper), or all images, the labelled ones too (released code)."""
val_annotations = "data/coco/annotations/instances_val2017.json"
val_images = "data/coco/val2017"
store = "work_dirs/sam_store"
"""Written by ``s4m-pipeline precompute-sam``."""
max_broken_share = 0.01
"""Broken images are named and left out; more than this share of a set ends the run."""
repeat_threshold = None
"""Labelled images of classes in a smaller share of the images come more often (repeat-factor sampling); None: each once
a pass. S4M's paper has no such rule; its released student has 10.0."""

geometry = [
    dict(type=RandomFlip, prob=0.5),
    dict(type=RandomResize, scale=(1024, 1024), ratio_range=(0.1, 2.0), keep_ratio=True, resize_type=Resize),
    dict(type=RandomCrop, crop_size=(1024, 1024), crop_type="absolute", allow_negative_crop=True),
]
train_images = dict(
    type=InstanceDataset, annotation_file="{annotations}", image_root="{image_root}", split_file="{split_file}"
)
targets = dict(type=LoadSimilarityTargets, store="{store}", num_inside=64, num_uniform=64)
labelled_stream = dict(
    type=StreamDataset,
    seed="{seed}",
    name="labelled",
    max_broken_share="{max_broken_share}",
    repeat_threshold="{repeat_threshold}",
    dataset=dict(
        **train_images,
        part="labelled",
        pipeline=[*geometry, dict(type=DropSmallInstances, min_pixels=1, keep_empty=True), dict(type=PackSample)],
    ),
)
unlabelled_stream = dict(
    type=StreamDataset,
    seed="{seed}",
    name="unlabelled",
    max_broken_share="{max_broken_share}",
    dataset=dict(
        **train_images,
        part="{unlabelled_part}",
        pipeline=[*geometry, dict(type=HideGroundTruth), dict(type=PackSample)],
    ),
)
val_dataloader = dict(
    batch_size=1,
    num_workers=2,
    sampler=dict(type=DefaultSampler, shuffle=False),
    collate_fn=dict(type=pseudo_collate),
    dataset=dict(
        type=CheckedDataset,
        annotation_file="{val_annotations}",
        image_root="{val_images}",
        with_masks=False,
        max_broken_share="{max_broken_share}",
        pipeline=[dict(type=Resize, scale=(1333, 800), keep_ratio=True), dict(type=PackSample)],
    ),
)
val_evaluator = dict(type=MaskApMetric, annotation_file="{val_annotations}", image_root="{val_images}")
train_sampler = dict(type=StreamSampler)
collate = dict(type=pseudo_collate)
