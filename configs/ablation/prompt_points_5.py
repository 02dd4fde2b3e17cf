"""S4M's Table A.2 on the scenes, SAM asked with 5 points of the teacher's mask; otherwise as student/scenes_points.

Claim: how many points a mask needs; student/scenes_points has 3, the most that scenes-nano was shown at first in its
training. Measured: level with 3 (README). Cost: about 7 minutes of one core, as student/scenes_points.

    s4m-pipeline train-student configs/ablation/prompt_points_5.py
"""

from mmengine.config import read_base

with read_base():
    from ..student.scenes_points import *

model.refiner.update(num_points=5)
