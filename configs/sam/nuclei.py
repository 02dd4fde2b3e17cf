"""SAM artefacts of the nuclei images, by the embedded SAM, which has never seen a cell.

Claim: that the pipeline takes real images (RGBA, many sizes, hundreds of small touching objects); for good masks name
a real SAM. Cost: about 3 s an image on one core (32 x 32 clicks).

    s4m-pipeline precompute-sam configs/sam/nuclei.py --cfg-options images=DIR/train.json --cfg-options image_root=DIR
"""

images = "data/nuclei/train.json"
image_root = "data/nuclei/images"
split = "data/nuclei/split/split.json"
store = "work_dirs/nuclei_store"

sam = dict(name="scenes-nano", device="cpu")
proposals = dict(points_per_side=32, pred_iou_threshold=0.4, stability_score_threshold=0.5)
similarity = dict(num_inside=128, num_uniform=128, seed=0)

images_per_shard = 8
max_broken_share = 0.0
