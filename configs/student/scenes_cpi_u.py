"""The student on the scenes with refiner `cpi_u`; otherwise as scenes_points.

Claim: as scenes_iom; all proposals that hold a mask (SemiRES, CPI-U). Cost: as scenes_points.

s4m-pipeline train-student configs/student/scenes_cpi_u.py
"""

from mmengine.config import read_base

with read_base():
    from .scenes_points import *

model.refiner = dict(name="cpi_u", store="{store}")
