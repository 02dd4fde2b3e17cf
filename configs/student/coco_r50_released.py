"""The COCO student with the released code's settings wherever they differ from the paper and can be chosen here.

Claim: nearest to the published weights. Points from a softmax over the whole map; labelled images of rare classes
repeated, and all images in the unlabelled stream; ARP on half of the batch with instances of 3,000 pixels and more,
relocated and rescaled, slivers kept; batches without a pseudo-label learnt too. What stays different:
``docs/method.md``. Cost: as coco_r50_points; not run in this project.

    s4m-pipeline train-student configs/student/coco_r50_released.py --workers 4

Its teacher is ``coco_r50.py`` with batch_size=8 on 2 workers.
"""

from mmengine.config import read_base

with read_base():
    from .coco_r50_points import *

repeat_threshold = 10.0
unlabelled_part = "all"
model.refiner.update(sampling="softmax")
model.arp = dict(mode="moved", min_source_area=3000, pair_fraction=0.5, min_visible_pixels=1, min_visible_share=0.0)
model.settings.update(learn_empty_batches=True, min_pixels=1)
