"""SemiRES on RefCOCO: pseudo-labels become the union of the proposals that they lie in (CPI-U), else PWA weights.

Claim (paper, val at 0.5 / 1 / 2 / 5 %): 40.3 / 50.9 / 54.9 / 61.3 oIoU. Cost: as ``refcoco_none.py``, plus
``precompute-sam`` once. Other matchers (paper, val at 1 %: IOM 49.7, CPI 50.4, CPI-O 45.2):
``--cfg-options model.refiner.name=iom | cpi | cpi_o``. A share P is its split and its burn-in, nothing else:
``--cfg-options percent=P --cfg-options teacher_checkpoint=work_dirs/teacher_refcoco_lavt_P``.

    s4m-pipeline precompute-sam configs/sam/refcoco.py --ray-address auto --cfg-options workers.gpus=1
    s4m-pipeline train-teacher configs/teacher/refcoco_lavt.py --workers 4
    s4m-pipeline train-student configs/student/refcoco_cpi_u.py --workers 4
"""

from mmengine.config import read_base

with read_base():
    from .refcoco_none import *

store = "work_dirs/sam_store_refcoco"
model.refiner = dict(name="cpi_u", store="{store}")
