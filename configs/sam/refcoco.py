"""Proposal library of RefCOCO's images by SAM 2.1 Hiera-L: one entry per image, shared by all sentences about it.

Claim: SemiRES' library (there SAM 1 ViT-H, one file per referred object, so that SAM ran 2.5 times an image; a library
by any other source comes in with ``import-proposals``). Cost: 19,994 images; not measured here, about 30 kB an image.

    s4m-pipeline precompute-sam configs/sam/refcoco.py --ray-address auto --cfg-options workers.gpus=1
"""

images = "data/refer/refcoco/instances.json"
image_root = "data/coco/train2014"
split = None
store = "work_dirs/sam_store_refcoco"
targets = ["proposals"]

sam = dict(name="sam2.1_hiera_large", device="cuda", precision="bf16")
# The settings of SAM 2's own generator.
proposals = dict(
    points_per_side=32,
    points_per_batch=64,
    pred_iou_threshold=0.8,
    stability_score_threshold=0.95,
    stability_score_offset=1.0,
    box_nms_threshold=0.7,
)

images_per_shard = 64
max_broken_share = 0.01
retries = 2
workers = dict(cpus=4.0, gpus=1.0, seconds_per_image=600.0)
