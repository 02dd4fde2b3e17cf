"""ReLA on the labelled sentences of the scenes: burn-in and supervised baseline with the second network (Table 7).

Claim (paper, RefCOCO with 1 % of labels): 31.5 oIoU. Cost: as ``refer_scenes_lavt.py``. It starts from
``refer-rela-base``, as that one does from ``refer-lavt-base``.

    s4m-pipeline train-teacher configs/teacher/refer_scenes_rela.py
"""

from mmengine.config import read_base

with read_base():
    from .refer_scenes_lavt import *

    from .._base_.rela_optim import *  # isort: skip  (they take the place of LAVT's)
    from .._base_.rela_scenes import *  # isort: skip

init_checkpoint = "refer-rela-base"
