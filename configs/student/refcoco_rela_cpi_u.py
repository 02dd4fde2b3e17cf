"""SemiRES on RefCOCO with ReLA (Table 7): the student of ``refcoco_cpi_u.py`` around the second network.

Claim (paper, val at 1 %): 43.6 oIoU, against 31.5 of the burn-in. Cost: as ``refcoco_cpi_u.py``; not run in
this project.

    s4m-pipeline train-student configs/student/refcoco_rela_cpi_u.py --workers 4
"""

from mmengine.config import read_base

with read_base():
    from .._base_.rela_swin_b import model as rela
    from .refcoco_cpi_u import *

    from .._base_.rela_optim import *  # isort: skip  (it takes the place of LAVT's)

rela.pop("data_preprocessor")
model.segmentor = rela
teacher_checkpoint = "work_dirs/teacher_refcoco_rela"
learning_rate = 1e-5
"""GRES's."""
