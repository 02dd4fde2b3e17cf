"""What the library refiners (IOM, CPI) share: guards, and the union of what a rule accepts.

A rule sees only three numbers per proposal, so it does not depend on where the proposals come from.
"""

from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from pipeline.masks.library import MaskLibrary, another_size
from pipeline.masks.overlap import mask_iou
from pipeline.masks.resample import resampled_library, resampled_mask
from pipeline.refine.interface import (
    UNMATCHED,
    Refined,
    TeacherMasks,
    Unmatched,
    check_choice,
    check_number,
    drop_unmatched,
    teacher_outcomes,
)
from pipeline.refine.matching import AcceptRule, Matcher
from pipeline.refine.pixel_weight import WEIGHT_SCOPES, WeightScope, instance_weights


class ProposalReader(Protocol):
    """What a refiner needs of the proposal library."""

    def read_masks(self, image_id: int) -> MaskLibrary:
        """Return the proposals of one image; none is legal."""


_MAX_SIDE = 4096


@dataclass(frozen=True)
class MatchSettings:
    """What is done around the rule. The papers have no guards: all are off by default."""

    max_area_ratio: float | None = None
    """A proposal larger than this multiple of the teacher mask is not considered (background floods CPI-U)."""
    min_iou_with_teacher: float | None = None
    """A result with a lower IoU with the teacher mask is not used."""
    unmatched: Unmatched = "keep"
    """What becomes of a teacher mask without a match, or whose match is not used."""
    union_with_teacher: bool = False
    """Add the teacher mask to the result; in the papers it is not in the union."""
    pixel_weights: WeightScope = "unmatched"
    """Which instances get PWA weights."""
    match_resolution: Literal["native"] | int = "native"
    """Where masks and proposals are compared: at the image's size, or in a square of this side, into which both are
    stretched by nearest neighbour (SemiRES as released: 480). Results are of the image's size either way."""

    def __post_init__(self) -> None:
        """Refuse values out of range (ConfigError)."""
        check_number("max_area_ratio", self.max_area_ratio, high=float("inf"), optional=True)
        check_number("min_iou_with_teacher", self.min_iou_with_teacher, optional=True)
        check_choice("unmatched", self.unmatched, UNMATCHED)
        check_choice("pixel_weights", self.pixel_weights, WEIGHT_SCOPES)
        if self.match_resolution != "native":
            check_number("match_resolution", self.match_resolution, low=1, high=_MAX_SIDE, whole=True)


def refine_from_library(
    library: MaskLibrary, masks: TeacherMasks, rule: AcceptRule, *, settings: MatchSettings
) -> Refined:
    """Replace every teacher mask by the union of the proposals that a rule accepts for it.

    Args:
        library: The proposals of this image, canonical frame; may be empty.
        masks: N teacher instances.
        rule: Which proposals to accept for one mask.
        settings: Guards and weights.

    Returns:
        N instances: "matched" with the clipped union, else the teacher mask, "kept" or "empty", or none, "dropped". An
        empty teacher mask is never matched, nor is one without a pixel at the resolution of matching.

    Raises:
        InputError: The library is of an image of another size.
    """
    if tuple(library.size_hw) != masks.size_hw:
        raise another_size(masks.size_hw, library.size_hw, where="proposal library")
    refined = masks.masks
    outcomes = teacher_outcomes(refined)
    compared, visible, queries = _compared(library, masks.visible, refined, settings)
    matcher = Matcher(compared, visible, rule, max_area_ratio=settings.max_area_ratio)
    for index, mask in enumerate(refined):
        accepted = matcher.accepted(queries[index])
        if len(accepted) == 0:
            continue
        union = library.union(accepted) & masks.visible
        if settings.union_with_teacher:
            union |= mask
        if settings.min_iou_with_teacher is None or mask_iou(union, mask) >= settings.min_iou_with_teacher:
            refined[index], outcomes[index] = union, "matched"
    if settings.unmatched == "drop":
        drop_unmatched(refined, outcomes)
    weights = instance_weights(masks.probabilities, outcomes, scope=settings.pixel_weights)
    return Refined(masks=refined, weights=weights, outcomes=outcomes)


def _compared(
    library: MaskLibrary, visible: NDArray[np.bool_], masks: NDArray[np.bool_], settings: MatchSettings
) -> tuple[MaskLibrary, NDArray[np.bool_], list[NDArray[np.bool_]]]:
    """Proposals, visible region and teacher masks at the resolution of matching."""
    if settings.match_resolution == "native":
        return library, visible, list(masks)
    square = (settings.match_resolution, settings.match_resolution)
    queries = [resampled_mask(mask, square) for mask in masks]
    return resampled_library(library, square), resampled_mask(visible, square), queries
