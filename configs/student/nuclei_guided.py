"""Guided Distillation on nuclei: the labels-only teacher, burn-in and EMA, without SAM and without ARP.

Claim: the baseline that S4M builds on, with the filter of nuclei_points and a student that starts anew. Cost: twice the
steps of nuclei_points, each without SAM.

    s4m-pipeline train-student configs/student/nuclei_guided.py --cfg-options root=DIR \
        --cfg-options image_root=IMAGES
"""

from mmengine.config import read_base

with read_base():
    from .nuclei_points import *

teacher_checkpoint = "work_dirs/teacher_nuclei_supervised"
max_iters = 800
learning_rate = 1e-3
burn_in = 400
init_checkpoint = "scenes-base"
init_skip = "cls_embed|query_embed|query_feat"
model.refiner = dict(name="none")
model.arp = None
