"""S4M's Table A.2 on the scenes, SAM asked with one point of the teacher's mask; otherwise as student/scenes_points.

Claim (paper): several points keep SAM from answering with a part of the object; this row is what they are compared
with. Cost: about 7 minutes of one core, as student/scenes_points.

    s4m-pipeline train-student configs/ablation/prompt_points_1.py
"""

from mmengine.config import read_base

with read_base():
    from ..student.scenes_points import *

model.refiner.update(num_points=1)
