"""The refiner that changes nothing: the plain teacher-student baseline."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pipeline.refine.interface import Refined, TeacherMasks, check_choice, teacher_outcomes
from pipeline.refine.pixel_weight import WEIGHT_SCOPES, WeightScope, instance_weights


@dataclass(frozen=True)
class NoRefiner:
    """Keeps every teacher mask."""

    pixel_weights: WeightScope = "off"

    def __post_init__(self) -> None:
        """Refuse an unknown scope (ConfigError)."""
        check_choice("pixel_weights", self.pixel_weights, WEIGHT_SCOPES)

    def refine(
        self, image_id: int, image: NDArray[np.uint8] | None, masks: TeacherMasks, rng: np.random.Generator
    ) -> Refined:
        """Return the teacher's masks; see `Refiner.refine`."""
        binary = masks.masks
        outcomes = teacher_outcomes(binary)
        weights = instance_weights(masks.probabilities, outcomes, scope=self.pixel_weights)
        return Refined(masks=binary, weights=weights, outcomes=outcomes)
