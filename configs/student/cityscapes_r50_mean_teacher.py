"""A plain mean teacher on Cityscapes: cityscapes_r50_guided without a burn-in.

Claim: what the burn-in of Guided Distillation is compared with. Student and teacher both start from the labels-only
teacher, and the teacher is the student's moving average from the first step on. Cost: as cityscapes_r50_guided; not
run in this project.

    s4m-pipeline train-teacher configs/teacher/cityscapes_r50_supervised.py --workers 4
    s4m-pipeline train-student configs/student/cityscapes_r50_mean_teacher.py --workers 4
"""

from mmengine.config import read_base

with read_base():
    from .cityscapes_r50_guided import *

burn_in = 0
init_checkpoint = "{teacher_checkpoint}"
init_skip = "^$"
"""Nothing is left out of the start: its classes are ours."""
