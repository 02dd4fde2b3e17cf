"""The S4M student on the scenes with structural distillation on its labelled images too.

Claim (S4M Table 5): the stage for it is the teacher's, where the method has it alone (here no stage shows a gain:
README). Cost: as scenes_points, plus 5 % for the labelled images; it reads the targets of ``configs/sam/scenes.py``. As
it stands it is the cell "both"; the cell "student" starts from a teacher without:
``--cfg-options teacher_checkpoint=work_dirs/teacher_scenes_supervised``. The cells "teacher" and "none" are
``configs/student/scenes_points.py`` with either teacher, which ``--cfg-options model.settings.distil_labelled=False``
makes of this one.

    s4m-pipeline train-student configs/ablation/sd_student.py
"""

from mmengine.config import read_base

with read_base():
    from ..student.scenes_points import *

from pipeline.data.transforms import LoadSimilarityTargets

structural_store = "{store}"
model.detector.update(dict(structural_weight=1.0, structural_feature="decoder"))
model.settings.update(dict(distil_labelled=True))
train_dataloader.dataset.labelled.dataset.pipeline.insert(
    -1, dict(type=LoadSimilarityTargets, store="{structural_store}", num_inside=64, num_uniform=64)
)
