"""A few small photos with polygons and what people say of them, in the files of REFER."""

import json
import pickle
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

SIZES = {11: (40, 60), 12: (48, 48), 13: (30, 50), 14: (36, 44)}
"""(height, width) by image id."""


def rectangle(x0, y0, x1, y1):
    return [x0, y0, x1, y0, x1, y1, x0, y1]


def annotation(number, image_id, *boxes):
    return {
        "id": number,
        "image_id": image_id,
        "category_id": 1,
        "iscrowd": 0,
        "segmentation": [rectangle(*box) for box in boxes],
    }


ANNOTATIONS = [
    annotation(1, 11, (5, 5, 25, 30)),
    annotation(2, 11, (30, 10, 50, 20), (40, 15, 55, 35)),  # overlapping polygons
    annotation(3, 12, (0, 0, 10, 10)),
    annotation(4, 12, (20, 20, 44, 40)),
    annotation(5, 13, (2, 2, 8, 6)),
    annotation(6, 14, (10, 10, 30, 30)),
    annotation(7, 14, (0, 0, 40, 9)),
]


def ref(number, image_id, ann_id, *texts, split="train"):
    """``texts``: sent, or (sent, raw)."""
    pairs = [text if isinstance(text, tuple) else (text, text.title()) for text in texts]
    sentences = [
        {"sent_id": 100 * number + place, "sent": sent, "raw": raw, "tokens": sent.split()}
        for place, (sent, raw) in enumerate(pairs)
    ]
    return {
        "ref_id": number,
        "ann_id": ann_id,
        "category_id": 1,
        "file_name": f"COCO_{image_id}_{ann_id}.jpg",
        "image_id": image_id,
        "sent_ids": [sentence["sent_id"] for sentence in sentences],
        "split": split,
        "sentences": sentences,
    }


REFS = [
    ref(1, 12, 4, "big box", "box on the right"),
    ref(2, 11, 1, "left man"),
    ref(3, 11, 2, "right man in red", "man on the right", "red shirt"),
    ref(4, 12, 3, "tiny thing"),
    ref(5, 13, 5, "the speck", split="val"),
    ref(6, 14, 6, "middle square", split="testA"),
    ref(7, 14, 7, "top bar", split="testAB"),
]


@dataclass(frozen=True)
class ReferFiles:
    """Where the files are."""

    root: Path

    def settings(self, **changes):
        """Of a ``ReferDataset``, and of ``load_refer_set``."""
        names = {
            "expressions_file": str(self.root / "refs(toy).p"),
            "annotation_file": str(self.root / "instances.json"),
            "image_root": str(self.root / "images"),
            "split": "train",
        }
        return names | changes


def write_refs(root, refs, *, annotations=ANNOTATIONS, name="refs(toy).p"):
    """Images, instances and expressions under ``root``."""
    images = root / "images"
    images.mkdir(parents=True, exist_ok=True)
    for image_id, (height, width) in SIZES.items():
        pixels = np.random.default_rng(image_id).integers(0, 256, (height, width, 3), np.uint8)
        Image.fromarray(pixels).save(images / f"{image_id}.png")
    listed = [{"id": i, "file_name": f"{i}.png", "height": h, "width": w} for i, (h, w) in SIZES.items()]
    content = {"images": listed, "categories": [{"id": 1, "name": "thing"}], "annotations": annotations}
    (root / "instances.json").write_text(json.dumps(content))
    path = root / name
    path.write_bytes(pickle.dumps(refs, protocol=2) if path.suffix == ".p" else json.dumps(refs).encode())
    return ReferFiles(root)
