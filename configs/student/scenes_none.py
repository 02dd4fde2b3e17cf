"""The student on the scenes with refiner `none`; otherwise as scenes_points.

s4m-pipeline train-student configs/student/scenes_none.py
"""

from mmengine.config import read_base

with read_base():
    from .scenes_points import *

model.refiner = dict(name="none")
