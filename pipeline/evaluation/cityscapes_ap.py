"""Cityscapes' own average precision of instances, which is not COCO's.

Definition (instance-level task of the Cityscapes benchmark): ten overlaps 0.50, 0.55, ..., 0.95, each to be *exceeded*;
ground truth below 100 pixels and groups count for nothing; of two predictions on one object the less sure is false; a
prediction on no object is false unless more than the overlap's share of its pixels lies on void, on groups or on small
objects of its class; the curve has a point for every different score and one at precision 1 and recall 0, and its area
is that of the trapezoids between them. (COCO: 101 recall levels below the upper hull, at most 100 detections an image,
what lies on a crowd is judged by its share on that crowd alone.)

The benchmark's script counts pixels on a *group* below 100 pixels twice; here they count once.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass

import numpy as np
from numpy.typing import NDArray

from pipeline.data.coco import Annotation, CocoSet
from pipeline.errors import InputError
from pipeline.evaluation.results import Detection, Results, parse_results
from pipeline.masks import rle

OVERLAPS = tuple((50 + 5 * step) / 100 for step in range(10))
MIN_REGION = 100
"""Pixels; smaller objects are ignored."""


@dataclass(frozen=True)
class CityscapesAp:
    """Figures from 0 to 1; None where a class, or all of them, have no object to measure on."""

    ap: float | None
    """Mean over classes and the ten overlaps."""
    ap50: float | None
    """Mean over classes at an overlap of 0.5."""
    per_class: dict[str, float | None]
    per_class50: dict[str, float | None]
    num_images: int
    num_ground_truth: int
    """Objects that count: no groups, none below 100 pixels."""
    num_detections: int

    def as_dict(self) -> dict[str, object]:
        """For JSON; None stays null."""
        return asdict(self)


@dataclass(frozen=True)
class _Image:
    """Predictions and objects of one class in one image."""

    scores: NDArray[np.float64]
    """[P]."""
    iou: NDArray[np.float64]
    """[P, G] with every object of the class, also those that do not count."""
    counts: NDArray[np.bool_]
    """[G] objects that count."""
    ignored_share: NDArray[np.float64]
    """[P] share of a prediction's pixels on void, groups and small objects."""


def cityscapes_ap(ground_truth: CocoSet, void: Mapping[int, rle.Rle], results: Results) -> CityscapesAp:
    """Cityscapes AP of a results list.

    Args:
        ground_truth: Groups are its crowds; all its images count, also those without any result.
        void: Pixels that count for nothing, by image id.
        results: COCO results list (or its JSON file). Predictions may overlap; those without a pixel are left out.

    Raises:
        InputError: ground truth without a category, or results that are no list.
        AnnotationError: results that do not fit the ground truth.
    """
    if not ground_truth.categories:
        raise InputError(
            "ground truth without categories", where=ground_truth.image_root, fix="evaluate on a labelled set"
        )
    detections = parse_results(results, ground_truth)
    found: dict[tuple[int, int], list[Detection]] = {}
    for detection in detections:
        found.setdefault((detection.category_id, detection.image_id), []).append(detection)
    table = np.array(
        [
            _of_class(
                ground_truth,
                void,
                {image: found.get((c.category_id, image), []) for image in ground_truth.by_id},
                c.category_id,
            )
            for c in ground_truth.categories
        ]
    )  # [classes, overlaps]
    names = [category.name for category in ground_truth.categories]
    objects = [entry for entries in ground_truth.annotations.values() for entry in entries]
    return CityscapesAp(
        ap=_mean(table),
        ap50=_mean(table[:, 0]),
        per_class={name: _mean(row) for name, row in zip(names, table, strict=True)},
        per_class50={name: _mean(row[:1]) for name, row in zip(names, table, strict=True)},
        num_images=len(ground_truth.images),
        num_ground_truth=sum(_counts(entry) for entry in objects),
        num_detections=len(detections),
    )


def _mean(values: NDArray[np.float64]) -> float | None:
    measured = values[~np.isnan(values)]
    return float(measured.mean()) if measured.size else None


def _counts(entry: Annotation) -> bool:
    return not entry.iscrowd and rle.area(entry.rle) >= MIN_REGION


def _of_class(
    coco: CocoSet, void: Mapping[int, rle.Rle], found: Mapping[int, Sequence[Detection]], category_id: int
) -> list[float]:
    """AP of one class at every overlap; NaN where it has no object that counts."""
    images = [
        _compared(found[image], [e for e in coco.annotations[image] if e.category_id == category_id], void.get(image))
        for image in coco.by_id
    ]
    if not any(image.counts.any() for image in images):
        return [np.nan] * len(OVERLAPS)
    return [_at_overlap(images, overlap) for overlap in OVERLAPS]


def _compared(predictions: Sequence[Detection], objects: Sequence[Annotation], void: rle.Rle | None) -> _Image:
    areas = [rle.area(prediction.rle) for prediction in predictions]
    seen = [(p, area) for p, area in zip(predictions, areas, strict=True) if area]
    sizes = np.array([rle.area(entry.rle) for entry in objects], np.int64)
    counts = np.array([_counts(entry) for entry in objects], bool)
    codes = [entry.rle["counts"].encode() for entry in objects]
    shared = np.zeros((len(seen), len(objects)), np.int64)
    ignored = np.zeros(len(seen), np.int64)
    for place, (prediction, area) in enumerate(seen):
        shared[place] = rle.shared_pixels(prediction.rle, area, codes)
        ignored[place] = shared[place, ~counts].sum()
        if void is not None:
            ignored[place] += rle.shared_pixels(prediction.rle, area, [void["counts"].encode()])[0]
    own = np.array([area for _, area in seen], np.int64)
    return _Image(
        np.array([prediction.score for prediction, _ in seen], np.float64),
        shared / np.maximum(own[:, None] + sizes - shared, 1),
        counts,
        ignored / np.maximum(own, 1),
    )


def _at_overlap(images: Sequence[_Image], overlap: float) -> float:
    scores: list[float] = []
    is_true: list[bool] = []
    num_missed = 0
    for image in images:
        fits = image.iou > overlap  # [P, G]; of disjoint objects a prediction fits one at most
        for column in fits[:, image.counts].T:
            best_first = sorted(image.scores[column].tolist(), reverse=True)
            num_missed += not best_first
            scores += best_first
            is_true += [place == 0 for place in range(len(best_first))]
        # What fits a group or a small object counts for nothing.
        false = ~fits.any(axis=1) & (image.ignored_share <= overlap)
        scores += image.scores[false].tolist()
        is_true += [False] * int(false.sum())
    return average_precision(np.array(scores), np.array(is_true, bool), num_missed)


def average_precision(scores: NDArray[np.float64], is_true: NDArray[np.bool_], num_missed: int) -> float:
    """Area below the curve of precision over recall, by trapezoids.

    Args:
        scores: [N].
        is_true: [N] which predictions have found an object.
        num_missed: Objects that no prediction has found.

    Returns:
        0 to 1; 0 without any prediction.
    """
    num_objects = int(is_true.sum()) + num_missed
    if not len(scores) or num_objects == 0:
        return 0.0
    order = np.argsort(-scores, kind="stable")
    hits = np.cumsum(is_true[order])
    last_of_score = np.append(np.flatnonzero(np.diff(scores[order])), len(scores) - 1)
    precision = np.append(1.0, hits[last_of_score] / (last_of_score + 1))
    recall = np.append(0.0, hits[last_of_score] / num_objects)
    return float(np.sum(np.diff(recall) * (precision[1:] + precision[:-1]) / 2))
