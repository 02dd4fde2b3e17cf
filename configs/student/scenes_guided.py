"""Guided Distillation on the scenes: the labels-only teacher, burn-in and EMA, without SAM and without ARP.

Claim: the baseline that S4M builds on, with the schedule and the filter of scenes_points. Cost: as scenes_points
without SAM.

    s4m-pipeline train-student configs/student/scenes_guided.py
"""

from mmengine.config import read_base

with read_base():
    from .scenes_points import *

teacher_checkpoint = "work_dirs/teacher_scenes_supervised"
model.refiner = dict(name="none")
model.arp = None
