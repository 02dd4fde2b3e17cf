"""The student on the scenes with refiner `cpi_o`; otherwise as scenes_points.

Claim: as scenes_iom; all proposals that lie inside a mask (SemiRES, CPI-O). Cost: as scenes_points.

s4m-pipeline train-student configs/student/scenes_cpi_o.py
"""

from mmengine.config import read_base

with read_base():
    from .scenes_points import *

model.refiner = dict(name="cpi_o", store="{store}")
