"""ReLA on the labelled part of gRefCOCO, whose expressions mean several objects, one, or nothing.

Claim: none; SemiRES has no row for it. ``val_evaluator.generalised`` adds gIoU, cIoU, N-acc and T-acc. Files:
``data/refer/grefcoco/grefs(unc).json`` and ``instances.json``; the split is ``s4m-pipeline split`` with both. Cost:
steps as in ``refcoco_rela.py``; not run in this project.

    s4m-pipeline train-teacher configs/teacher/grefcoco_rela.py --workers 4
"""

from mmengine.config import read_base

with read_base():
    from .refcoco_rela import *

benchmark = "grefcoco"
refs = "grefs(unc).json"
val_evaluator.generalised = True
