"""Teacher on the scenes whose last backbone map learns the self-similarity of SAM's image encoder.

Claim (S4M Table 4, encoder and structural loss): worth less than decoder to decoder, which is
``configs/teacher/scenes_structural.py`` (not so here, all is within noise: README). Cost: a third more than the
baseline's step; SAM's encoder runs in every step, so no store is needed.

    s4m-pipeline train-teacher configs/ablation/sd_encoder_structural.py
"""

from mmengine.config import read_base

with read_base():
    from .sd_live_teacher import *

model.update(dict(structural_feature="encoder"))
model.live_sam.update(dict(features="encoder"))
