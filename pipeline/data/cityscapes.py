"""Cityscapes' fine annotations as COCO entries: instances, groups, and the void that only its own evaluation knows.

``*_gtFine_instanceIds.png`` has one 16-bit number a pixel: ``class * 1000 + k`` for the k-th instance of a class with
instances, the class alone for stuff and for regions where instances of it could not be told apart (*groups*), and one
of :data:`VOID_LABELS` for what does not count. Masks come from these pixels, so no two instances overlap.
"""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from pipeline.data.coco import Category, CocoSet
from pipeline.errors import AnnotationError, InputError
from pipeline.images import image_size
from pipeline.masks import rle
from pipeline.masks.run_encoding import encode_runs

THING_CLASSES = (
    Category(24, "person"),
    Category(25, "rider"),
    Category(26, "car"),
    Category(27, "truck"),
    Category(28, "bus"),
    Category(31, "train"),
    Category(32, "motorcycle"),
    Category(33, "bicycle"),
)
"""The eight classes that are evaluated, by Cityscapes' label ids and in its order."""
VOID_LABELS = (0, 1, 2, 3, 4, 5, 6, 9, 10, 14, 15, 16, 18, 29, 30)
"""Label ids that no evaluation counts. Caravan (29) and trailer (30) have instances, which count for nothing."""
LARGEST_LABEL = 33
PER_CLASS = 1000
"""Ids of one class: instance k has class * 1000 + k; an id below 1000 is a class itself."""
VOID_KEY = "void"
"""List of a converted file beside COCO's: {image_id, segmentation} of every image with void pixels."""
IMAGE_ENDING, TRUTH_ENDING = "_leftImg8bit.png", "_gtFine_instanceIds.png"
_SIXTEEN_BITS = ("I;16", "I;16B", "I")
_MAX_TOLD = 20


@dataclass(frozen=True)
class CityscapesFile:
    """One image and its ground truth."""

    name: str
    """Of the image, relative to ``leftImg8bit/<part>``."""
    image: Path
    truth: Path


def list_files(root: Path, part: str) -> list[CityscapesFile]:
    """All images of one part (train, val) by name.

    Raises:
        InputError: a folder of the standard layout is missing, or there is no image; names the path expected.
        AnnotationError: images without ground truth; names the first 20.
    """
    images, truths = root / "leftImg8bit" / part, root / "gtFine" / part
    for folder in (images, truths):
        if not folder.is_dir():
            raise InputError(
                "not the layout of Cityscapes",
                where=root,
                expected=f"{folder}/CITY/*{IMAGE_ENDING if folder is images else TRUTH_ENDING}",
                got="no such folder",
                fix="give the folder that leftImg8bit_trainvaltest.zip and gtFine_trainvaltest.zip were unpacked in",
            )
    found = sorted(images.glob(f"*/*{IMAGE_ENDING}"))
    if not found:
        raise InputError("no image of Cityscapes", where=images, expected=f"CITY/*{IMAGE_ENDING}", got="none")
    files = [_paired(path, images, truths) for path in found]
    missing = [file.truth for file in files if not file.truth.is_file()]
    if missing:
        more = [f"\n    ... and {len(missing) - _MAX_TOLD} more"] * (len(missing) > _MAX_TOLD)
        raise AnnotationError(
            f"{len(missing)} of {len(files)} images have no ground truth",
            where=truths,
            expected=f"one *{TRUTH_ENDING} for each image of {images}",
            got="".join([*(f"\n    - {path}" for path in missing[:_MAX_TOLD]), *more]),
            fix="unpack gtFine_trainvaltest.zip again",
        )
    return files


def _paired(image: Path, images: Path, truths: Path) -> CityscapesFile:
    name = image.relative_to(images)
    truth = truths / name.parent / (name.name.removesuffix(IMAGE_ENDING) + TRUTH_ENDING)
    return CityscapesFile(name.as_posix(), image, truth)


