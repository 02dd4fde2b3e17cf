"""SemiRES on the sentences of the scenes: masks become the union of the parts that they cover (CPI-O).

Claim (paper, RefCOCO with 1 % of labels): 45.2 oIoU; where nothing matches, pixels are weighted (PWA). Cost: as
``refer_scenes_none.py``, plus ``precompute-sam`` once; the library is per image, shared by all of its sentences.

    s4m-pipeline precompute-sam configs/sam/scenes.py
    s4m-pipeline train-student configs/student/refer_scenes_cpi_o.py
"""

from mmengine.config import read_base

with read_base():
    from .refer_scenes_none import *

store = "demo/store"
model.refiner = dict(name="cpi_o", store="{store}")
