"""The student on nuclei, masks matched to the proposal library by CPI-U; otherwise as nuclei_points.

Claim: a library made once instead of a SAM in the training (README, real images). Cost: as nuclei_points.

s4m-pipeline train-student configs/student/nuclei_cpi_u.py --cfg-options root=DIR \
    --cfg-options image_root=IMAGES --cfg-options store=STORE
"""

from mmengine.config import read_base

with read_base():
    from .nuclei_points import *

model.refiner = dict(name="cpi_u", store="{store}")
