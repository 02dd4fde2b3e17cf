"""The S4M student on the scenes, going on from its teacher instead of beginning anew from scenes-base.

Claim: in a run this short the teacher's steps are worth more than a fresh start (table own; not measured yet). Cost: as
scenes_points.

    s4m-pipeline train-student configs/ablation/start_from_teacher.py
"""

from mmengine.config import read_base

with read_base():
    from ..student.scenes_points import *

init_checkpoint = "{teacher_checkpoint}"
init_skip = "^$"
"""Nothing is left out of the start: its classes are ours."""
