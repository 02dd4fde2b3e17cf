"""S4M's Cityscapes student: teacher masks refined by SAM 2 from 3 points each, ARP, burn-in 15,000 steps, EMA 0.9996.

Claim (paper, 5 / 10 / 20 / 30 %): 30.1 / 33.3 / 37.3 / 37.8 Cityscapes AP. Cost: 90,000 steps of 16 + 16 images of
512 x 1024; not run in this project. A share P of labels is its split and its teacher, nothing else:

    s4m-pipeline train-student configs/student/cityscapes_r50_points.py --workers 4 --cfg-options percent=P \
        --cfg-options teacher_checkpoint=work_dirs/teacher_cityscapes_r50_P \
        --work-dir work_dirs/student_cityscapes_r50_points_P

Switches of what the paper leaves open: ``docs/method.md``; the released code's together, SAM's precision aside:
``cityscapes_r50_released.py``.
"""

from mmdet.models.data_preprocessors.data_preprocessor import MultiBranchDataPreprocessor
from mmengine.config import read_base

with read_base():
    from ..teacher.cityscapes_r50_supervised import *

from pipeline.data.instance_dataset import PairedStream
from pipeline.models.semi_student import SemiStudent
from pipeline.models.training_hooks import BurnInEmaHook
from pipeline.models.validation import BothNetworksLoop
from pipeline.models.watch_hook import WatchHook

batch_size = 4
"""Labelled and unlabelled images per worker, each; the paper's 16 are 4 workers."""
burn_in = 15_000
ema_decay = 0.9996
at_burn_in_end = "copy"
"""Then the teacher becomes the student (released code), or keeps its weights (``keep``) and moves towards it."""
watch_interval = 1_000
"""Steps between two looks at the pseudo-labels of 16 fixed views with hidden ground truth; 0: none."""
teacher_checkpoint = "work_dirs/teacher_cityscapes_r50"
"""A run directory (its newest checkpoint) or a file."""
detector = model
data_preprocessor = detector.pop("data_preprocessor")
model = dict(
    type=SemiStudent,
    detector=detector,
    data_preprocessor=dict(type=MultiBranchDataPreprocessor, data_preprocessor=data_preprocessor),
    pseudo_labels=dict(score_threshold=0.7, min_soft_area=5.0, nms_iou_threshold=None),
    refiner=dict(
        name="points", sam="sam2_hiera_large", device="cuda", precision="bf16", num_points=3, cached_embeddings=64
    ),
    arp=dict(mode="static"),
    settings=dict(unlabelled_weight=2.0, seed="{seed}"),
)
val_cfg = dict(type=BothNetworksLoop)
train_dataloader.dataset = dict(type=PairedStream, labelled=labelled_stream, unlabelled=unlabelled_stream)
custom_hooks.append(dict(type=WatchHook, interval="{watch_interval}"))
custom_hooks.append(dict(type=BurnInEmaHook, burn_in="{burn_in}", decay="{ema_decay}", at_end="{at_burn_in_end}"))
