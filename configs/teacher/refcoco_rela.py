"""ReLA on the labelled part of RefCOCO: burn-in and supervised baseline with the second network (Table 7).

Claim (paper, val at 1 %): 31.5 oIoU; 43.6 after SemiRES (``configs/student/refcoco_rela_cpi_u.py``). Cost: as
``refcoco_lavt.py``; not run in this project.

    s4m-pipeline train-teacher configs/teacher/refcoco_rela.py --workers 4
"""

from mmengine.config import read_base

with read_base():
    from .refcoco_lavt import *

    from .._base_.rela_optim import *  # isort: skip  (they take the place of LAVT's)
    from .._base_.rela_swin_b import *  # isort: skip

learning_rate = 1e-5
"""GRES's."""
