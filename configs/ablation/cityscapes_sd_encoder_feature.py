"""Cityscapes teacher whose last backbone map matches the features of SAM's image encoder.

Claim (S4M Table 4, encoder and feature loss): decoder and structure teach more (on the scenes all are within noise:
README). Cost: as cityscapes_sd_encoder_structural; not run in this project.

    s4m-pipeline train-teacher configs/ablation/cityscapes_sd_encoder_feature.py --workers 4
"""

from mmengine.config import read_base

with read_base():
    from .cityscapes_sd_encoder_structural import *

model.update(dict(distillation="feature"))
