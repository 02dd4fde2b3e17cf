"""Referred objects together with the checked COCO set that holds their masks.

A set is read in two steps, so that no mask is read that is not to be seen: first the sentences and the images, then,
for the objects that remain after a choice, their annotations. Annotations of other images are not even parsed.
"""

import logging
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from pipeline.data.coco import IMAGE_FOLDER, CocoSet, make_coco, subset
from pipeline.data.coco_entries import KnownIds, is_id, parse_annotations, parse_categories, parse_images
from pipeline.data.coco_problems import Problems, read_coco_json
from pipeline.data.referring.expression_files import (
    NOTHING_LEFT_OUT,
    Format,
    LeftOut,
    ReferredObject,
    Sentence,
    read_objects,
)
from pipeline.errors import AnnotationError, ConfigError, InputError
from pipeline.masks import rle

__all__ = ["LeftOut", "ReferSet", "ReferSource", "ReferredObject", "Sentence", "load_refer_set", "open_refer_files"]
MaskOverlap = Literal["union", "hole"]
_OVERLAPS = ("union", "hole")
_LOG = logging.getLogger(__name__)


@dataclass(frozen=True)
class ReferSet:
    """Objects with their sentences, and the images and masks that they are about."""

    coco: CocoSet
    """All images of the annotation file; annotations of the objects only, and none where no mask was read."""
    objects: tuple[ReferredObject, ...]
    """In the order of the expressions file."""
    left_out: LeftOut = NOTHING_LEFT_OUT

    @property
    def num_sentences(self) -> int:
        """Expressions of all objects together."""
        return sum(len(thing.sentences) for thing in self.objects)

    @property
    def image_ids(self) -> tuple[int, ...]:
        """Images that an object is in, each once, by first appearance."""
        return tuple(dict.fromkeys(thing.image_id for thing in self.objects))

    @cached_property
    def referred_images(self) -> CocoSet:
        """The images of :attr:`image_ids`: what a split of referring expressions is drawn from."""
        return subset(self.coco, self.image_ids)

    @cached_property
    def _codes(self) -> dict[int, rle.Rle]:
        return {entry.annotation_id: entry.rle for entries in self.coco.annotations.values() for entry in entries}

    def of_images(self, image_ids: Collection[int]) -> "ReferSet":
        """Objects in these images."""
        wanted = set(image_ids)
        return self._with(thing for thing in self.objects if thing.image_id in wanted)

    def _with(self, objects: Iterable[ReferredObject]) -> "ReferSet":
        return ReferSet(self.coco, tuple(objects), self.left_out)

    def truth(self, thing: ReferredObject) -> NDArray[np.bool_]:
        """The union of an object's annotations.

        Returns:
            [H, W] bool at the image's native size; all False where nothing is meant.

        Raises:
            InputError: its masks were not read.
        """
        image = self.coco.by_id[thing.image_id]
        return rle.dense(self._spans(thing), height=image.height, width=image.width)

    def truth_area(self, thing: ReferredObject) -> int:
        """Pixels of :meth:`truth`, without painting it."""
        spans = rle.union_runs(self._spans(thing))
        return int((spans[:, 1] - spans[:, 0]).sum())

    def _spans(self, thing: ReferredObject) -> NDArray[np.int64]:
        codes = [self._codes[number] for number in thing.annotation_ids if number in self._codes]
        if len(codes) < len(thing.annotation_ids):
            raise InputError(
                "masks that were not read",
                where=f"ref {thing.ref_id}",
                expected=f"annotations {list(thing.annotation_ids)}",
                fix="read them with ReferSource.with_masks",
            )
        return np.concatenate([rle.runs(code) for code in codes]) if codes else np.zeros((0, 2), np.int64)


