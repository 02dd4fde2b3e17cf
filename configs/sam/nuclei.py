"""SAM artefacts of the nuclei images, by the embedded SAM, which has never seen a cell.

Claim: that the pipeline takes real images (RGBA, many sizes, hundreds of small touching objects); for good masks name
a real SAM. Cost: about 2 s an image on one core (32 x 32 clicks).

``DIR/train.json`` is a COCO file of the images to train on, in IMAGES; the split says which of them are labelled:

    s4m-pipeline split DIR/train.json --image-root IMAGES --percent 10 --out DIR/split
    s4m-pipeline precompute-sam configs/sam/nuclei.py --cfg-options images=DIR/train.json \
        --cfg-options image_root=IMAGES --cfg-options split=DIR/split/split.json

Without these options: DIR is ``data/nuclei``, IMAGES ``data/nuclei/images``.
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
