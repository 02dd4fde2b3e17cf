"""S4M's Cityscapes teacher: cityscapes_r50_supervised with structural distillation from the store.

Claim (paper, 5 / 10 / 20 / 30 %): 17.2 / 22.5 / 29.6 / 32.0 Cityscapes AP. Cost: as cityscapes_r50_supervised and
about 5 % a step; not run in this project. A share P of labels is its split, nothing else (one store serves all
shares):

    s4m-pipeline split data/cityscapes/annotations/train.json --image-root data/cityscapes/leftImg8bit/train \
        --out data/cityscapes/split_P --names perc_P.txt              # a published list; or --percent P
    s4m-pipeline precompute-sam configs/sam/cityscapes.py
    s4m-pipeline train-teacher configs/teacher/cityscapes_r50.py --workers 4 --cfg-options percent=P \
        --work-dir work_dirs/teacher_cityscapes_r50_P
"""

from mmengine.config import read_base

with read_base():
    from .cityscapes_r50_supervised import *

labelled_stream.dataset.pipeline.insert(-1, targets)
train_dataloader.dataset = labelled_stream
