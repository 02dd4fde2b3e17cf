"""SAM artefacts of Cityscapes, by SAM 2.0 Hiera-L, which is the paper's.

Claim: what S4M and SemiRES read from SAM, computed once instead of in every training step. All 2,975 training images
get targets, so that one store serves every share of labels; a training reads those of its labelled images only. Cost:
not measured here; about 2 MB an image for the targets (twice the points of COCO's: a training crop shows a quarter of
an image) and 100 kB for the proposals. ``--dry-run`` estimates the disk, and hours once this SAM and GPU are measured
(``python -m jobs.measurements.stage_table``).

    s4m-pipeline convert-cityscapes data/cityscapes
    s4m-pipeline precompute-sam configs/sam/cityscapes.py --ray-address auto --cfg-options workers.gpus=1

The targets of one share alone: ``--cfg-options split=data/cityscapes/split_10/split.json``.
"""

images = "data/cityscapes/annotations/train.json"
image_root = "data/cityscapes/leftImg8bit/train"
split = None
store = "work_dirs/cityscapes_store"

sam = dict(name="sam2_hiera_large", device="cuda", precision="bf16")
# The settings of SAM 2's own generator.
proposals = dict(
    points_per_side=32,
    points_per_batch=64,
    pred_iou_threshold=0.8,
    stability_score_threshold=0.95,
    stability_score_offset=1.0,
    box_nms_threshold=0.7,
)
similarity = dict(num_inside=256, num_uniform=256, rows_per_chunk=64, seed=0)

images_per_shard = 64
max_broken_share = 0.01
retries = 2
workers = dict(cpus=4.0, gpus=1.0, seconds_per_image=600.0)
