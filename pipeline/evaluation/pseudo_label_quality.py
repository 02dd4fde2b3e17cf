"""Quality of pseudo-labels against ground truth: class accuracy (CA) and segmentation quality (SQ).

Source: S4M (arXiv 2504.05301v1), caption of the figure that analyses the bottleneck of the teacher's
pseudo-labels: CA is "computed on matched pairs with IoU > 0.5", SQ is the segmentation quality of panoptic quality
(Kirillov et al., Panoptic Segmentation, 2019), the mean IoU of matched pairs. What the caption leaves open is
settled here: pairs are matched without regard to class (otherwise CA would be 1 by construction); masks may
overlap, so pairs are taken greedily by IoU; the means run over the pairs of all images together, not over classes.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from faster_coco_eval.core import mask as coco_mask
from numpy.typing import ArrayLike, NDArray

from pipeline.data.coco import CocoSet
from pipeline.evaluation.results import Results, parse_results
from pipeline.masks.rle import Rle

MATCH_THRESHOLD = 0.5


@dataclass(frozen=True)
class PseudoLabelQuality:
    """Counts of one image or of many; adding two of them pools their pairs."""

    num_pseudo_labels: int = 0
    num_ground_truth: int = 0
    """Objects that count: crowds do not."""
    num_matched: int = 0
    num_class_correct: int = 0
    """Matched pairs of one class."""
    iou_sum: float = 0.0
    """Over matched pairs."""

    def __add__(self, other: "PseudoLabelQuality") -> "PseudoLabelQuality":
        """Pool two sets of pairs."""
        return PseudoLabelQuality(
            self.num_pseudo_labels + other.num_pseudo_labels,
            self.num_ground_truth + other.num_ground_truth,
            self.num_matched + other.num_matched,
            self.num_class_correct + other.num_class_correct,
            self.iou_sum + other.iou_sum,
        )

    @property
    def class_accuracy(self) -> float | None:
        """CA: share of matched pairs with the right class; None without a pair."""
        return self.num_class_correct / self.num_matched if self.num_matched else None

    @property
    def segmentation_quality(self) -> float | None:
        """SQ: mean IoU of matched pairs; None without a pair."""
        return self.iou_sum / self.num_matched if self.num_matched else None

    @property
    def matched_share(self) -> float | None:
        """Share of pseudo-labels that match an object: CA and SQ say nothing about the others."""
        return self.num_matched / self.num_pseudo_labels if self.num_pseudo_labels else None

    @property
    def found_share(self) -> float | None:
        """Share of ground-truth objects that a pseudo-label matches."""
        return self.num_matched / self.num_ground_truth if self.num_ground_truth else None

    def as_dict(self) -> dict[str, float | int | None]:
        """For JSON and TensorBoard."""
        return {
            "class_accuracy": self.class_accuracy,
            "segmentation_quality": self.segmentation_quality,
            "matched_share": self.matched_share,
            "found_share": self.found_share,
            "num_pseudo_labels": self.num_pseudo_labels,
            "num_ground_truth": self.num_ground_truth,
            "num_matched": self.num_matched,
            "num_class_correct": self.num_class_correct,
        }


def match_by_iou(iou: NDArray[np.floating], *, threshold: float = MATCH_THRESHOLD) -> list[tuple[int, int]]:
    """Match rows to columns one to one, highest IoU first, strictly above the threshold.

    Args:
        iou: [N, M] in 0 to 1.
        threshold: at 0.5 and with masks that do not overlap, no other matching is possible.

    Returns:
        (row, column) pairs by falling IoU; equal ones by row, then column.
    """
    rows, columns = np.nonzero(np.asarray(iou) > threshold)
    order = np.lexsort((columns, rows, -iou[rows, columns]))
    pairs: list[tuple[int, int]] = []
    used_rows: set[int] = set()
    used_columns: set[int] = set()
    for row, column in zip(rows[order].tolist(), columns[order].tolist(), strict=True):
        if row not in used_rows and column not in used_columns:
            pairs.append((row, column))
            used_rows.add(row)
            used_columns.add(column)
    return pairs


def quality_of_image(iou: NDArray[np.floating], predicted: ArrayLike, truth: ArrayLike) -> PseudoLabelQuality:
    """Quality of one image's pseudo-labels from their IoU with the ground truth.

    Args:
        iou: [N, M] mask IoU of N pseudo-labels and M ground-truth objects.
        predicted: [N] class labels.
        truth: [M] class labels of the same numbering.
    """
    predicted, truth = np.asarray(predicted), np.asarray(truth)
    iou = np.asarray(iou, dtype=np.float64).reshape(len(predicted), len(truth))
    pairs = match_by_iou(iou)
    return PseudoLabelQuality(
        num_pseudo_labels=len(predicted),
        num_ground_truth=len(truth),
        num_matched=len(pairs),
        num_class_correct=sum(bool(predicted[row] == truth[column]) for row, column in pairs),
        iou_sum=float(sum(iou[row, column] for row, column in pairs)),
    )


def pairwise_mask_iou(masks: Sequence[Rle], others: Sequence[Rle]) -> NDArray[np.float64]:
    """[N, M] IoU of run-length masks of one size, without decoding them."""
    if not masks or not others:
        return np.zeros((len(masks), len(others)))
    iou = coco_mask.iou([dict(mask) for mask in masks], [dict(mask) for mask in others], [0] * len(others))
    return np.asarray(iou, dtype=np.float64)


def pseudo_label_quality(ground_truth: CocoSet, results: Results) -> PseudoLabelQuality:
    """CA, SQ and counts of pseudo-labels (S4M, arXiv 2504.05301; see the module's docstring).

    Args:
        ground_truth: the set with its annotations; crowds are left out.
        results: COCO results list of the pseudo-labels, or its JSON file. Scores must be there, but do not count:
            the list is taken as filtered already.

    Raises:
        InputError: results that are no list.
        AnnotationError: results that do not fit the ground truth.
    """
    by_image: dict[int, list[tuple[Rle, int]]] = {}
    for detection in parse_results(results, ground_truth):
        by_image.setdefault(detection.image_id, []).append((detection.rle, detection.category_id))
    return _pool(
        _quality(
            by_image.get(image.image_id, []),
            [(a.rle, a.category_id) for a in ground_truth.annotations[image.image_id] if not a.iscrowd],
        )
        for image in ground_truth.images
    )


def _quality(predicted: list[tuple[Rle, int]], truth: list[tuple[Rle, int]]) -> PseudoLabelQuality:
    iou = pairwise_mask_iou([mask for mask, _ in predicted], [mask for mask, _ in truth])
    return quality_of_image(iou, [label for _, label in predicted], [label for _, label in truth])


def _pool(parts: Iterable[PseudoLabelQuality]) -> PseudoLabelQuality:
    return sum(parts, PseudoLabelQuality())
