"""The student on the scenes with refiner `none`; otherwise as scenes_points.

Claim: what a student gains without SAM, from its teacher's masks as they are. Cost: about 5 minutes of one core.

s4m-pipeline train-student configs/student/scenes_none.py
"""

from mmengine.config import read_base

with read_base():
    from .scenes_points import *

model.refiner = dict(name="none")
