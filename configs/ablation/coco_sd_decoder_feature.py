"""COCO teacher whose mask features match SAM's decoder features instead of their self-similarity.

Claim (S4M Table 4, decoder and feature loss): structure teaches more than features, which know no classes (on the
scenes all are within noise: README). Cost: as coco_sd_live_teacher; not run in this project.

    s4m-pipeline train-teacher configs/ablation/coco_sd_decoder_feature.py --workers 2
"""

from mmengine.config import read_base

with read_base():
    from .coco_sd_live_teacher import *

model.update(dict(distillation="feature"))
