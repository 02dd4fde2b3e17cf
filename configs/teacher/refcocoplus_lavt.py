"""LAVT on the labelled part of RefCOCO+: as ``refcoco_lavt.py`` with the other benchmark's files.

Claim: the burn-in and supervised baseline of that benchmark's rows. Cost: as there; not run in this project.

s4m-pipeline train-teacher configs/teacher/refcocoplus_lavt.py --workers 4
"""

from mmengine.config import read_base

with read_base():
    from .refcoco_lavt import *

benchmark = "refcoco+"
refs = "refs(unc).p"
