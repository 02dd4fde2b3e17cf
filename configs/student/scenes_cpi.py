"""The student on the scenes with refiner `cpi`; otherwise as scenes_points.

Claim: as scenes_iom; all proposals that hold a mask or lie inside it (SemiRES, CPI). Cost: as scenes_points.

s4m-pipeline train-student configs/student/scenes_cpi.py
"""

from mmengine.config import read_base

with read_base():
    from .scenes_points import *

model.refiner = dict(name="cpi", store="{store}")
