"""What refinement does to single pseudo-labels: how often it makes them better, worse, or nothing (SemiRES, Figure 6).

The figure counts unlabelled training samples: positive where the IoU with the ground truth rises, negative where it
falls, no correction where nothing matched. What it leaves open is settled here: a match that leaves the IoU equal is a
class of its own; IoU is taken at the image's own size, whatever the resolution of matching; a teacher mask without a
pixel counts as not corrected, and is counted apart besides.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.masks.library import MaskLibrary
from pipeline.masks.overlap import mask_iou, pairwise_iou
from pipeline.masks.query import QueryMask
from pipeline.refine.build import build_refiner
from pipeline.refine.interface import Outcome, TeacherMasks

Masks = NDArray[np.bool_]


@dataclass(frozen=True)
class CorrectionStatistics:
    """Counts of pseudo-labels that are about a known object; adding two of them pools."""

    num_positive: int = 0
    num_negative: int = 0
    num_equal: int = 0
    """Matched, and the IoU is what it was."""
    num_uncorrected: int = 0
    """Nothing matched."""
    num_empty: int = 0
    """Of the uncorrected: the teacher's mask has no pixel."""
    before_sum: float = 0.0
    """IoU of the teacher's masks."""
    after_sum: float = 0.0
    """IoU of the refined masks; of the teacher's where nothing matched."""
    gain_sum: float = 0.0
    """By how much the positive ones rose."""
    loss_sum: float = 0.0
    """By how much the negative ones fell."""

    def __add__(self, other: "CorrectionStatistics") -> "CorrectionStatistics":
        """Pool two sets of pseudo-labels."""
        return CorrectionStatistics(*(getattr(self, f.name) + getattr(other, f.name) for f in fields(self)))

    @property
    def total(self) -> int:
        """Pseudo-labels in all."""
        return self.num_positive + self.num_negative + self.num_equal + self.num_uncorrected

    def as_dict(self) -> dict[str, float | int | None]:
        """Counts, shares of the total, and means; None where there is nothing to divide by. For JSON."""
        counts = {f.name: getattr(self, f.name) for f in fields(self) if f.name.startswith("num_")}
        return {
            "total": self.total,
            **counts,
            **{name.replace("num_", "share_"): _ratio(number, self.total) for name, number in counts.items()},
            "mean_iou_before": _ratio(self.before_sum, self.total),
            "mean_iou_after": _ratio(self.after_sum, self.total),
            "mean_gain": _ratio(self.gain_sum, self.num_positive),
            "mean_loss": _ratio(self.loss_sum, self.num_negative),
        }


@dataclass(frozen=True)
class OracleStatistics:
    """What a library could give if the ground truth chose; adding two of them pools."""

    total: int = 0
    best_proposal_sum: float = 0.0
    """IoU of each object with the proposal that fits it best: the limit of IOM."""
    best_union_sum: float = 0.0
    """IoU of each object with a union of proposals, built greedily: what CPI can reach at the least."""

    def __add__(self, other: "OracleStatistics") -> "OracleStatistics":
        """Pool two sets of objects."""
        return OracleStatistics(*(getattr(self, f.name) + getattr(other, f.name) for f in fields(self)))

    def as_dict(self) -> dict[str, float | int | None]:
        """Means, for JSON."""
        return {
            "total": self.total,
            "mean_iou_best_proposal": _ratio(self.best_proposal_sum, self.total),
            "mean_iou_best_union": _ratio(self.best_union_sum, self.total),
        }


def _ratio(number: float, total: int) -> float | None:
    return number / total if total else None


def corrections(
    teacher: Masks, truth: Masks, library: MaskLibrary, strategies: Mapping[str, Mapping[str, Any]]
) -> dict[str, CorrectionStatistics]:
    """Refine the teacher's masks of one image by several strategies, and count.

    Args:
        teacher: [N, H, W] bool, the teacher's masks at the image's size.
        truth: [N, H, W] bool, the object that each is about.
        library: The proposals of the image.
        strategies: Name -> arguments of ``build_refiner`` with its ``name`` (none | iom | cpi | cpi_u | cpi_o).

    Returns:
        By the name of the strategy.

    Raises:
        ConfigError: an unknown refiner or setting.
        InputError: the library is of an image of another size.
    """
    count = len(teacher)
    masks = TeacherMasks(
        teacher.astype(np.float32), np.ones(teacher.shape[1:], bool), np.zeros(count, int), np.ones(count, np.float32)
    )
    before = _paired_iou(teacher, truth)
    found = {}
    for name, settings in strategies.items():
        refiner = build_refiner(**{"pixel_weights": "off", **settings}, proposals=_Held(library))
        refined = refiner.refine(0, None, masks, np.random.default_rng(0))
        found[name] = count_corrections(before, _paired_iou(refined.masks, truth), refined.outcomes)
    return found


