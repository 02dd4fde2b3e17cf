"""SAM artefacts of the embedded scenes, by the embedded SAM: everything that the demo's students and teachers read.

Claim: a library that holds most objects, and structure targets for the labelled scenes. Cost: under a second an image
on one core, and on disk about 4 kB for the proposals and 150 kB for the targets.

    s4m-pipeline precompute-sam configs/sam/scenes.py
"""

images = "demo/scenes/annotations/train.json"
image_root = "demo/scenes/images"
split = "demo/scenes/split.json"
store = "demo/store"

sam = dict(name="scenes-nano", device="cpu")
# Objects are 20 pixels and more: 16 x 16 clicks on 192 pixels hit each of them at least twice.
proposals = dict(points_per_side=16, pred_iou_threshold=0.4, stability_score_threshold=0.5)
similarity = dict(num_inside=128, num_uniform=128, seed=0)

images_per_shard = 16
max_broken_share = 0.0
