"""The student on the scenes with refiner `iom`; otherwise as scenes_points.

Claim: masks of a library made once stand in for a SAM in the training (SemiRES, IOM). Cost: as scenes_points.

s4m-pipeline train-student configs/student/scenes_iom.py
"""

from mmengine.config import read_base

with read_base():
    from .scenes_points import *

model.refiner = dict(name="iom", store="{store}")
