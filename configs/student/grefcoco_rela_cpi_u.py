"""SemiRES with ReLA on gRefCOCO with CPI-U: as ``refcoco_rela_cpi_u.py`` with the other benchmark's files.

Claim: none; SemiRES has no row for it. A sentence about an unlabelled image is taken to mean something: that nothing is
meant is learnt from the labelled ones alone. Cost: as ``refcoco_rela_cpi_u.py``; not run in this project.

    s4m-pipeline precompute-sam configs/sam/grefcoco.py --ray-address auto --cfg-options workers.gpus=1
    s4m-pipeline train-student configs/student/grefcoco_rela_cpi_u.py --workers 4
"""

from mmengine.config import read_base

with read_base():
    from .refcoco_rela_cpi_u import *

benchmark = "grefcoco"
refs = "grefs(unc).json"
store = "work_dirs/sam_store_grefcoco"
teacher_checkpoint = "work_dirs/teacher_grefcoco_rela"
val_evaluator.generalised = True
