"""The COCO student with the stored proposal library (CPI-U) in place of SAM in the training loop.

Claim: no SAM in the training process; what it gains is to be measured. Cost: as coco_r50_points without its prompts.

    s4m-pipeline train-student configs/student/coco_r50_cpi_u.py --work-dir work_dirs/coco_cpi_u --workers 4

Another share of labels: as in ``coco_r50_points.py``.
"""

from mmengine.config import read_base

with read_base():
    from .coco_r50_points import *

model.refiner = dict(name="cpi_u", store="{store}")
