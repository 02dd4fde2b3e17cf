"""SAM artefacts of COCO-format data, by SAM 2.0 Hiera-L, which is the paper's: the full-size run, on GPUs.

Claim: what S4M and SemiRES read from SAM, computed once instead of in every training step. SAM 2.1 is
``sam.name=sam2.1_hiera_large``. Cost: not measured here; about 1 MB an image for the targets (labelled images only) and
30 kB for the proposals.

    s4m-pipeline split data/coco/annotations/instances_train2017.json --image-root data/coco/train2017 \
        --percent 10 --out data/coco/split_10
    s4m-pipeline precompute-sam configs/sam/coco.py --ray-address auto --cfg-options workers.gpus=1

A smaller trial on a machine without GPU:

    s4m-pipeline precompute-sam configs/sam/coco.py --limit 8 --work-dir work_dirs/trial \
        --cfg-options sam.name=scenes-nano --cfg-options sam.device=cpu --cfg-options sam.precision=fp32
"""

images = "data/coco/annotations/instances_train2017.json"
image_root = "data/coco/train2017"
split = "data/coco/split_10/split.json"
store = "work_dirs/sam_store"

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
similarity = dict(num_inside=128, num_uniform=128, rows_per_chunk=64, seed=0)

images_per_shard = 64
max_broken_share = 0.01
retries = 2
workers = dict(cpus=4.0, gpus=1.0, seconds_per_image=600.0)
