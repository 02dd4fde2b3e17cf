"""COCO teacher whose last backbone map learns the self-similarity of SAM's image encoder.

Claim (S4M Table 4, encoder and structural loss): worth less than decoder to decoder (on the scenes all are within
noise: README). Cost: SAM's encoder in every step, no store; not run in this project.

    s4m-pipeline train-teacher configs/ablation/coco_sd_encoder_structural.py --workers 2
"""

from mmengine.config import read_base

with read_base():
    from .coco_sd_live_teacher import *

model.update(dict(structural_feature="encoder"))
model.live_sam.update(dict(features="encoder"))
