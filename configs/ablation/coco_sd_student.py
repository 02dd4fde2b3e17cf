"""COCO student with structural distillation on its labelled images too.

Claim (S4M Table 5): the stage for it is the teacher's, where the method has it alone (on the scenes no stage shows
a gain: README). Cost: as coco_r50_points, plus 5 % for the labelled images; it reads the teacher's targets; not
run in this project. As it stands it is the cell "both"; the cell "student" learns from a teacher without it:
``--cfg-options teacher_checkpoint=work_dirs/teacher_coco_r50_supervised``. The cells "teacher" and "none" are
``configs/student/coco_r50_points.py`` with either teacher.

    s4m-pipeline train-student configs/ablation/coco_sd_student.py --workers 4
"""

from mmengine.config import read_base

with read_base():
    from ..student.coco_r50_points import *

model.settings.update(dict(distil_labelled=True))
train_dataloader.dataset.labelled.dataset.pipeline.insert(-1, targets)
