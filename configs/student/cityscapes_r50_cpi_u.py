"""The Cityscapes student with the stored proposal library (CPI-U) in place of SAM in the training loop.

Claim: no SAM in the training process; what it gains is to be measured. Cost: as cityscapes_r50_points without its
prompts.

    s4m-pipeline train-student configs/student/cityscapes_r50_cpi_u.py --work-dir work_dirs/cityscapes_cpi_u --workers 4

Another share of labels: as in ``cityscapes_r50_points.py``.
"""

from mmengine.config import read_base

with read_base():
    from .cityscapes_r50_points import *

model.refiner = dict(name="cpi_u", store="{store}")
