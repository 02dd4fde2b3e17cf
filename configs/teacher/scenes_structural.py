"""Teacher on the scenes with structural distillation: S4M's first stage.

Claim: SAM's decoder self-similarity, precomputed, improves the teacher (paper Table 3; not so here: README). Cost: as
the baseline, plus about 5 % per step, plus ``precompute-sam`` once.

    s4m-pipeline precompute-sam configs/sam/scenes.py
    s4m-pipeline train-teacher configs/teacher/scenes_structural.py
"""

from mmengine.config import read_base

with read_base():
    from .scenes_supervised import *

from pipeline.data.transforms import LoadSimilarityTargets

store = "demo/store"
structural_store = "{store}"
model.update(dict(structural_weight=1.0, structural_feature="decoder"))
train_dataloader.dataset.dataset.pipeline.insert(
    -1, dict(type=LoadSimilarityTargets, store="{structural_store}", num_inside=64, num_uniform=64)
)
