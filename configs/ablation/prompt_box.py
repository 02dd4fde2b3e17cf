"""S4M's Table A.2 on the scenes, SAM asked with the box of the teacher's mask; otherwise as student/scenes_points.

Claim: a box says how far the object reaches, but also how far the teacher's error does; measured, it costs 5 to 6
points of AP against no refinement (README). scenes-nano never saw a box in its training, so that says nothing of boxes
unless model.refiner.sam names a published SAM. Cost: about 7 minutes of one core, as student/scenes_points.

    s4m-pipeline train-student configs/ablation/prompt_box.py
"""

from mmengine.config import read_base

with read_base():
    from ..student.scenes_points import *

model.refiner.update(prompt="box")
