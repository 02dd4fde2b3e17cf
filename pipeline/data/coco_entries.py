"""The entries of a COCO file: categories, images and annotations, each checked on its own and against the others."""

import logging
import math
from collections.abc import Iterable, Mapping, Sequence, Set
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from pipeline.data.coco_problems import Problems
from pipeline.errors import AnnotationError, ImageError, InputError
from pipeline.images import MAX_PIXELS, image_size, resolve_inside
from pipeline.masks import rle

_LOG = logging.getLogger(__name__)
_BIGGEST_ID = 2**63 - 1
KnownIds = Set[int] | None
"""Of a section of the file; None where some of them are wrong: what refers to one is no second problem."""


@dataclass(frozen=True)
class Category:
    """One class."""

    category_id: int
    name: str


@dataclass(frozen=True)
class Annotation:
    """One object: a mask of at least one pixel, in the canonical frame of its image."""

    annotation_id: int
    image_id: int
    category_id: int
    rle: rle.Rle
    area: float
    """Pixels; the file's own figure where it gives one (COCO sorts objects into sizes by it)."""
    bbox_xywh: tuple[float, float, float, float]
    """Pixels, always the tight box of the mask."""
    iscrowd: bool

    @property
    def is_taught(self) -> bool:
        """Whether a network learns it: it is one object, and not of area 0 by the file's own figure."""
        return not self.iscrowd and self.area > 0


@dataclass(frozen=True)
class CocoImage:
    """One image file, relative to the image root; height and width are canonical pixels."""

    image_id: int
    file_name: str
    height: int
    width: int


class BrokenImage(NamedTuple):
    """An image that cannot be used, and why."""

    file_name: str
    reason: str


def parse_categories(entries: Iterable[dict[str, object]], problems: Problems) -> list[Category]:
    """Categories in file order; ids and names must be unique. What is wrong is added to ``problems``."""
    found: dict[int, Category] = {}
    names: set[str] = set()
    for place, entry in enumerate(entries):
        category_id, name = entry.get("id"), entry.get("name")
        where = f"category {category_id} (entry {place} of categories)"
        if not isinstance(category_id, int) or not is_id(category_id):
            problems.add("category id is not a whole number", where, expected="an integer", got=repr(category_id))
        elif not isinstance(name, str) or not name:
            problems.add("category without a name", where, expected="a text", got=repr(name))
        elif category_id in found:
            problems.add("category id used twice", where, got=f"{found[category_id].name!r} and {name!r}")
        elif name in names:
            problems.add("category name used twice", where, got=repr(name))
        else:
            found[category_id] = Category(category_id, name)
            names.add(name)
    return list(found.values())


def parse_images(
    entries: Iterable[dict[str, object]], root: Path, problems: Problems
) -> tuple[list[CocoImage], list[BrokenImage]]:
    """Images with unique ids and names inside ``root``, and those whose missing size no header could supply.

    What is wrong with the entries is added to ``problems``; a broken file is not a wrong entry.
    """
    images: list[CocoImage] = []
    broken: list[BrokenImage] = []
    ids: set[int] = set()
    names: dict[str, int] = {}
    for place, entry in enumerate(entries):
        image_id, name = entry.get("id"), entry.get("file_name")
        where = f"image {image_id} (entry {place} of images)"
        if not isinstance(image_id, int) or not is_id(image_id):
            problems.add("image id is not a whole number", where, expected="an integer", got=repr(image_id))
        elif image_id in ids:
            problems.add("image id used twice", where, expected="unique ids", got=repr(name))
        elif not isinstance(name, str):
            problems.add("image without file_name", where, expected="a text", got=repr(name))
        elif name in names:
            problems.add("file_name used twice", where, expected=f"only image {names[name]} to have it", got=repr(name))
        else:
            ids.add(image_id)
            names[name] = image_id
            try:
                path = resolve_inside(root, name)
                size = _size(entry, path, where, problems)
                if size is not None:
                    images.append(CocoImage(image_id, name, *size))
            except ImageError as error:
                broken.append(BrokenImage(name, reason_of(error)))
            except InputError as error:
                problems.add_error(error, where)
    return images, broken


def _size(entry: Mapping[str, object], path: Path, where: str, problems: Problems) -> tuple[int, int] | None:
    """(height, width) as the file says, or from the image's header where it says nothing."""
    height, width = entry.get("height"), entry.get("width")
    if height is None and width is None:
        return image_size(path)
    is_whole = isinstance(height, int) and isinstance(width, int)
    if is_whole and height >= 1 and width >= 1 and height * width <= MAX_PIXELS:  # type: ignore[operator]
        return height, width  # type: ignore[return-value]
    expected = f"height and width, together 1 to {MAX_PIXELS} pixels"
    problems.add("image size is wrong", where, expected=expected, got=f"{height!r} x {width!r}")
    return None


