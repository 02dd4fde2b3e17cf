"""SemiRES on RefCOCO+ with CPI-U: as ``refcoco_cpi_u.py`` with the other benchmark's files.

Claim (paper, val at 0.5 / 1 / 2 / 5 %): 32.0 / 36.5 / 40.4 / 47.0 oIoU. Cost: as ``refcoco_cpi_u.py``; not run in this
project.

    s4m-pipeline train-student configs/student/refcocoplus_cpi_u.py --workers 4
"""

from mmengine.config import read_base

with read_base():
    from .refcoco_cpi_u import *

benchmark = "refcoco+"
refs = "refs(unc).p"
store = "work_dirs/sam_store_refcocoplus"
teacher_checkpoint = "work_dirs/teacher_refcocoplus_lavt"
