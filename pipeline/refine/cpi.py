"""Composite parts integration: the union of the proposals that contain the mask, or are contained in it.

Eq: SemiRES/cpi-u, SemiRES/cpi-o
"""

from dataclasses import dataclass, field
from functools import partial
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

from pipeline.refine.interface import Refined, TeacherMasks, check_choice, check_number
from pipeline.refine.library import MatchSettings, ProposalReader, refine_from_library
from pipeline.refine.matching import AcceptRule, Overlaps

CpiCases = Literal["both", "under", "over"]
"""CPI | CPI-U | CPI-O. The best row of SemiRES' Table 1 is "under"."""

_EPSILON = 1e-9  # in Eq. 7 only, as printed and as released


def accept_cpi(
    overlaps: Overlaps, *, cases: CpiCases = "both", under_threshold: float = 0.7, over_threshold: float = 0.7
) -> NDArray[np.int64]:
    """Accept every proposal that covers most of the mask, or that the mask mostly covers.

    Eq: SemiRES/cpi-u (SemiRES, Eq. 7): I_k / (A_c + 1e-9) > 0.7, the teacher mask under-segments.
    Eq: SemiRES/cpi-o (SemiRES, Eq. 8): I_k / A_k > 0.7, the teacher mask over-segments. Both strict. A proposal
    without a visible pixel (A_k = 0) is never accepted; the released code relies on NaN comparing false.

    Args:
        overlaps: One teacher mask (not empty) against K proposals.
        cases: Which of the two conditions count.
        under_threshold: Strict lower bound of the first share.
        over_threshold: Strict lower bound of the second share.

    Returns:
        [C] int64 ascending indices of the accepted proposals.
    """
    shared, area = overlaps.intersection, overlaps.proposal_area
    accepted = np.zeros(len(shared), dtype=bool)
    if cases in ("both", "under"):
        accepted |= shared / (overlaps.mask_area + _EPSILON) > under_threshold  # Eq: SemiRES/cpi-u
    if cases in ("both", "over"):
        covered = np.divide(shared, area, out=np.zeros(len(shared)), where=area > 0)
        accepted |= covered > over_threshold  # Eq: SemiRES/cpi-o
    return np.flatnonzero(accepted)


@dataclass(frozen=True)
class CpiRefiner:
    """Replaces a teacher mask by the union of accepted proposals; the teacher mask itself is not in the union."""

    proposals: ProposalReader
    cases: CpiCases = "both"
    under_threshold: float = 0.7
    over_threshold: float = 0.7
    settings: MatchSettings = field(default_factory=MatchSettings)

    def __post_init__(self) -> None:
        """Refuse values out of range (ConfigError)."""
        check_choice("cases", self.cases, get_args(CpiCases))
        check_number("under_threshold", self.under_threshold)
        check_number("over_threshold", self.over_threshold)

    def refine(
        self, image_id: int, image: NDArray[np.uint8] | None, masks: TeacherMasks, rng: np.random.Generator
    ) -> Refined:
        """Match every mask against the library; see `Refiner.refine`."""

        accept = partial(
            accept_cpi,
            cases=self.cases,
            under_threshold=self.under_threshold,
            over_threshold=self.over_threshold,
        )
        # Each proposal is judged alone, so the rule itself says from favourable numbers whom it may accept.
        rule = AcceptRule(accept=accept, may_accept=accept)
        return refine_from_library(self.proposals.read_masks(image_id), masks, rule, settings=self.settings)
