"""Targets of the ablation `sd_encoder_teacher`: self-similarity of SAM's image-encoder tokens, labelled scenes only.

Claim: none of its own; rows of the encoder's one map, where ``configs/sam/scenes.py`` stores rows of the decoder's
maps, one for each point. Cost: a tenth of a second an image on one core, 150 kB an image.

    s4m-pipeline precompute-sam configs/ablation/sd_encoder_sam.py
"""

from mmengine.config import read_base

with read_base():
    from ..sam.scenes import *

store = "demo/store_encoder"
targets = ["similarity"]
similarity.update(dict(features="encoder"))
