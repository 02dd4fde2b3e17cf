"""IoU-based optimal matching: the one proposal that fits best, if it fits well enough.

Eq: SemiRES/iom
"""

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from pipeline.refine.interface import Refined, TeacherMasks, check_number
from pipeline.refine.library import MatchSettings, Overlaps, ProposalReader, refine_from_library


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
    if len(overlaps.intersection) == 0:
        return np.zeros(0, dtype=np.int64)
    union = overlaps.mask_area + overlaps.proposal_area - overlaps.intersection
    iou = overlaps.intersection / union  # Eq: SemiRES/iom; union >= mask_area > 0
    best = np.argmax(iou)
    return np.array([best] if iou[best] > iou_threshold else [], dtype=np.int64)


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

        def rule(overlaps: Overlaps) -> NDArray[np.int64]:
            return accept_iom(overlaps, iou_threshold=self.iou_threshold)

        return refine_from_library(self.proposals.read(image_id), masks, rule, settings=self.settings)
