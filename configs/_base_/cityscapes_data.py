"""Cityscapes as labelled stream, unlabelled stream and validation set, from ``s4m-pipeline convert-cityscapes``.

S4M's Cityscapes views: the shorter edge at one of 16 lengths from 512 to 2048, a crop of 512 rows and 1024 columns,
colour jitter, flip. Objects are validated at full size, with Cityscapes' own AP beside COCO's.
"""

from mmcv.transforms import RandomChoiceResize
from mmdet.datasets.transforms import RandomCrop, RandomFlip, Resize
from mmengine.dataset import DefaultSampler
from mmengine.dataset.utils import pseudo_collate

from pipeline.data.colour_jitter import ColourJitter
from pipeline.data.instance_dataset import CheckedDataset, InstanceDataset, StreamDataset, StreamSampler
from pipeline.data.transforms import DropSmallInstances, HideGroundTruth, LoadSimilarityTargets, PackSample
from pipeline.models.cityscapes_metric import CityscapesApMetric

data_root = "data/cityscapes"
"""Holds leftImg8bit, gtFine and, once converted, annotations."""
annotations = "{data_root}/annotations/train.json"
image_root = "{data_root}/leftImg8bit/train"
val_annotations = "{data_root}/annotations/val.json"
val_images = "{data_root}/leftImg8bit/val"
percent = 10
"""Of the training images that are labelled: 5 | 10 | 20 | 30 in S4M's tables."""
split_file = "{data_root}/split_{percent}/split.json"
"""Written by ``s4m-pipeline split``, from a published list or drawn."""
unlabelled_part = "unlabelled"
"""What the unlabelled stream shows: unlabelled (the paper), or all images, the labelled ones too (released code)."""
weak_jitter = 0.5
"""Chance of each change of colours in the unlabelled view that the teacher sees; 0: geometry alone."""
store = "work_dirs/cityscapes_store"
"""Written by ``s4m-pipeline precompute-sam``."""
max_broken_share = 0.01
"""Broken images are named and left out; more than this share of a set ends the run."""
repeat_threshold = None
"""Labelled images of classes in a smaller share of the images come more often (repeat-factor sampling); None: each once
a pass. S4M's paper has no such rule; its released student has 10.0."""

short_edges = [512, 614, 716, 819, 921, 1024, 1126, 1228, 1331, 1433, 1536, 1638, 1740, 1843, 1945, 2048]
geometry = [
    dict(
        type=RandomChoiceResize,
        scales=[(4096, length) for length in short_edges],
        keep_ratio=True,
        resize_type=Resize,
    ),
    # Width, then height.
    dict(type=RandomCrop, crop_size=(1024, 512), crop_type="absolute", allow_negative_crop=True),
]
flip = dict(type=RandomFlip, prob=0.5)
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
        pipeline=[
            *geometry,
            dict(type=ColourJitter),
            flip,
            dict(type=DropSmallInstances, min_pixels=1, keep_empty=True),
            dict(type=PackSample),
        ],
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
        pipeline=[
            *geometry,
            dict(type=ColourJitter, prob="{weak_jitter}"),
            flip,
            dict(type=HideGroundTruth),
            dict(type=PackSample),
        ],
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
        pipeline=[dict(type=PackSample)],
    ),
)
val_evaluator = dict(type=CityscapesApMetric, annotation_file="{val_annotations}", image_root="{val_images}")
train_sampler = dict(type=StreamSampler)
collate = dict(type=pseudo_collate)
