"""IoU-based optimal matching: the one proposal that fits best, if it fits well enough.

Eq: SemiRES/iom
"""

from dataclasses import dataclass, field
from functools import partial

import numpy as np
from numpy.typing import NDArray

from pipeline.refine.interface import Refined, TeacherMasks, check_number
from pipeline.refine.library import MatchSettings, ProposalReader, refine_from_library
from pipeline.refine.matching import AcceptRule, Overlaps


def accept_iom(overlaps: Overlaps, *, iou_threshold: float = 0.5) -> NDArray[np.int64]:
    """Accept the proposal with the largest IoU, if that is above the threshold.

    Eq: SemiRES/iom (SemiRES, Eq. 6): s_k = I_k / (A_c + A_k - I_k), candidates s_k > 0.5 (strict), the largest wins,
    the first one on a tie.

    Args:
        overlaps: One teacher mask (not empty) against K proposals.
        iou_threshold: Strict lower bound.

    Returns:
        [0] or [1] int64, the index of the accepted proposal.
    """
    iou = _iou(overlaps)
    best = iou.argmax() if len(iou) else 0
    return np.flatnonzero(iou[best : best + 1] > iou_threshold) + best


def above_threshold(overlaps: Overlaps, *, iou_threshold: float = 0.5) -> NDArray[np.int64]:
    """[C] int64 rising indices of the candidates of :func:`accept_iom`, of which it takes the best."""
    return np.flatnonzero(_iou(overlaps) > iou_threshold)


def _iou(overlaps: Overlaps) -> NDArray[np.float64]:
    union = overlaps.mask_area + overlaps.proposal_area - overlaps.intersection
    return np.asarray(overlaps.intersection / union)  # Eq: SemiRES/iom; union >= mask_area > 0


@dataclass(frozen=True)
class IomRefiner:
    """Replaces a teacher mask by the best fitting proposal of the library."""

    proposals: ProposalReader
    iou_threshold: float = 0.5
    settings: MatchSettings = field(default_factory=MatchSettings)

    def __post_init__(self) -> None:
        """Refuse values out of range (ConfigError)."""
        check_number("iou_threshold", self.iou_threshold)

    def refine(
        self, image_id: int, image: NDArray[np.uint8] | None, masks: TeacherMasks, rng: np.random.Generator
    ) -> Refined:
        """Match every mask against the library; see `Refiner.refine`."""

        rule = AcceptRule(
            accept=partial(accept_iom, iou_threshold=self.iou_threshold),
            may_accept=partial(above_threshold, iou_threshold=self.iou_threshold),
        )
        return refine_from_library(self.proposals.read_masks(image_id), masks, rule, settings=self.settings)