def parse_annotations(
    entries: Sequence[dict[str, object]],
    sizes: Mapping[int, tuple[int, int]],
    known: tuple[KnownIds, KnownIds],
    problems: Problems,
) -> list[Annotation]:
    """Annotations in file order; those with an empty mask are left out and counted in the log.

    Args:
        entries: JSON objects.
        sizes: (height, width) by image id, of the usable images; annotations of other known images are skipped.
        known: all image ids and all category ids of the file.
        problems: what is wrong is added here.
    """
    if entries and known[1] is not None and not known[1]:
        problems.add("no categories", "categories", expected='entries {"id": ..., "name": ...}', got="none")
        known = known[0], None
    annotations: list[Annotation] = []
    ids: set[object] = set()
    empty: list[object] = []
    for place, entry in enumerate(entries):
        where = f"annotation {entry.get('id')} (entry {place} of annotations)"
        if not _check_references(entry, ids, known, where, problems):
            continue
        image_id = entry["image_id"]
        if image_id not in sizes:
            continue
        height, width = sizes[image_id]  # type: ignore[index]
        try:
            mask = rle.parse(entry.get("segmentation"), height=height, width=width, where=where)
        except AnnotationError as error:
            problems.add_error(error, where)
            continue
        annotation = _annotation(entry, mask)
        if annotation is None:
            empty.append(entry["id"])
        else:
            annotations.append(annotation)
    if empty:
        _LOG.warning("%s: %d annotations cover no pixel and are left out: %s", problems.file, len(empty), empty[:10])
    return annotations


def _check_references(
    entry: Mapping[str, object],
    ids: set[object],
    known: tuple[KnownIds, KnownIds],
    where: str,
    problems: Problems,
) -> bool:
    """Whether the ids of one annotation are right; ``ids`` (seen so far) is added to."""
    known_images, known_categories = known
    before = len(problems.found)
    for key in ("id", "image_id", "category_id"):
        if not is_id(entry.get(key)):
            problems.add(f"{key} is not a whole number", where, expected="an integer", got=repr(entry.get(key)))
    if len(problems.found) > before:
        return False
    if entry["id"] in ids:
        problems.add("annotation id used twice", where, expected="unique ids", got=entry["id"])
    if known_images is not None and entry["image_id"] not in known_images:
        problems.add("annotation without image", where, expected="the id of an image", got=entry["image_id"])
    if known_categories is not None and entry["category_id"] not in known_categories:
        some = sorted(known_categories)[:10]
        problems.add("unknown category", where, expected=f"one of the file's ids, {some}", got=entry["category_id"])
    if entry.get("iscrowd", 0) not in (0, 1):
        problems.add("iscrowd is neither 0 nor 1", where, expected="0 or 1", got=repr(entry.get("iscrowd")))
    ids.add(entry["id"])
    return len(problems.found) == before


def _annotation(entry: Mapping[str, object], mask: rle.Rle) -> Annotation | None:
    """One annotation whose ids are checked; None where the mask is empty."""
    box = rle.bbox_xywh(mask)
    if box[2] == 0:
        return None
    told = entry.get("area")
    is_told = isinstance(told, int | float) and math.isfinite(told) and told > 0
    area = float(told) if is_told else float(rle.area(mask))  # type: ignore[arg-type]
    annotation_id, image_id, category_id = (entry[key] for key in ("id", "image_id", "category_id"))
    crowd = bool(entry.get("iscrowd", 0))
    return Annotation(annotation_id, image_id, category_id, mask, area, box, crowd)  # type: ignore[arg-type]


def known_ids(entries: Iterable[Mapping[str, object]]) -> KnownIds:
    """Ids of the images or categories of a file; None where one of them has no right id."""
    ids = [entry.get("id") for entry in entries]
    return {number for number in ids if isinstance(number, int)} if all(map(is_id, ids)) else None


def is_id(value: object) -> bool:
    """Whether a JSON value is a whole number that fits 64 bits (true and false are not)."""
    return isinstance(value, int) and not isinstance(value, bool) and -_BIGGEST_ID <= value <= _BIGGEST_ID


def reason_of(error: InputError) -> str:
    """One line for a list of broken images."""
    return error.what + (f" ({error.got})" if error.got is not None else "")
