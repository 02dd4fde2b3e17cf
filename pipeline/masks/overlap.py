"""Overlaps of dense masks, for small sets: intersection over union. Stored masks: ``masks/query.py``."""

import numpy as np
from numpy.typing import NDArray


def pairwise_iou(masks: NDArray[np.bool_], others: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Intersection over union of every mask with every other.

    Args:
        masks: [N, H, W] bool.
        others: [M, H, W] bool.

    Returns:
        [N, M] float64 in [0, 1]; 0 where both are empty.
    """
    shared = _shared_pixels(masks, others)
    union = _areas(masks)[:, None] + _areas(others)[None] - shared
    return np.asarray(np.divide(shared, union, out=np.zeros(shared.shape), where=union > 0))


def mask_iou(mask: NDArray[np.bool_], other: NDArray[np.bool_]) -> float:
    """Intersection over union of two masks [H, W] bool; 0 if both are empty."""
    union = int(np.count_nonzero(mask | other))
    return int(np.count_nonzero(mask & other)) / union if union else 0.0


def _areas(masks: NDArray[np.bool_]) -> NDArray[np.int64]:
    return np.asarray(np.count_nonzero(masks, axis=(1, 2)), dtype=np.int64)


def _shared_pixels(masks: NDArray[np.bool_], others: NDArray[np.bool_]) -> NDArray[np.int64]:
    shared = np.zeros((len(masks), len(others)), dtype=np.int64)
    for row, mask in enumerate(masks):  # integers, so no float rounding, whatever the area
        shared[row] = np.count_nonzero(others & mask, axis=(1, 2))
    return shared
