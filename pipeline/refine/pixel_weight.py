"""Pixel-wise adjustment (PWA): pixels the teacher is unsure of weigh little.

Eq: SemiRES/pwa
"""

from collections.abc import Sequence
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

from pipeline.refine.interface import Outcome

WeightScope = Literal["off", "unmatched", "all"]
"""Which instances get weights. SemiRES uses "unmatched"; the "PWA without refine" row of its Table 5 needs "all"."""

WEIGHT_SCOPES: tuple[str, ...] = get_args(WeightScope)

_VARIANCE = 0.1
_CEILING = 1.3
_DENSITY_AT_MEAN = 1.0 / np.sqrt(2 * np.pi * _VARIANCE)  # 1.26157


def pixel_weights(probabilities: NDArray[np.float32]) -> NDArray[np.float32]:
    """Weigh pixels by the teacher's confidence.

    Eq: SemiRES/pwa (SemiRES, Eq. 9 and 10): w(p) = 1.3 - N(p; mean 0.5, variance 0.1), that is
    1.3 - 1.26157 exp(-5 (p - 0.5)^2): 0.0384 at p = 0.5, 0.9386 at 0 and 1. The paper prints the prefactor as
    1 / sqrt(2 pi sigma) with sigma^2 = 0.1; the normal density (and the released code) has sqrt(2 pi sigma^2).

    Args:
        probabilities: Any shape, foreground probability p in [0, 1].

    Returns:
        float32 of the same shape, in [0.0384, 0.9386].
    """
    deviation = np.asarray(probabilities, dtype=np.float32) - np.float32(0.5)
    exponent = deviation * deviation * np.float32(-0.5 / _VARIANCE)
    weights = _CEILING - _DENSITY_AT_MEAN * np.exp(exponent)  # Eq: SemiRES/pwa
    return np.asarray(weights, dtype=np.float32)


def instance_weights(
    probabilities: NDArray[np.float32], outcomes: Sequence[Outcome], *, scope: WeightScope
) -> list[NDArray[np.float32] | None]:
    """Give every instance of one image its weights, or None.

    Args:
        probabilities: [N, H, W] teacher probabilities.
        outcomes: N outcomes. All but "matched" count as unmatched, as in the released code.
        scope: Which instances get weights.

    Returns:
        N entries: [H, W] float32, or None for weight 1 everywhere.
    """
    return [
        pixel_weights(probability) if scope == "all" or (scope == "unmatched" and outcome != "matched") else None
        for probability, outcome in zip(probabilities, outcomes, strict=True)
    ]
