"""Figures of referring-expression segmentation, from pixel counts of one expression each.

Classic (RefCOCO, RefCOCO+, G-Ref; SemiRES and LAVT), over expressions that mean something: **oIoU** is the sum of all
intersections over the sum of all unions; **mIoU** the mean of each expression's IoU, which is 0 where the union is
empty; **Pr@t** the share with IoU >= t.

Generalised (gRefCOCO; GRES, Liu et al. 2023), over all expressions, where one that means nothing is right if nothing is
answered: **cIoU** is oIoU with them (a right silence adds nothing, a wrong answer adds its pixels to the union);
**gIoU** is mIoU with them (1 for a right silence, 0 for a wrong answer); **N-acc** is the share of expressions without
a target that are answered by nothing, **T-acc** the share of those with a target that are answered by something.

Every expression counts once, and all of them do. Counts of one expression at native size (this project) weigh large
images more in oIoU and cIoU; at a fixed square (the released code: 480 x 480) every image weighs the same.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

PRECISION_AT = (0.5, 0.6, 0.7, 0.8, 0.9)


@dataclass(frozen=True)
class ExpressionScore:
    """One expression's answer beside the truth."""

    ref_id: int
    sentence_id: int
    intersection: int
    """Pixels."""
    union: int
    """Pixels."""
    has_target: bool = True
    """Whether anything is meant."""
    is_silent: bool = False
    """Whether nothing was answered."""

    @property
    def iou(self) -> float:
        """Intersection over union; 0 where the union is empty."""
        return self.intersection / self.union if self.union else 0.0


def is_silence(mask: NDArray[np.bool_], no_target: float | None) -> bool:
    """Whether a network answers that nothing is meant.

    Args:
        mask: [H, W] bool, its answer.
        no_target: Probability, 0 to 1, that it gives to "nothing is meant": above 0.5 the mask counts for nothing.
            None: it does not say, and an empty mask is how it answers nothing.
    """
    return not mask.any() if no_target is None else no_target > 0.5


def score_expression(
    predicted: NDArray[np.bool_],
    truth: NDArray[np.bool_],
    *,
    ids: tuple[int, int] = (0, 0),
    has_target: bool = True,
    no_target: float | None = None,
) -> ExpressionScore:
    """Count the pixels of one expression.

    Args:
        predicted: [H, W] bool.
        truth: [H, W] bool, of the same size; ignored where there is no target.
        ids: (ref_id, sentence_id).
        has_target: Whether anything is meant.
        no_target: See :func:`is_silence`.

    Raises:
        ValueError: masks of different sizes.
    """
    if predicted.shape != truth.shape:
        raise ValueError(f"masks of one size are compared, got {predicted.shape} and {truth.shape}")
    is_silent = is_silence(predicted, no_target)
    answer = np.zeros_like(predicted) if is_silent else predicted
    meant = truth if has_target else np.zeros_like(truth)
    shared, either = int(np.count_nonzero(answer & meant)), int(np.count_nonzero(answer | meant))
    return ExpressionScore(*ids, shared, either, has_target, bool(is_silent))


@dataclass(frozen=True)
class ReferFigures:
    """Counts of one expression or of many; adding two of them pools their expressions."""

    num_targets: int = 0
    """Expressions that mean something."""
    num_no_targets: int = 0
    """Expressions that mean nothing."""
    intersection: int = 0
    """Pixels."""
    union_of_targets: int = 0
    """Pixels, of expressions that mean something."""
    union_of_no_targets: int = 0
    """Pixels that were answered where nothing is meant."""
    iou_sum: float = 0.0
    """Over expressions that mean something."""
    num_at_least: tuple[int, ...] = (0,) * len(PRECISION_AT)
    """Expressions that mean something, with IoU >= :data:`PRECISION_AT`."""
    num_answered_targets: int = 0
    """Of those that mean something."""
    num_right_silences: int = 0
    """Of those that mean nothing."""

    def __add__(self, other: "ReferFigures") -> "ReferFigures":
        """Pool two sets of expressions."""
        return ReferFigures(
            self.num_targets + other.num_targets,
            self.num_no_targets + other.num_no_targets,
            self.intersection + other.intersection,
            self.union_of_targets + other.union_of_targets,
            self.union_of_no_targets + other.union_of_no_targets,
            self.iou_sum + other.iou_sum,
            tuple(a + b for a, b in zip(self.num_at_least, other.num_at_least, strict=True)),
            self.num_answered_targets + other.num_answered_targets,
            self.num_right_silences + other.num_right_silences,
        )

    @property
    def overall_iou(self) -> float | None:
        """oIoU; None without an expression that means something or without any pixel."""
        return _share(self.intersection, self.union_of_targets)

    @property
    def mean_iou(self) -> float | None:
        """mIoU; None without an expression that means something."""
        return _share(self.iou_sum, self.num_targets)

    def precision_at(self, iou: float) -> float | None:
        """Pr@iou for a value of :data:`PRECISION_AT`; None without an expression that means something."""
        return _share(self.num_at_least[PRECISION_AT.index(iou)], self.num_targets)

    @property
    def cumulative_iou(self) -> float | None:
        """cIoU of GRES; None without any pixel."""
        return _share(self.intersection, self.union_of_targets + self.union_of_no_targets)

    @property
    def generalised_iou(self) -> float | None:
        """gIoU of GRES; None without an expression."""
        return _share(self.iou_sum + self.num_right_silences, self.num_targets + self.num_no_targets)

    @property
    def no_target_accuracy(self) -> float | None:
        """N-acc of GRES; None without an expression that means nothing."""
        return _share(self.num_right_silences, self.num_no_targets)

    @property
    def target_accuracy(self) -> float | None:
        """T-acc of GRES; None without an expression that means something."""
        return _share(self.num_answered_targets, self.num_targets)

    def named(self, *, generalised: bool = False) -> dict[str, float | None]:
        """The figures by the field's names, each in [0, 1] or None."""
        classic = {"oIoU": self.overall_iou, "mIoU": self.mean_iou}
        classic |= {f"Pr@{threshold}": self.precision_at(threshold) for threshold in PRECISION_AT}
        if not generalised:
            return classic
        return classic | {
            "gIoU": self.generalised_iou,
            "cIoU": self.cumulative_iou,
            "N-acc": self.no_target_accuracy,
            "T-acc": self.target_accuracy,
        }


def figures_of(scores: Iterable[ExpressionScore]) -> ReferFigures:
    """Pool expressions. The same ones in any order and grouping give the same counts."""
    return sum((_figures(score) for score in scores), ReferFigures())


def _figures(score: ExpressionScore) -> ReferFigures:
    if not score.has_target:
        return ReferFigures(num_no_targets=1, union_of_no_targets=score.union, num_right_silences=int(score.is_silent))
    return ReferFigures(
        num_targets=1,
        intersection=score.intersection,
        union_of_targets=score.union,
        iou_sum=score.iou,
        num_at_least=tuple(int(score.iou >= threshold) for threshold in PRECISION_AT),
        num_answered_targets=int(not score.is_silent),
    )


def _share(part: float, whole: float) -> float | None:
    return part / whole if whole else None
