"""A plain mean teacher on the scenes: scenes_guided without a burn-in.

Claim: what a burn-in is compared with. Student and teacher both start from the labels-only teacher, and the teacher
is the student's moving average from the first step on. Cost: as scenes_guided.

    s4m-pipeline train-student configs/student/scenes_mean_teacher.py
"""

from mmengine.config import read_base

with read_base():
    from .scenes_guided import *

burn_in = 0