@dataclass(frozen=True)
class ReferSource:
    """What was read of both files, before any mask."""

    sentences: ReferSet
    """Without annotations."""
    annotation_file: Path
    expressions_file: Path
    entries: Sequence[dict[str, object]]
    """Unparsed annotations of the COCO file."""
    known: tuple[KnownIds, KnownIds]
    """Image ids and category ids of the COCO file."""

    def with_masks(self, chosen: ReferSet, *, mask_overlap: MaskOverlap = "union") -> ReferSet:
        """Read the annotations of the objects of ``chosen``, and no others.

        Args:
            chosen: ``sentences`` or a part of it.
            mask_overlap: union (pixels of any polygon) | hole (pixels of exactly one polygon of an annotation: the
                released SemiRES adds polygons up and keeps pixels equal to 1, so that overlaps become holes).

        Raises:
            AnnotationError: the first 20 of: objects whose annotation is not there or is of another image, and wrong
                annotations.
            ConfigError: an unknown ``mask_overlap``.
        """
        if mask_overlap not in _OVERLAPS:
            raise ConfigError("unknown way to unite polygons", expected=f"one of {_OVERLAPS}", got=mask_overlap)
        entries = self._entries_of(chosen)
        problems = Problems(self.annotation_file)
        sizes = {image.image_id: (image.height, image.width) for image in self.sentences.coco.images}
        if mask_overlap == "hole":
            entries = [_with_holes(entry, sizes) for entry in entries]
        annotations = parse_annotations(entries, sizes, self.known, problems)
        problems.raise_if_any()
        coco = self.sentences.coco
        whole = make_coco(coco.image_root, coco.images, coco.categories, annotations, broken=coco.broken)
        objects = _without_empty(chosen.objects, {entry.annotation_id for entry in annotations})
        gone = len(chosen.objects) - len(objects)
        if gone:
            _LOG.warning("%s: left out %d objects whose masks cover no pixel", self.expressions_file, gone)
        return ReferSet(whole, objects, replace(chosen.left_out, objects_without_pixel=gone))

    def _entries_of(self, chosen: ReferSet) -> list[dict[str, object]]:
        """Unparsed annotations of the objects, in file order; a missing one is an error."""
        wanted = {number for thing in chosen.objects for number in thing.annotation_ids}
        entries = [entry for entry in self.entries if is_id(entry.get("id")) and entry["id"] in wanted]
        image_of = {entry["id"]: entry.get("image_id") for entry in entries}
        problems = Problems(self.expressions_file)
        for thing in chosen.objects:
            for number in thing.annotation_ids:
                where = f"ref {thing.ref_id}"
                if number not in image_of:
                    expected = f"an annotation of {self.annotation_file.name}"
                    problems.add("ref without its annotation", where, expected=expected, got=f"ann_id {number}")
                elif image_of[number] != thing.image_id:
                    got = f"annotation {number} of image {image_of[number]}"
                    problems.add("annotation of another image", where, expected=f"image {thing.image_id}", got=got)
        problems.raise_if_any()
        return entries


def open_refer_files(
    *, expressions_file: Path, annotation_file: Path, image_root: Path, split: str, format: Format | None = None
) -> ReferSource:
    """Read sentences and images of a split; no mask.

    Args:
        expressions_file: ``refs(unc).p`` and the like, the same as JSON, or the expressions of the scenes.
        annotation_file: COCO instances with the images and annotations that they name.
        image_root: Folder of the images.
        split: train | val | testA | testB | test, or as the file names it; ``all`` takes everything.
        format: refer | scenes; None tells them apart.

    Raises:
        AnnotationError: what is wrong with either file, and images that the annotation file does not have.
        ConfigError: a split that is not there.
        InputError: a missing file or folder, or no such file.
    """
    expressions_file, annotation_file = Path(expressions_file), Path(annotation_file)
    objects, left_out = read_objects(expressions_file, split=split, file_format=format)
    raw = read_coco_json(annotation_file)
    if not Path(image_root).is_dir():
        raise InputError("image folder not found", where=image_root, fix=f"correct {IMAGE_FOLDER}")
    problems = Problems(annotation_file)
    categories = parse_categories(raw["categories"], problems)
    images, broken = parse_images(raw["images"], Path(image_root), problems)
    problems.raise_if_any()
    known_images = {image.image_id for image in images}
    missing = Problems(expressions_file)
    for thing in objects:
        if thing.image_id not in known_images:
            expected = f"an image of {annotation_file.name}"
            missing.add("ref without its image", f"ref {thing.ref_id}", expected=expected, got=thing.image_id)
    missing.raise_if_any()
    coco = make_coco(Path(image_root), images, categories, (), broken=broken)
    known = (known_images, {category.category_id for category in categories})
    refer_set = ReferSet(coco, tuple(objects), left_out)
    return ReferSource(refer_set, annotation_file, expressions_file, raw["annotations"], known)


def load_refer_set(
    *,
    expressions_file: Path,
    annotation_file: Path,
    image_root: Path,
    split: str,
    format: Format | None = None,
    mask_overlap: MaskOverlap = "union",
) -> ReferSet:
    """Read a split with all its masks; see :func:`open_refer_files` and :meth:`ReferSource.with_masks`."""
    source = open_refer_files(
        expressions_file=expressions_file,
        annotation_file=annotation_file,
        image_root=image_root,
        split=split,
        format=format,
    )
    return source.with_masks(source.sentences, mask_overlap=mask_overlap)


def _with_holes(entry: dict[str, object], sizes: dict[int, tuple[int, int]]) -> dict[str, object]:
    """The annotation with the pixels of exactly one of its polygons; what is malformed stays, to be told as such."""
    polygons, size = entry.get("segmentation"), sizes.get(entry.get("image_id"))  # type: ignore[call-overload]
    if not isinstance(polygons, list) or not polygons or size is None:
        return entry
    try:
        masks = [rle.decode(rle.parse([p], height=size[0], width=size[1], where="")) for p in polygons]
    except AnnotationError:
        return entry
    counts = np.sum(masks, axis=0, dtype=np.int32)
    return {**entry, "segmentation": dict(rle.encode(counts == 1)), "area": None}


def _without_empty(objects: Sequence[ReferredObject], filled: set[int]) -> tuple[ReferredObject, ...]:
    """Objects less annotations without a pixel, which loading leaves out, less objects that had no others."""
    kept = []
    for thing in objects:
        ids = tuple(number for number in thing.annotation_ids if number in filled)
        if ids == thing.annotation_ids:
            kept.append(thing)
        elif ids:
            kept.append(replace(thing, annotation_ids=ids))
    return tuple(kept)
