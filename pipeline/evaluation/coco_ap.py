"""COCO mask average precision, computed by faster-coco-eval (checked against pycocotools in the tests)."""

from collections.abc import Iterable
from dataclasses import asdict, dataclass

import numpy as np
from faster_coco_eval import COCO, COCOeval_faster
from numpy.typing import NDArray

from pipeline.data.coco import CocoSet
from pipeline.errors import InputError
from pipeline.evaluation.results import Detection, Results, parse_results
from pipeline.masks import rle

MAX_DETECTIONS = 100
_ALL_AREAS = 0
_IOU_50, _IOU_75 = 0, 5  # of the thresholds 0.50, 0.55, ..., 0.95


@dataclass(frozen=True)
class MaskAp:
    """COCO figures, each from 0 to 1; None where there is no ground truth to measure on."""

    ap: float | None
    """Mean over classes and IoU 0.50 to 0.95 (step 0.05), at most 100 detections an image."""
    ap50: float | None
    ap75: float | None
    ar100: float | None
    """Recall at 100 detections an image, averaged over the same IoU thresholds and classes."""
    per_class: dict[str, float | None]
    """AP by class name, in label order."""
    num_images: int
    num_ground_truth: int
    """Objects that count: crowds do not."""
    num_detections: int

    def as_dict(self) -> dict[str, object]:
        """For JSON; None stays null."""
        return asdict(self)


def mask_ap(ground_truth: CocoSet, results: Results) -> MaskAp:
    """Mask AP of a results list. Nothing is printed.

    Args:
        ground_truth: the set with its annotations; all its images count, also those without any result.
        results: COCO results list (or its JSON file): image_id, category_id, segmentation (RLE or polygons), score.

    Returns:
        The COCO figures over all areas. An empty list gives 0.

    Raises:
        InputError: ground truth without a category, or results that are no list.
        AnnotationError: results that do not fit the ground truth.
    """
    if not ground_truth.categories:
        raise InputError(
            "ground truth without categories", where=ground_truth.image_root, fix="evaluate on a labelled set"
        )
    detections = parse_results(results, ground_truth)
    precision, recall = _curves(ground_truth, detections)
    per_class = [_mean(precision[:, :, label]) for label in range(len(ground_truth.categories))]
    objects = [entry for entries in ground_truth.annotations.values() for entry in entries]
    return MaskAp(
        ap=_mean(precision),
        ap50=_mean(precision[_IOU_50]),
        ap75=_mean(precision[_IOU_75]),
        ar100=_mean(recall),
        per_class={c.name: ap for c, ap in zip(ground_truth.categories, per_class, strict=True)},
        num_images=len(ground_truth.images),
        num_ground_truth=sum(not entry.iscrowd for entry in objects),
        num_detections=len(detections),
    )


def _mean(values: NDArray[np.float64]) -> float | None:
    """Mean of what was measured: COCO marks classes without ground truth by -1."""
    measured = values[values > -1]
    return float(measured.mean()) if measured.size else None


def _curves(coco: CocoSet, detections: list[Detection]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Precision [10 IoU, 101 recall, classes] and recall [10 IoU, classes], -1 where there is no ground truth."""
    truth = COCO(_dataset(coco, _truth_entries(coco)), print_function=_silent)
    found = COCO(_dataset(coco, _result_entries(detections)), print_function=_silent)
    evaluator = COCOeval_faster(truth, found, "segm", print_function=_silent, rle_iou_max_workers=1)
    evaluator.params.imgIds = sorted(coco.by_id)
    evaluator.params.catIds = sorted(coco.labels)
    evaluator.params.maxDets = [1, 10, MAX_DETECTIONS]
    evaluator.evaluate()
    evaluator.accumulate()
    # The evaluator orders classes by id; ours are in label order.
    order = [evaluator.params.catIds.index(category.category_id) for category in coco.categories]
    precision = np.asarray(evaluator.eval["precision"])[:, :, order, _ALL_AREAS, -1]
    recall = np.asarray(evaluator.eval["recall"])[:, order, _ALL_AREAS, -1]
    return precision, recall


def _dataset(coco: CocoSet, entries: Iterable[dict[str, object]]) -> dict[str, object]:
    images = [{"id": image.image_id, "height": image.height, "width": image.width} for image in coco.images]
    categories = [{"id": category.category_id, "name": category.name} for category in coco.categories]
    numbered = [{"id": number, **entry} for number, entry in enumerate(entries, start=1)]
    return {"images": images, "categories": categories, "annotations": numbered}


def _truth_entries(coco: CocoSet) -> list[dict[str, object]]:
    return [
        {
            "image_id": entry.image_id,
            "category_id": entry.category_id,
            "segmentation": dict(entry.rle),
            "area": entry.area,
            "bbox": list(entry.bbox_xywh),
            "iscrowd": int(entry.iscrowd),
        }
        for image in coco.images
        for entry in coco.annotations[image.image_id]
    ]


def _result_entries(detections: list[Detection]) -> list[dict[str, object]]:
    return [
        {
            "image_id": entry.image_id,
            "category_id": entry.category_id,
            "segmentation": dict(entry.rle),
            "score": entry.score,
            "area": rle.area(entry.rle),
            "bbox": list(rle.bbox_xywh(entry.rle)),
            "iscrowd": 0,
        }
        for entry in detections
    ]


def _silent(*_: object) -> None:
    """Take the place of the library's print."""
