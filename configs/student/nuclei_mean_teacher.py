"""A plain mean teacher on nuclei: nuclei_guided without a burn-in, with the schedule of nuclei_points.

Claim: what a burn-in is compared with. Student and teacher both start from the labels-only teacher, and the teacher
is the student's moving average from the first step on. Cost: as nuclei_points, without SAM.

    s4m-pipeline train-student configs/student/nuclei_mean_teacher.py --cfg-options root=DIR \
        --cfg-options image_root=IMAGES
"""

from mmengine.config import read_base

with read_base():
    from .nuclei_guided import *

max_iters = 400
learning_rate = 3e-4
burn_in = 0
init_checkpoint = "{teacher_checkpoint}"
init_skip = "^$"
"""Nothing is left out of the start: its classes are ours."""
