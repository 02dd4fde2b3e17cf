"""Proposal library of RefCOCO+'s images: as ``refcoco.py``.

Claim: as there. Cost: as there, by the number of images; not measured here.

s4m-pipeline precompute-sam configs/sam/refcocoplus.py --ray-address auto --cfg-options workers.gpus=1
"""

from mmengine.config import read_base

with read_base():
    from .refcoco import *

images = "data/refer/refcoco+/instances.json"
store = "work_dirs/sam_store_refcocoplus"