def count_corrections(
    before: NDArray[np.float64], after: NDArray[np.float64], outcomes: Sequence[Outcome]
) -> CorrectionStatistics:
    """Count N pseudo-labels by their IoU with the ground truth, [N] before and after, and by their outcomes."""
    matched = np.array([outcome == "matched" for outcome in outcomes], bool)
    change = np.where(matched, after - before, 0.0)
    return CorrectionStatistics(
        num_positive=int((change > 0).sum()),
        num_negative=int((change < 0).sum()),
        num_equal=int((matched & (change == 0)).sum()),
        num_uncorrected=int((~matched).sum()),
        num_empty=sum(outcome == "empty" for outcome in outcomes),
        before_sum=float(before.sum()),
        after_sum=float((before + change).sum()),
        gain_sum=float(change[change > 0].sum()),
        loss_sum=float(-change[change < 0].sum()),
    )


def assigned_objects(teacher: Masks, objects: Masks) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Say which annotated object each of a detector's masks is about: the one that it shares most with.

    Whether it is of the object's class does not matter here, nor whether others are about the same object.

    Args:
        teacher: [N, H, W] bool.
        objects: [M, H, W] bool.

    Returns:
        [P] rising indices of the masks that share a pixel with any object, and [P] the object of highest IoU.
    """
    iou = pairwise_iou(teacher, objects)
    if iou.size == 0:
        nothing = np.zeros(0, np.int64)
        return nothing, nothing
    about = np.flatnonzero(iou.max(axis=1) > 0)
    return about, iou[about].argmax(axis=1)


def oracle(truth: Masks, library: MaskLibrary) -> OracleStatistics:
    """The best that the proposals of one image can do for its objects [N, H, W] bool."""
    best = [_best_of_object(mask, library) for mask in truth]
    return OracleStatistics(len(best), sum(single for single, _ in best), sum(union for _, union in best))


def _best_of_object(truth: Masks, library: MaskLibrary) -> tuple[float, float]:
    """IoU of the best proposal, and of a union that starts with it and grows by the best one as long as IoU rises."""
    query = QueryMask.of(np.ascontiguousarray(truth))
    if query.area == 0 or len(library) == 0:
        return 0.0, 0.0
    shared = query.shared_with(list(library.codes))
    iou = shared / (query.area + library.areas - shared)
    best = int(iou.argmax())
    if shared[best] == 0:
        return 0.0, 0.0
    touching = np.flatnonzero(shared)
    parts = np.stack([library.union(np.array([k])) for k in touching]).reshape(len(touching), -1)
    inside, outside = parts[:, truth.reshape(-1)], parts[:, ~truth.reshape(-1)]
    # Only what is not covered yet counts: covered columns go.
    right, wrong, reached = 0, 0, -1.0
    chosen = int(np.searchsorted(touching, best))
    while True:
        right, wrong = right + int(inside[chosen].sum()), wrong + int(outside[chosen].sum())
        reached = right / (query.area + wrong)
        inside, outside = inside[:, ~inside[chosen]], outside[:, ~outside[chosen]]
        grown = (right + inside.sum(axis=1)) / (query.area + wrong + outside.sum(axis=1))
        chosen = int(grown.argmax())
        if grown[chosen] <= reached:
            return float(iou[best]), reached


def _paired_iou(masks: Masks, truth: Masks) -> NDArray[np.float64]:
    return np.array([mask_iou(mask, other) for mask, other in zip(masks, truth, strict=True)], np.float64)


@dataclass(frozen=True)
class _Held:
    """A library in memory, as refiners read one."""

    library: MaskLibrary

    def read_masks(self, image_id: int) -> MaskLibrary:
        return self.library
