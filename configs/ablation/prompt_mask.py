"""S4M's Table A.2 on the scenes, SAM given the teacher's mask and no click; otherwise as student/scenes_points.

Claim: a mask as prompt hands the teacher's errors over with it; measured, it costs 4 points of AP against no refinement
(README). scenes-nano saw masks in its training, but always with clicks. Cost: about 7 minutes of one core, as
student/scenes_points.

    s4m-pipeline train-student configs/ablation/prompt_mask.py
"""

from mmengine.config import read_base

with read_base():
    from ..student.scenes_points import *

model.refiner.update(prompt="mask")
