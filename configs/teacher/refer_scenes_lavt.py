"""LAVT on the labelled sentences of the scenes: SemiRES' burn-in, and the supervised baseline of its tables.

Claim: what a small LAVT learns from few labels (paper, RefCOCO with 1 % of labels: 32.3 oIoU). Cost: about 3 minutes of
one core. It starts from ``refer-lavt-base``, which knows the grammar, colours and places, but none of the scenes'
shapes and none of their names.

    s4m-pipeline train-teacher configs/teacher/refer_scenes_lavt.py
"""

from mmengine.config import read_base
from mmengine.runner import TestLoop, ValLoop  # noqa: F401

with read_base():
    from .._base_.lavt_optim import *
    from .._base_.lavt_scenes import *
    from .._base_.refer_scenes_data import *
    from .._base_.runtime import *

from pipeline.models.training_hooks import StreamLoop

batch_size = 8
max_iters = 300
learning_rate = 3e-4
"""For a network this small; the paper's 5e-5 is in ``refcoco_lavt.py``."""
init_checkpoint = "refer-lavt-base"
"""Weights that the run starts from: an embedded name, a path, or None."""
teacher_checkpoint = None
panel_interval = 0

train_dataloader = dict(
    batch_size="{batch_size}",
    num_workers=0,
    sampler=dict(**train_sampler, batch_size="{batch_size}"),
    collate_fn=collate,
    dataset=labelled_stream,
)
train_cfg = dict(type=StreamLoop, max_iters="{max_iters}", val_interval="{max_iters}")
val_cfg = dict(type=ValLoop)
