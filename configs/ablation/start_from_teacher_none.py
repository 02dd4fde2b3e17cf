"""start_from_teacher without SAM: the student on the scenes goes on from its teacher and learns its masks as they are.

Claim: what start_from_teacher is compared with (table start). Cost: as scenes_none.

    s4m-pipeline train-student configs/ablation/start_from_teacher_none.py
"""

from mmengine.config import read_base

with read_base():
    from ..student.scenes_none import *

init_checkpoint = "{teacher_checkpoint}"
init_skip = "^$"
"""Nothing is left out of the start: its classes are ours."""
