"""Tiny trees in the layouts of Cityscapes and COCO, for what needs the form of the published data sets only."""

import json
from pathlib import Path

import numpy as np
from PIL import Image

from pipeline.data.cityscapes import THING_CLASSES

ROAD = 7
CITIES = ("aachen", "bremen")
NUM_COCO_CLASSES = 80


def write_ids(root: Path, part: str, name: str, ids: np.ndarray) -> Path:
    """One image (noise) and its 16-bit ids; ``name`` as in aachen_000000_000019."""
    city = name.split("_")[0]
    image = root / "leftImg8bit" / part / city / f"{name}_leftImg8bit.png"
    truth = root / "gtFine" / part / city / f"{name}_gtFine_instanceIds.png"
    for path in (image, truth):
        path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(len(name)).integers(0, 255, (*ids.shape, 3), np.uint8)
    Image.fromarray(pixels).save(image)
    Image.fromarray(ids.astype(np.uint16)).save(truth)
    return truth


def street(seed: int, size_hw: tuple[int, int] = (64, 128)) -> np.ndarray:
    """Ids of a street: road, a strip of void, a group of persons, and three objects."""
    rng = np.random.default_rng(seed)
    ids = np.full(size_hw, ROAD, np.uint16)
    ids[-4:] = 1  # the car that took the picture
    ids[2:12, 2:22] = 24  # persons that nobody could tell apart
    for number in range(3):
        category = int(rng.choice([c.category_id for c in THING_CLASSES]))
        top, left = int(rng.integers(14, 40)), 2 + 40 * number + int(rng.integers(0, 10))
        ids[top : top + 16, left : left + 24] = category * 1000 + number
    return ids


def write_cityscapes(root: Path, *, num_train: int = 4, num_val: int = 2) -> Path:
    """A Cityscapes of a few images of 64 x 128."""
    for part, number in (("train", num_train), ("val", num_val)):
        for place in range(number):
            name = f"{CITIES[place % 2]}_{place:06d}_000019"
            write_ids(root, part, name, street(100 * number + place))
    return root


def write_coco_tree(root: Path, *, num_train: int = 10, num_val: int = 2, size_hw: tuple[int, int] = (64, 96)) -> Path:
    """``annotations``, ``train2017`` and ``val2017`` with squares of 80 classes."""
    categories = [{"id": 2 * number + 1, "name": f"class {number}"} for number in range(NUM_COCO_CLASSES)]
    height, width = size_hw
    for part, count in (("train", num_train), ("val", num_val)):
        folder = root / f"{part}2017"
        folder.mkdir(parents=True, exist_ok=True)
        images, annotations = [], []
        for image_id in range(1, count + 1):
            rng = np.random.default_rng([count, image_id])
            name = f"{image_id:012d}.jpg"
            Image.fromarray(rng.integers(0, 255, (height, width, 3), np.uint8)).save(folder / name)
            images.append({"id": image_id, "file_name": name, "height": height, "width": width})
            for place in range(2):
                x, y, side = 4 + 44 * place, int(rng.integers(2, 30)), 28
                polygon = [x, y, x + side, y, x + side, y + side, x, y + side]
                annotations.append(
                    {
                        "id": len(annotations) + 1,
                        "image_id": image_id,
                        "category_id": categories[int(rng.integers(0, NUM_COCO_CLASSES))]["id"],
                        "segmentation": [polygon],
                        "area": side * side,
                        "bbox": [x, y, side, side],
                        "iscrowd": 0,
                    }
                )
        (root / "annotations").mkdir(exist_ok=True)
        content = {"images": images, "annotations": annotations, "categories": categories}
        (root / "annotations" / f"instances_{part}2017.json").write_text(json.dumps(content))
    return root
