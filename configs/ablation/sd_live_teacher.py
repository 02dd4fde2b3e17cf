"""Teacher on the scenes with structural distillation from a SAM that runs in every step, on the view: the paper's way.

Claim: the precomputed targets of scenes_structural lose nothing against it. Cost: three times the baseline's step
(scenes_structural: 1.05 times), and no store; ``python -m jobs.measurements.live_sam`` says how far both losses are
apart.

    s4m-pipeline train-teacher configs/ablation/sd_live_teacher.py
"""

from mmengine.config import read_base

with read_base():
    from ..teacher.scenes_supervised import *

from pipeline.data.transforms import DrawTargetPoints

model.update(
    dict(
        structural_weight=1.0,
        structural_feature="decoder",
        distillation="structural",
        live_sam=dict(name="scenes-nano", features="decoder", channels=96),
    )
)
train_dataloader.dataset.dataset.pipeline.insert(-1, dict(type=DrawTargetPoints, num_inside=64, num_uniform=64))
