"""What the library refiners (IOM, CPI) share: overlaps from runs, guards, and the union of what a rule accepts.

A rule sees only three numbers per proposal, so it does not depend on where the proposals come from. Everything is
counted over the visible region: a proposal is clipped to it before any ratio is taken.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from data_schemas.proposals import Proposal
from pipeline.masks.overlap import RunTable, intersections, mask_iou
from pipeline.masks.rle import Rle
from pipeline.refine.interface import Refined, TeacherMasks, check_choice, check_number, teacher_outcomes
from pipeline.refine.pixel_weight import WEIGHT_SCOPES, WeightScope, instance_weights


class ProposalReader(Protocol):
    """What a refiner needs of the proposal library."""

    def read(self, image_id: int) -> list[Proposal]:
        """Return the proposals of one image; an empty list is legal."""


@dataclass(frozen=True)
class Overlaps:
    """One teacher mask c against K proposals m_k, in visible pixels."""

    intersection: NDArray[np.int64]
    """[K] I_k: pixels of c and m_k."""
    proposal_area: NDArray[np.int64]
    """[K] A_k: visible pixels of m_k."""
    mask_area: int
    """A_c: pixels of c; never 0 when a rule is asked."""


AcceptRule = Callable[[Overlaps], NDArray[np.int64]]
"""The indices of the accepted proposals, [C] int64, possibly none."""


@dataclass(frozen=True)
class MatchSettings:
    """What is done around the rule. The papers have no guards: all are off by default."""

    max_area_ratio: float | None = None
    """A proposal larger than this multiple of the teacher mask is not considered (background floods CPI-U)."""
    min_iou_with_teacher: float | None = None
    """A result with a lower IoU with the teacher mask is not used."""
    union_with_teacher: bool = False
    """Add the teacher mask to the result; in the papers it is not in the union."""
    pixel_weights: WeightScope = "unmatched"
    """Which instances get PWA weights."""

    def __post_init__(self) -> None:
        """Refuse values out of range (ConfigError)."""
        check_number("max_area_ratio", self.max_area_ratio, high=float("inf"), optional=True)
        check_number("min_iou_with_teacher", self.min_iou_with_teacher, optional=True)
        check_choice("pixel_weights", self.pixel_weights, WEIGHT_SCOPES)


def refine_from_library(
    proposals: Sequence[Proposal], masks: TeacherMasks, rule: AcceptRule, *, settings: MatchSettings
) -> Refined:
    """Replace every teacher mask by the union of the proposals that a rule accepts for it.

    Args:
        proposals: The library of this image, canonical frame; may be empty.
        masks: N teacher instances.
        rule: Which proposals to accept for one mask.
        settings: Guards and weights.

    Returns:
        N instances: "matched" with the clipped union, else the teacher mask, "kept" or "empty". An empty teacher mask
        is never matched.
    """
    rles = [Rle(size=[proposal.height, proposal.width], counts=proposal.rle_counts) for proposal in proposals]
    table = RunTable.from_rles(rles, size_hw=masks.size_hw)
    visible_area = intersections(table, masks.visible)
    refined = masks.masks
    outcomes = teacher_outcomes(refined)
    for index, mask in enumerate(refined):
        accepted = _accepted(table, visible_area, mask, rule, settings)
        if len(accepted) == 0:
            continue
        union = table.union(accepted) & masks.visible
        if settings.union_with_teacher:
            union |= mask
        if settings.min_iou_with_teacher is None or mask_iou(union, mask) >= settings.min_iou_with_teacher:
            refined[index], outcomes[index] = union, "matched"
    weights = instance_weights(masks.probabilities, outcomes, scope=settings.pixel_weights)
    return Refined(masks=refined, weights=weights, outcomes=outcomes)


def _accepted(
    table: RunTable, visible_area: NDArray[np.int64], mask: NDArray[np.bool_], rule: AcceptRule, settings: MatchSettings
) -> NDArray[np.int64]:
    mask_area = int(np.count_nonzero(mask))
    if mask_area == 0:
        return np.zeros(0, dtype=np.int64)
    ratio = settings.max_area_ratio
    eligible = np.arange(len(table)) if ratio is None else np.flatnonzero(visible_area <= ratio * mask_area)
    shared = intersections(table, mask)
    chosen = rule(Overlaps(shared[eligible], visible_area[eligible], mask_area))
    return np.asarray(eligible[chosen], dtype=np.int64)
