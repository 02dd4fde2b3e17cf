"""Nuclei (Data Science Bowl 2018, or any COCO file of one class with many small objects), labels only.

Claim: the baseline on real images. Cost: about 17 minutes of one core. ``root`` holds train.json, val.json and
split/split.json (``s4m-pipeline split``). Images are crops of 256 pixels; best are tiles of that size with objects of
20 pixels and more, 33 at most, as ``python -m jobs.measurements.nuclei`` cuts them, which trains this and compares it.

    s4m-pipeline train-teacher configs/teacher/nuclei_supervised.py --cfg-options root=DIR --cfg-options image_root=DIR
"""

from mmdet.datasets.transforms import RandomCrop, RandomFlip
from mmengine.config import read_base

with read_base():
    from .scenes_supervised import *

root = "data/nuclei"
image_root = "data/nuclei/images"
split_file = "{root}/split/split.json"
data_root = "{root}"
val_annotations = "{root}/val.json"
val_images = "{image_root}"
max_iters = 1200
batch_size = 4
learning_rate = 1e-3
"""More than for the scenes: the queries start from nothing here."""
init_skip = "cls_embed|query_embed|query_feat"
"""The start has 20 queries of its own."""
num_classes = 1
num_queries = 40
"""More than the objects of any tile; whole images need more, and the teacher then longer."""

crops = [
    dict(type=RandomCrop, crop_size=(256, 256), crop_type="absolute", allow_negative_crop=True),
    dict(type=RandomFlip, prob=0.5, direction="horizontal"),
    dict(type=RandomFlip, prob=0.5, direction="vertical"),
]
labelled_stream.dataset.update(annotation_file="{root}/train.json", image_root="{image_root}")
labelled_stream.dataset.pipeline = [*crops, *labelled_stream.dataset.pipeline[4:]]
unlabelled_stream.dataset.update(annotation_file="{root}/train.json", image_root="{image_root}")
unlabelled_stream.dataset.pipeline = [*crops, *unlabelled_stream.dataset.pipeline[4:]]
train_dataloader.dataset = labelled_stream
model.panoptic_head.num_things_classes = num_classes
model.panoptic_head.num_queries = num_queries
model.panoptic_head.loss_cls.class_weight = [1.0] * num_classes + [0.1]
model.panoptic_fusion_head.num_things_classes = num_classes
model.test_cfg.max_per_image = num_queries
val_dataloader.batch_size = 1
