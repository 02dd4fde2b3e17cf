"""Teacher on the scenes whose mask features learn the self-similarity of SAM's image encoder, not its mask decoder's.

Claim (S4M's choice of SAM's features): the decoder's, which know of the prompt, teach more. Cost: as
scenes_structural, and a store of its own. ``sd_encoder_structural`` takes the encoder on the network's side too.

    s4m-pipeline precompute-sam configs/ablation/sd_encoder_sam.py
    s4m-pipeline train-teacher configs/ablation/sd_encoder_teacher.py
"""

from mmengine.config import read_base

with read_base():
    from ..teacher.scenes_structural import *

structural_store = "demo/store_encoder"
train_dataloader.dataset.dataset.pipeline[-2].update(dict(features="encoder"))
