"""Point prompts drawn from a teacher's probabilities.

Eq: S4M/point-sampling
"""

from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

SamplingRule = Literal["sigmoid_in_mask", "softmax"]
"""sigmoid_in_mask: the paper's Eq. 3. softmax: released code, over the logits of the whole map (far more peaked)."""

SAMPLING_RULES: tuple[str, ...] = get_args(SamplingRule)

_LARGEST_BELOW_ONE = 1.0 - 2.0**-24  # the largest float32 below 1: a saturated sigmoid keeps a finite logit


def sampling_weights(
    probability: NDArray[np.float32], visible: NDArray[np.bool_], *, rule: SamplingRule
) -> NDArray[np.float64]:
    """Give every pixel its chance, not yet normalised.

    Eq: S4M/point-sampling (S4M, Eq. 3): p inside the binary mask (p > 0.5), 0 outside. The "softmax" variant is
    proportional to exp(logit) = p / (1 - p) over the whole visible map.

    Args:
        probability: [H, W] foreground probability.
        visible: [H, W] bool, pixels that may be drawn at all.
        rule: Which distribution.

    Returns:
        [H, W] float64, 0 or more.
    """
    p = np.asarray(probability, dtype=np.float64)
    if rule == "softmax":
        p = np.minimum(p, _LARGEST_BELOW_ONE)
        return np.where(visible, p / (1.0 - p), 0.0)
    return np.where(visible & (p > 0.5), p, 0.0)  # Eq: S4M/point-sampling


def sample_points(
    probability: NDArray[np.float32],
    visible: NDArray[np.bool_],
    *,
    num_points: int,
    rule: SamplingRule,
    rng: np.random.Generator,
) -> NDArray[np.float32]:
    """Draw pixel centres without replacement, in proportion to `sampling_weights`.

    Args:
        probability: [H, W] foreground probability.
        visible: [H, W] bool, pixels that may be drawn at all.
        num_points: K, how many to draw.
        rule: Which distribution.
        rng: Source of randomness.

    Returns:
        [min(K, pixels with a chance), 2] float32, (x, y) canonical; pixel (row, column) is (column + 0.5, row + 0.5).
    """
    weights = sampling_weights(probability, visible, rule=rule).ravel()
    candidates = np.flatnonzero(weights)
    count = min(num_points, len(candidates))  # the released code crashes with fewer than K
    if count == 0:
        return np.zeros((0, 2), dtype=np.float32)
    chances = weights[candidates] / weights[candidates].sum()
    rows, columns = np.divmod(rng.choice(candidates, size=count, replace=False, p=chances), probability.shape[1])
    return np.stack([columns + 0.5, rows + 0.5], axis=1).astype(np.float32)
