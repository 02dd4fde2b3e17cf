"""S4M's COCO teacher: coco_r50_supervised with structural distillation from the store.

Claim (paper, 1 / 2 / 5 / 10 % of COCO): 15.1 / 20.3 / 26.1 / 30.3 mask AP. Cost: as coco_r50_supervised and about 5 %
a step; not run in this project. A share P of labels is its split, nothing else (drawn splits are nested, so the
targets of 10 % serve the smaller shares):

    s4m-pipeline split data/coco/annotations/instances_train2017.json --image-root data/coco/train2017 \
        --out data/coco/split_P --percent P
    s4m-pipeline precompute-sam configs/sam/coco.py
    s4m-pipeline train-teacher configs/teacher/coco_r50.py --workers 2 --cfg-options percent=P \
        --work-dir work_dirs/teacher_coco_r50_P
"""

from mmengine.config import read_base

with read_base():
    from .coco_r50_supervised import *

labelled_stream.dataset.pipeline.insert(-1, targets)
train_dataloader.dataset = labelled_stream
