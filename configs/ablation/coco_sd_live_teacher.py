"""COCO teacher with structural distillation from a SAM in every step, on the view: the paper's own way.

Claim (to be tested): the store of coco_r50 loses nothing against it, as on the scenes (README, Table 4). SAM sees the
view as the network does, in bf16. Cost: SAM 2.0 Hiera-L's encoder once and its decoder at 128 points for every labelled
image of every step, and no store; not run in this project, which had no GPU. Another share of labels: see
``configs/teacher/coco_r50.py``.

    s4m-pipeline train-teacher configs/ablation/coco_sd_live_teacher.py --workers 2
"""

from mmengine.config import read_base

with read_base():
    from ..teacher.coco_r50_supervised import *

from pipeline.data.transforms import DrawTargetPoints

model.update(
    dict(
        distillation="structural",
        live_sam=dict(name="sam2_hiera_large", features="decoder", channels=256, precision="bf16"),
    )
)
train_dataloader.dataset.dataset.pipeline.insert(-1, dict(type=DrawTargetPoints, num_inside=64, num_uniform=64))
