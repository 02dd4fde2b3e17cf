"""Point prompts drawn from a teacher's probabilities.

Eq: S4M/point-sampling
"""

from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

from pipeline.masks.window import bounding_window

SamplingRule = Literal["sigmoid_in_mask", "softmax"]
"""sigmoid_in_mask: the paper's Eq. 3. softmax: released code, over the logits of the whole map (far more peaked)."""

SAMPLING_RULES: tuple[str, ...] = get_args(SamplingRule)

_LARGEST_BELOW_ONE = 1.0 - 2.0**-24  # the largest float32 below 1: a saturated sigmoid keeps a finite logit


def sampling_weights(
    probability: NDArray[np.float32], visible: NDArray[np.bool_], *, rule: SamplingRule
) -> NDArray[np.float64]:
    """Give every pixel its chance, not yet normalised.

    Eq: S4M/point-sampling (S4M, Eq. 3): p inside the binary mask (p > 0.5), 0 outside. The "softmax" variant is
    proportional to exp(logit) = p / (1 - p) over the whole visible map. float32 holds logits up to 16.6 so: surer
    pixels are all alike, and the released code, which has the logits themselves, draws the surest of them.

    Args:
        probability: [H, W] foreground probability, or any other shape.
        visible: Of that shape, bool: pixels that may be drawn at all.
        rule: Which distribution.

    Returns:
        float64 of that shape, 0 or more.
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
    possible = visible & (probability > 0.5 if rule == "sigmoid_in_mask" else probability != 0)
    rows, columns = bounding_window(possible)
    possible = possible[rows, columns]
    candidates = np.flatnonzero(possible)
    count = min(num_points, len(candidates))  # the released code crashes with fewer than K
    if count == 0:
        return np.zeros((0, 2), dtype=np.float32)
    chosen = probability[rows, columns][possible]
    weights = sampling_weights(chosen, np.ones(len(chosen), dtype=bool), rule=rule)
    drawn = rng.choice(candidates, size=count, replace=False, p=weights / weights.sum())
    y, x = np.divmod(drawn, possible.shape[1])
    return np.stack([x + columns.start + 0.5, y + rows.start + 0.5], axis=1).astype(np.float32)
