"""Teacher on the scenes whose mask features match SAM's decoder features instead of their self-similarity.

Claim (S4M Table 4, decoder and feature loss): structure teaches more than features, which know no classes (not so here,
all is within noise: README). Cost: as sd_live_teacher; a store holds cosines, not features.

    s4m-pipeline train-teacher configs/ablation/sd_decoder_feature.py
"""

from mmengine.config import read_base

with read_base():
    from .sd_live_teacher import *

model.update(dict(distillation="feature"))
