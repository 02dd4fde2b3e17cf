"""SemiRES on G-Ref with CPI-U: as ``refcoco_cpi_u.py`` with the other benchmark's files.

Claim (paper, val at 0.5 / 1 / 2 / 5 %): 31.8 / 34.8 / 42.2 / 47.6 oIoU. Cost: as ``refcoco_cpi_u.py``; not run in this
project.

    s4m-pipeline train-student configs/student/refcocog_cpi_u.py --workers 4
"""

from mmengine.config import read_base

with read_base():
    from .refcoco_cpi_u import *

benchmark = "refcocog"
refs = "refs(umd).p"
store = "work_dirs/sam_store_refcocog"
teacher_checkpoint = "work_dirs/teacher_refcocog_lavt"
