"""S4M's COCO teacher without structural distillation: Mask2Former R50 on the labelled part, labels only.

Claim: the baseline of every COCO row, and the first teacher of Guided Distillation and of the mean teacher. Cost:
368,750 steps of 12 images; not run in this project, which had no GPU. It needs no store.

    s4m-pipeline split data/coco/annotations/instances_train2017.json --image-root data/coco/train2017 \
        --out data/coco/split_10 --percent 10
    s4m-pipeline train-teacher configs/teacher/coco_r50_supervised.py --workers 2

Half precision is on (fp16 with a scaled loss); bf16: ``--cfg-options optim_wrapper.dtype=bfloat16``, float32:
``--cfg-options optim_wrapper.type=OptimWrapper``. Another share of labels: see ``coco_r50.py``.
"""

from mmengine.config import read_base
from mmengine.optim import AmpOptimWrapper, MultiStepLR
from mmengine.runner import ValLoop
from torch.optim import AdamW

with read_base():
    from .._base_.coco_data import *
    from .._base_.mask2former_r50 import *
    from .._base_.runtime import *

from pipeline.models.training_hooks import StreamLoop

batch_size = 6
"""Per worker; the paper's 12 are 2 workers. The released teacher's 16: ``--cfg-options batch_size=8``."""
max_iters = 368_750
val_interval = 5_000
checkpoint_interval = 5_000
best_figure = "coco/mask_AP"
panel_interval = 2_000
learning_rate = 1e-4
init_checkpoint = None
teacher_checkpoint = None

train_dataloader = dict(
    batch_size="{batch_size}",
    num_workers=4,
    persistent_workers=True,
    sampler=dict(**train_sampler, batch_size="{batch_size}"),
    collate_fn=collate,
    dataset=labelled_stream,
)
train_cfg = dict(type=StreamLoop, max_iters="{max_iters}", val_interval="{val_interval}")
val_cfg = dict(type=ValLoop)
no_decay = dict(decay_mult=0.0)
optim_wrapper = dict(
    type=AmpOptimWrapper,
    optimizer=dict(type=AdamW, lr="{learning_rate}", weight_decay=0.05),
    clip_grad=dict(max_norm=0.01, norm_type=2),
    paramwise_cfg=dict(
        norm_decay_mult=0.0,
        custom_keys=dict(backbone=dict(lr_mult=0.1), query_embed=no_decay, query_feat=no_decay, level_embed=no_decay),
    ),
)
param_scheduler = dict(type=MultiStepLR, milestones=[327_778, 355_092], gamma=0.1, begin=0, by_epoch=False)
