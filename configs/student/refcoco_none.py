"""Mutual learning on RefCOCO without SAM: the baseline of SemiRES' tables (a mean teacher with weak and strong views).

Claim (paper, val at 1 %): 42.6 oIoU. Cost: 40 passes over the unlabelled objects, 140,000 steps of 12 + 12; not run in
this project. Both networks start from the burn-in; the teacher answers in validation. Other ways to weight pixels:
``--cfg-options model.settings...``, see docs/method.md.

    s4m-pipeline train-student configs/student/refcoco_none.py --workers 4
"""

from mmdet.models.data_preprocessors.data_preprocessor import MultiBranchDataPreprocessor
from mmengine.config import read_base

with read_base():
    from ..teacher.refcoco_lavt import *

from pipeline.data.instance_dataset import PairedStream
from pipeline.models.referring.semi_refer import SemiReferStudent
from pipeline.models.training_hooks import BurnInEmaHook

batch_size = 3
"""Labelled and unlabelled objects per worker, each; the paper's 12 are 4 workers."""
max_iters = 140_000
ema_decay = 0.996
"""As in the paper; released: 0.9996."""
teacher_checkpoint = "work_dirs/teacher_refcoco_lavt"
"""Of the burn-in: a run directory (its newest checkpoint) or a file."""
init_checkpoint = "{teacher_checkpoint}"
segmentor = model
data_preprocessor = segmentor.pop("data_preprocessor")
model = dict(
    type=SemiReferStudent,
    segmentor=segmentor,
    data_preprocessor=dict(type=MultiBranchDataPreprocessor, data_preprocessor=data_preprocessor),
    refiner=dict(name="none"),
    jitter=dict(keep_named_colours=False),
    settings=dict(supervised_weight=1.0, unlabelled_weight=1.0, seed="{seed}"),
    predict_on="teacher",
)
train_dataloader.dataset = dict(type=PairedStream, labelled=labelled_stream, unlabelled=unlabelled_stream)
custom_hooks.append(dict(type=BurnInEmaHook, burn_in=0, decay="{ema_decay}", at_end="keep"))
