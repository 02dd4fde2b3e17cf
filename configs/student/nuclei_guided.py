"""Guided Distillation on nuclei: the labels-only teacher, burn-in and EMA, without SAM and without ARP.

Claim: the baseline that S4M builds on, with the schedule and the filter of nuclei_points. Cost: as nuclei_points
without SAM.

    s4m-pipeline train-student configs/student/nuclei_guided.py --cfg-options root=DIR
"""

from mmengine.config import read_base

with read_base():
    from .nuclei_points import *

teacher_checkpoint = "work_dirs/teacher_nuclei_supervised"
model.refiner = dict(name="none")
model.arp = None
