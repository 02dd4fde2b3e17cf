"""What the library refiners (IOM, CPI) share: guards, and the union of what a rule accepts.

A rule sees only three numbers per proposal, so it does not depend on where the proposals come from.
"""

from dataclasses import dataclass
from typing import Protocol

from pipeline.masks.library import MaskLibrary, another_size
from pipeline.masks.overlap import mask_iou
from pipeline.refine.interface import Refined, TeacherMasks, check_choice, check_number, teacher_outcomes
from pipeline.refine.matching import AcceptRule, Matcher
from pipeline.refine.pixel_weight import WEIGHT_SCOPES, WeightScope, instance_weights


class ProposalReader(Protocol):
    """What a refiner needs of the proposal library."""

    def read_masks(self, image_id: int) -> MaskLibrary:
        """Return the proposals of one image; none is legal."""


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
    library: MaskLibrary, masks: TeacherMasks, rule: AcceptRule, *, settings: MatchSettings
) -> Refined:
    """Replace every teacher mask by the union of the proposals that a rule accepts for it.

    Args:
        library: The proposals of this image, canonical frame; may be empty.
        masks: N teacher instances.
        rule: Which proposals to accept for one mask.
        settings: Guards and weights.

    Returns:
        N instances: "matched" with the clipped union, else the teacher mask, "kept" or "empty". An empty teacher mask
        is never matched.

    Raises:
        InputError: The library is of an image of another size.
    """
    if tuple(library.size_hw) != masks.size_hw:
        raise another_size(masks.size_hw, library.size_hw, where="proposal library")
    refined = masks.masks
    outcomes = teacher_outcomes(refined)
    matcher = Matcher(library, masks.visible, rule, max_area_ratio=settings.max_area_ratio)
    for index, mask in enumerate(refined):
        accepted = matcher.accepted(mask)
        if len(accepted) == 0:
            continue
        union = library.union(accepted) & masks.visible
        if settings.union_with_teacher:
            union |= mask
        if settings.min_iou_with_teacher is None or mask_iou(union, mask) >= settings.min_iou_with_teacher:
            refined[index], outcomes[index] = union, "matched"
    weights = instance_weights(masks.probabilities, outcomes, scope=settings.pixel_weights)
    return Refined(masks=refined, weights=weights, outcomes=outcomes)
