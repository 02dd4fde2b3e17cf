"""Guided Distillation on COCO: S4M without SAM, without ARP and with the labels-only teacher.

Claim: the baseline that S4M builds on. Burn-in is that of its released code, 50,000 steps: the teacher is frozen
while the student learns from labels and pseudo-labels alike, then becomes the student. Cost: less than
coco_r50_points; not run in this project.

    s4m-pipeline train-teacher configs/teacher/coco_r50_supervised.py --workers 2
    s4m-pipeline train-student configs/student/coco_r50_guided.py --workers 4

Another share of labels: as in ``coco_r50_points.py``, with the teacher of ``coco_r50_supervised.py``.
"""

from mmengine.config import read_base

with read_base():
    from .coco_r50_points import *

burn_in = 50_000
teacher_checkpoint = "work_dirs/teacher_coco_r50_supervised"
model.refiner = dict(name="none")
model.arp = None
