"""LAVT (Swin-B, BERT-base) on the labelled part of RefCOCO: SemiRES' burn-in, and its supervised baseline.

Claim (paper, val of RefCOCO at 1 %): 32.3 oIoU. Cost: 40 passes over the labelled objects, 2,160 steps of 8 objects at
1 % (``max_iters`` = objects x 40 / 8); not run in this project. RefCOCO+ and G-Ref: ``refcocoplus_lavt.py``,
``refcocog_lavt.py``. Another share P: ``--cfg-options percent=P max_iters=...``, each with its own ``--cfg-options``.

    s4m-pipeline train-teacher configs/teacher/refcoco_lavt.py --workers 4
"""

from mmengine.config import read_base
from mmengine.runner import TestLoop, ValLoop  # noqa: F401

with read_base():
    from .._base_.lavt_optim import *
    from .._base_.lavt_swin_b import *
    from .._base_.refcoco_data import *
    from .._base_.runtime import *

from pipeline.models.training_hooks import StreamLoop

batch_size = 2
"""Objects per worker; the released burn-in's 8 are 4 workers."""
max_iters = 2160
learning_rate = 5e-5
init_checkpoint = None
"""The whole network; Swin and BERT have their own starts, ``swin_checkpoint`` and ``bert``."""
teacher_checkpoint = None
panel_interval = 0

train_dataloader = dict(
    batch_size="{batch_size}",
    num_workers="{num_workers}",
    sampler=dict(**train_sampler, batch_size="{batch_size}"),
    collate_fn=collate,
    dataset=labelled_stream,
)
train_cfg = dict(type=StreamLoop, max_iters="{max_iters}", val_interval="{max_iters}")
val_cfg = dict(type=ValLoop)
