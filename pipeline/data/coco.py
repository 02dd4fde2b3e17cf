"""COCO instance files and plain image folders, checked once and then trusted.

Everything wrong with a file is found in one pass and told together. After :func:`load_coco` ids are unique,
references resolve, names stay inside the image folder and every mask fits its image.
"""

import hashlib
import json
import logging
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from pipeline.data.coco_entries import (
    Annotation,
    BrokenImage,
    Category,
    CocoImage,
    known_ids,
    parse_annotations,
    parse_categories,
    parse_images,
    reason_of,
)
from pipeline.data.coco_problems import Problems, nearest_name, read_coco_json
from pipeline.errors import AnnotationError, ConfigError, InputError, TooManyQuarantinedError
from pipeline.full_disk import told_if_full
from pipeline.images import SUFFIXES, image_size, read_image, resolve_inside

__all__ = [
    "Annotation",
    "BrokenImage",
    "Category",
    "CocoImage",
    "CocoSet",
    "check_image_files",
    "folder_as_coco",
    "load_coco",
    "load_images",
    "make_coco",
    "reason_of",
    "refuse_many_broken",
    "subset",
    "without_images",
    "write_coco",
    "write_json",
]
_LOG = logging.getLogger(__name__)
IMAGE_FOLDER = "the folder of these images (image_root, val_images or --image-root)"
"""As a message names it: which setting it came from is not known where files are read."""
_MAX_TOLD = 20
"""Broken images that a message names."""


@dataclass(frozen=True)
class CocoSet:
    """A checked data set. The label of a class is its position in ``categories``."""

    image_root: Path
    images: tuple[CocoImage, ...]
    categories: tuple[Category, ...]
    annotations: Mapping[int, tuple[Annotation, ...]]
    """By image id; an image without objects has an empty tuple."""
    fingerprint: str
    """sha256 over ids, names, sizes and annotations; independent of folders and of the order in the file."""
    broken: tuple[BrokenImage, ...] = ()
    """Images left out at loading because their size was not given and their header could not be read."""

    @cached_property
    def by_id(self) -> Mapping[int, CocoImage]:
        """Images by id."""
        return {image.image_id: image for image in self.images}

    @cached_property
    def labels(self) -> Mapping[int, int]:
        """Label (position in ``categories``) by category id."""
        return {category.category_id: label for label, category in enumerate(self.categories)}

    @cached_property
    def taught_ids(self) -> frozenset[int]:
        """Images with an object that a network learns: neither a crowd nor of area 0."""
        return frozenset(i for i, entries in self.annotations.items() if any(entry.is_taught for entry in entries))

    @property
    def num_annotations(self) -> int:
        """Objects in all images together."""
        return sum(len(entries) for entries in self.annotations.values())

    def path_of(self, image: CocoImage) -> Path:
        """Where the file of one image is; InputError where a link leads out of the image root."""
        return resolve_inside(self.image_root, image.file_name)


def make_coco(
    image_root: Path,
    images: Iterable[CocoImage],
    categories: Iterable[Category],
    annotations: Iterable[Annotation],
    *,
    broken: Iterable[BrokenImage] = (),
) -> CocoSet:
    """Put checked parts together: annotations by image, and the fingerprint."""
    images, categories = tuple(images), tuple(categories)
    grouped: dict[int, list[Annotation]] = {image.image_id: [] for image in images}
    for annotation in annotations:
        grouped[annotation.image_id].append(annotation)
    by_image = {image_id: tuple(entries) for image_id, entries in grouped.items()}
    fingerprint = _fingerprint(images, categories, by_image)
    return CocoSet(Path(image_root), images, categories, by_image, fingerprint, tuple(broken))


def _fingerprint(
    images: Sequence[CocoImage], categories: Sequence[Category], annotations: Mapping[int, Sequence[Annotation]]
) -> str:
    digest = hashlib.sha256()
    digest.update(json.dumps([[c.category_id, c.name] for c in categories]).encode())
    for image in sorted(images, key=lambda image: image.image_id):
        rows = sorted([a.annotation_id, a.category_id, a.iscrowd, a.rle["counts"]] for a in annotations[image.image_id])
        line = [image.image_id, image.file_name, image.height, image.width, rows]
        digest.update(json.dumps(line).encode())
    return digest.hexdigest()


def load_coco(annotation_file: Path, image_root: Path, *, class_names: Sequence[str] | None = None) -> CocoSet:
    """Read and check a COCO instance file. No pixel is read; a header only where a size is not given.

    Args:
        annotation_file: JSON with ``images``, ``categories`` and ``annotations`` (polygons, compressed or
            uncompressed RLE). Gaps in ids and id 0 are fine. Without annotations it is an unlabelled set.
        image_root: folder that ``file_name`` is relative to.
        class_names: classes to keep, in label order; annotations of other classes are left out. None keeps all
            in the order of the file.

    Returns:
        The checked set. Annotations whose mask covers no pixel are left out and counted in the log.

    Raises:
        AnnotationError: the first 20 of all problems of the file together.
        ConfigError: a class name that the file does not have, with the nearest one that it has.
        InputError: no image in it, or no such image folder.
    """
    annotation_file, image_root = Path(annotation_file), Path(image_root)
    raw = read_coco_json(annotation_file)
    return _checked_set(raw, annotation_file, image_root, class_names)


