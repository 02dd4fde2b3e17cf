"""Teacher on the scenes, labels only: the baseline of every table.

Claim: what a Mask2Former learns from the labelled scenes alone. Cost: about 4 minutes of one core.

    s4m-pipeline train-teacher configs/teacher/scenes_supervised.py
"""

from mmengine.config import read_base
from mmengine.optim import AmpOptimWrapper, OptimWrapper, PolyLR  # noqa: F401  (Amp: --cfg-options on GPUs)
from mmengine.runner import TestLoop, ValLoop  # noqa: F401
from torch.optim import AdamW

with read_base():
    from .._base_.mask2former_scenes import *
    from .._base_.runtime import *
    from .._base_.scenes_data import *

from pipeline.models.mask2former import DistilledMask2Former, WeightedMask2FormerHead
from pipeline.models.training_hooks import StreamLoop

batch_size = 8
max_iters = 240
learning_rate = 3e-4
init_checkpoint = "scenes-base"
"""Weights that the run starts from: an embedded name or a path."""
teacher_checkpoint = None

model.update(dict(type=DistilledMask2Former))
model.panoptic_head.update(dict(type=WeightedMask2FormerHead))
train_dataloader = dict(
    batch_size="{batch_size}",
    num_workers=0,
    sampler=dict(**train_sampler, batch_size="{batch_size}"),
    collate_fn=collate,
    dataset=labelled_stream,
)
train_cfg = dict(type=StreamLoop, max_iters="{max_iters}", val_interval="{max_iters}")
val_cfg = dict(type=ValLoop)
optim_wrapper = dict(
    type=OptimWrapper,
    optimizer=dict(type=AdamW, lr="{learning_rate}", weight_decay=0.05),
    clip_grad=dict(max_norm=0.01, norm_type=2),
    paramwise_cfg=dict(
        norm_decay_mult=0.0,
        custom_keys={
            "query_embed": dict(decay_mult=0.0),
            "query_feat": dict(decay_mult=0.0),
            "level_embed": dict(decay_mult=0.0),
        },
    ),
)
param_scheduler = dict(type=PolyLR, power=0.9, eta_min=0.0, begin=0, end="{max_iters}", by_epoch=False)
