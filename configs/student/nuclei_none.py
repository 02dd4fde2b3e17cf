"""The student on nuclei with refiner `none`; otherwise as nuclei_points.

Claim: what unlabelled images are worth without SAM (README, real images). Cost: as nuclei_points.

s4m-pipeline train-student configs/student/nuclei_none.py --cfg-options root=DIR \
    --cfg-options image_root=IMAGES
"""

from mmengine.config import read_base

with read_base():
    from .nuclei_points import *

model.refiner = dict(name="none")