def read_ids(file: CityscapesFile) -> NDArray[np.int64]:
    """The ids of an image's pixels, [H, W].

    Raises:
        AnnotationError: not a 16-bit grey PNG, damaged, of another size than the image, or with an id that Cityscapes
            does not have.
        ImageError: the image's own header cannot be read.
    """
    try:
        with Image.open(file.truth) as png:
            if png.mode not in _SIXTEEN_BITS:
                raise AnnotationError(
                    "ground truth is not of 16 bits",
                    where=file.truth,
                    expected="a 16-bit grey PNG of class * 1000 + k",
                    got=f"{png.format}, mode {png.mode}, 8 bits a channel",
                    fix="give the published files; labelIds, colours and 8-bit copies have lost the instances",
                )
            ids = np.asarray(png).astype(np.int64)
    except (OSError, SyntaxError, UnidentifiedImageError) as error:
        raise AnnotationError(
            "ground truth cannot be read", where=file.truth, got=str(error), fix="unpack gtFine_trainvaltest.zip again"
        ) from error
    size = image_size(file.image)
    if ids.shape != size:
        told = f"{ids.shape[0]} x {ids.shape[1]}"
        expected = f"{size[0]} x {size[1]}, as {file.image.name} (height x width)"
        raise AnnotationError(
            "ground truth has another size than its image", where=file.truth, expected=expected, got=told
        )
    _refuse_unknown(np.unique(ids), file.truth)
    return ids


def _refuse_unknown(values: NDArray[np.int64], where: Path) -> None:
    labels = np.where(values < PER_CLASS, values, values // PER_CLASS)
    has_instances = [category.category_id for category in THING_CLASSES] + [29, 30]
    wrong = values[(labels > LARGEST_LABEL) | ((values >= PER_CLASS) & ~np.isin(labels, has_instances))]
    if len(wrong):
        raise AnnotationError(
            "ground truth with ids that Cityscapes does not have",
            where=where,
            expected=f"0 to {LARGEST_LABEL}, or class * {PER_CLASS} + k for the classes {has_instances}",
            got=[int(value) for value in wrong[:10]],
            fix="give the published *_gtFine_instanceIds.png",
        )


def regions(ids: NDArray[np.int64]) -> dict[int, rle.Rle]:
    """The mask of every id of an image [H, W], in one pass over its pixels; ascending ids."""
    height, width = ids.shape
    flat = ids.T.ravel()  # COCO's order: column by column
    starts = np.concatenate([[0], np.flatnonzero(np.diff(flat)) + 1])
    spans = np.stack([starts, np.append(starts[1:], len(flat))], axis=1)
    values = flat[starts]
    order = np.argsort(values, kind="stable")
    found, first = np.unique(values[order], return_index=True)
    codes = encode_runs(spans[order], np.append(first, len(order)), height=height, width=width)
    return {
        value: rle.Rle(size=[height, width], counts=code) for value, code in zip(found.tolist(), codes, strict=True)
    }


def objects(found: Mapping[int, rle.Rle]) -> Iterator[dict[str, object]]:
    """COCO annotations (without ids) of an image's regions: instances, and groups as crowds."""
    things = {category.category_id for category in THING_CLASSES}
    for value, code in found.items():
        label = value if value < PER_CLASS else value // PER_CLASS
        if label in things:
            yield {
                "category_id": label,
                "segmentation": dict(code),
                "area": rle.area(code),
                "bbox": list(rle.bbox_xywh(code)),
                "iscrowd": int(value < PER_CLASS),
            }


def void(found: Mapping[int, rle.Rle], size_hw: tuple[int, int]) -> rle.Rle | None:
    """The pixels of an image that count for nothing; None where there are none.

    As in Cityscapes' own evaluation, instances of caravans and trailers (29001, ...) are not among them.
    """
    spans = [rle.runs(found[label]) for label in VOID_LABELS if label in found]
    return rle.from_runs(np.concatenate(spans), height=size_hw[0], width=size_hw[1]) if spans else None


def load_void(annotation_file: Path, coco: CocoSet) -> dict[int, rle.Rle]:
    """Void masks by image id, from a file of ``s4m-pipeline convert-cityscapes``.

    Args:
        annotation_file: The file that ``coco`` was loaded from.
        coco: Whose images count.

    Raises:
        AnnotationError: a file without a list of void regions, or a region that does not fit its image.
    """
    content = json.loads(Path(annotation_file).read_bytes())
    entries = content.get(VOID_KEY) if isinstance(content, dict) else None
    if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
        raise AnnotationError(
            "no void regions: not a converted Cityscapes file",
            where=annotation_file,
            expected=f"a list `{VOID_KEY}` beside COCO's lists",
            got=sorted(content) if isinstance(content, dict) else type(content).__name__,
            fix="make it with s4m-pipeline convert-cityscapes, or evaluate with MaskApMetric",
        )
    masks: dict[int, rle.Rle] = {}
    for place, entry in enumerate(entries):
        image = coco.by_id.get(entry.get("image_id", -1))
        if image is not None:
            where = f"{annotation_file}, {VOID_KEY} {place}"
            code = rle.parse(entry.get("segmentation"), height=image.height, width=image.width, where=where)
            masks[image.image_id] = code
    return masks
