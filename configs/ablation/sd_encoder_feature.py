"""Teacher on the scenes whose last backbone map matches the features of SAM's image encoder.

Claim (S4M Table 4, encoder and feature loss): decoder and structure teach more (not so here, all is within noise:
README). Cost: as sd_encoder_structural.

    s4m-pipeline train-teacher configs/ablation/sd_encoder_feature.py
"""

from mmengine.config import read_base

with read_base():
    from .sd_encoder_structural import *

model.update(dict(distillation="feature"))
