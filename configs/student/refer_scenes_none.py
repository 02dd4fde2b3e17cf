"""A mean teacher on the sentences of the scenes without SAM: the baseline of SemiRES' tables.

Claim (paper, RefCOCO with 1 % of labels): 42.6 oIoU, against 32.3 of the burn-in alone. Cost: about 8 minutes of one
core. Both networks start from the burn-in; the teacher answers in validation.

    s4m-pipeline train-student configs/student/refer_scenes_none.py
"""

from mmdet.models.data_preprocessors.data_preprocessor import MultiBranchDataPreprocessor
from mmengine.config import read_base

with read_base():
    from ..teacher.refer_scenes_lavt import *

from pipeline.data.instance_dataset import PairedStream
from pipeline.models.referring.semi_refer import SemiReferStudent
from pipeline.models.training_hooks import BurnInEmaHook

max_iters = 400
batch_size = 4
learning_rate = 1e-4
ema_decay = 0.99
"""The paper's 0.996 is for 140,000 steps."""
teacher_checkpoint = "work_dirs/teacher_refer_scenes_lavt"
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