def load_images(source: Path, image_root: Path | None) -> CocoSet:
    """Load images that need no labels: a COCO file, with annotations or without, or a plain folder.

    Args:
        source: a COCO JSON file, or a folder.
        image_root: folder that ``file_name`` is relative to; needed with a JSON file only.

    Returns:
        The set. Annotations are kept where the file also names categories (pseudo-label quality is measured on
        them); dummy annotations in a file without categories are ignored.
    """
    source = Path(source)
    if source.is_dir():
        return folder_as_coco(source)
    if image_root is None:
        raise ConfigError("no image folder given", where=source, expected="image_root beside a COCO file", got=None)
    raw = read_coco_json(source)
    if not raw["categories"]:
        raw["annotations"] = []
    return _checked_set(raw, source, Path(image_root), None)


def _checked_set(
    raw: Mapping[str, list[dict[str, object]]], file: Path, root: Path, class_names: Sequence[str] | None
) -> CocoSet:
    if not root.is_dir():
        raise InputError("image folder not found", where=root, fix=f"correct {IMAGE_FOLDER}")
    if not raw["images"]:
        fix = 'list the images under "images" of this file, or name another one'
        raise AnnotationError("empty data set", where=file, expected="at least one image", got=0, fix=fix)
    problems = Problems(file)
    categories = parse_categories(raw["categories"], problems)
    images, broken = parse_images(raw["images"], root, problems)
    sizes = {image.image_id: (image.height, image.width) for image in images}
    # References to images or categories that are broken or wrong themselves are no second problem.
    known = known_ids(raw["images"]), known_ids(raw["categories"])
    annotations = parse_annotations(raw["annotations"], sizes, known, problems)
    problems.raise_if_any()
    if class_names is not None:
        categories = _select_classes(categories, class_names, file)
        kept = {category.category_id for category in categories}
        annotations = [annotation for annotation in annotations if annotation.category_id in kept]
    return make_coco(root, images, categories, annotations, broken=broken)


def _select_classes(categories: Sequence[Category], class_names: Sequence[str], file: Path) -> list[Category]:
    """Categories in the config's order; a name that is not there stops, it never shifts the labels after it."""
    by_name = {category.name: category for category in categories}
    unknown = [name for name in class_names if name not in by_name]
    if unknown:
        raise ConfigError(
            "class names that the annotation file does not have",
            where=file,
            expected=f"names of categories in the file: {list(by_name)[:20]}",
            got=", ".join(f"{name!r}{nearest_name(name, by_name)}" for name in unknown),
            fix="correct class_names in the config",
        )
    if not class_names or len(set(class_names)) < len(class_names):
        raise ConfigError("class_names is empty or names a class twice", where=file, got=list(class_names))
    return [by_name[name] for name in class_names]


def folder_as_coco(image_root: Path) -> CocoSet:
    """Take a plain folder as an unlabelled set; sub-folders count, hidden files and other suffixes do not.

    Returns:
        Image ids are 1, 2, ... by sorted relative name, so that they do not depend on the file system; sizes are
        from the headers. Files that cannot be read are in ``broken``; each keeps its number, so that mending one
        leaves the ids of all others.

    Raises:
        InputError: no such folder, or no readable image in it.
    """
    image_root = Path(image_root)
    if not image_root.is_dir():
        raise InputError("image folder not found", where=image_root, fix="check the path in the config")
    images: list[CocoImage] = []
    broken: list[BrokenImage] = []
    for image_id, name in enumerate(_image_names(image_root), start=1):
        try:
            images.append(CocoImage(image_id, name, *image_size(resolve_inside(image_root, name))))
        except InputError as error:
            # The name may be the reason: bytes that are no UTF-8 could not even be printed.
            broken.append(BrokenImage(name.encode(errors="backslashreplace").decode(), reason_of(error)))
    if not images:
        got = f"{len(broken)} unreadable ones; {broken[0].file_name}: {broken[0].reason}" if broken else "none"
        raise InputError(
            "empty data set",
            where=image_root,
            expected=f"images ({', '.join(sorted(SUFFIXES))})",
            got=got,
            fix="put images there, or name another folder or a COCO file",
        )
    return make_coco(image_root, images, (), (), broken=broken)


def _image_names(root: Path) -> list[str]:
    relative = (path.relative_to(root) for path in root.rglob("*") if path.suffix.lower() in SUFFIXES)
    return sorted(path.as_posix() for path in relative if not any(part.startswith(".") for part in path.parts))


def check_image_files(
    coco: CocoSet, *, max_broken_share: float = 0.01, decode: bool = False, log: logging.Logger | None = None
) -> list[BrokenImage]:
    """Compare every image file with what the annotation file says of it.

    Args:
        coco: a loaded set.
        max_broken_share: share of broken images, 0 to 1, above which the check fails.
        decode: read every pixel too. Without it only headers are read, and a truncated file is found when it is used.
        log: where the first 20 broken images are named, with the count; the module's logger by default.

    Returns:
        Broken images in the order of the set, those that loading left out first: missing, unreadable, or of
        another size than annotated (canonical, EXIF applied). Leave them out with :func:`without_images`.

    Raises:
        TooManyQuarantinedError: more than the allowed share is broken; names the first 20.
    """
    log = log or _LOG
    broken = [*coco.broken]
    for image in coco.images:
        reason = _file_problem(coco, image, decode)
        if reason is not None:
            broken.append(BrokenImage(image.file_name, reason))
    total = len(coco.images) + len(coco.broken)
    for entry in broken[:_MAX_TOLD]:
        log.warning("broken image %s: %s", entry.file_name, entry.reason)
    if broken:
        log.warning("%d of %d images are broken and left out", len(broken), total)
    refuse_many_broken(broken, total, max_broken_share, where=coco.image_root)
    return broken


def refuse_many_broken(broken: Sequence[BrokenImage], total: int, max_share: float, *, where: Path) -> None:
    """Compare the number of broken images with the allowed share (0 to 1) of ``total``.

    Raises:
        TooManyQuarantinedError: more; names the first 20.
    """
    if len(broken) <= max_share * total:
        return
    lines = [f"\n    - {entry.file_name}: {entry.reason}" for entry in broken[:_MAX_TOLD]]
    lines += [f"\n    ... and {len(broken) - _MAX_TOLD} more"] if len(broken) > _MAX_TOLD else []
    replace_them = "replace these files, or allow a larger share of broken images (max_broken_share)"
    raise TooManyQuarantinedError(
        f"{len(broken)} of {total} images are broken",
        where=where,
        expected=f"at most {100 * max_share:g} %",
        got="".join(lines),
        fix=f"correct {IMAGE_FOLDER}, or the images' names in the file" if len(broken) == total else replace_them,
    )


def _file_problem(coco: CocoSet, image: CocoImage, decode: bool) -> str | None:
    try:
        path = coco.path_of(image)
        size = read_image(path).shape[:2] if decode else image_size(path)
    except InputError as error:
        return reason_of(error)
    if size == (image.height, image.width):
        return None
    told = f"{image.height} x {image.width}"
    turned = "; annotated before the EXIF rotation?" if size == (image.width, image.height) else ""
    return f"size differs: annotated {told}, file {size[0]} x {size[1]} (height x width){turned}"


def refuse_no_object(coco: CocoSet, *, where: str | Path) -> None:
    """A set to measure on has objects.

    Raises:
        InputError: it has none, or crowds alone.
    """
    if not any(not entry.iscrowd for entries in coco.annotations.values() for entry in entries):
        raise InputError(
            "nothing to measure on: the set has no object",
            where=where,
            expected="a COCO file with annotations",
            got=f"{len(coco.images)} images without any",
            fix="--cfg-options val_annotations=FILE --cfg-options val_images=FOLDER",
        )


def subset(coco: CocoSet, ids: Iterable[int]) -> CocoSet:
    """The images with these ids, in the order of the set, with their annotations and all categories.

    Raises:
        InputError: an id that the set does not have.
    """
    wanted = set(ids)
    unknown = sorted(wanted - set(coco.by_id))
    if unknown:
        raise InputError("image ids that the data set does not have", where=coco.image_root, got=unknown[:20])
    images = [image for image in coco.images if image.image_id in wanted]
    annotations = [entry for image in images for entry in coco.annotations[image.image_id]]
    return make_coco(coco.image_root, images, coco.categories, annotations)


def without_images(coco: CocoSet, broken: Iterable[BrokenImage]) -> CocoSet:
    """The set less its broken images; nothing changes where there are none."""
    names = {entry.file_name for entry in broken}
    kept = [image.image_id for image in coco.images if image.file_name not in names]
    return coco if len(kept) == len(coco.images) else subset(coco, kept)


def write_coco(coco: CocoSet, path: Path) -> None:
    """Write plain COCO JSON that mmdet and the COCO tools read, atomically.

    Masks become RLE objects with a text ``counts``; annotation ids are 1, 2, ... in image order; category order
    is kept, because mmdet numbers labels by it.
    """
    images = [
        {"id": image.image_id, "file_name": image.file_name, "height": image.height, "width": image.width}
        for image in coco.images
    ]
    entries = [entry for image in coco.images for entry in coco.annotations[image.image_id]]
    annotations = [
        {
            "id": number,
            "image_id": entry.image_id,
            "category_id": entry.category_id,
            "segmentation": dict(entry.rle),
            "area": entry.area,
            "bbox": list(entry.bbox_xywh),
            "iscrowd": int(entry.iscrowd),
        }
        for number, entry in enumerate(entries, start=1)
    ]
    categories = [{"id": category.category_id, "name": category.name} for category in coco.categories]
    write_json({"images": images, "annotations": annotations, "categories": categories}, path)


def write_json(content: object, path: Path) -> None:
    """Write JSON so that the file is there complete or not at all."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f"{path.name}.{os.getpid()}.partial")
    try:
        with told_if_full(path), partial.open("w", encoding="utf-8") as file:
            json.dump(content, file, allow_nan=False)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
