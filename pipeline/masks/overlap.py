"""Overlaps of dense masks, for small sets: intersection over union. Stored masks: ``masks/query.py``."""

import numpy as np
from numpy.typing import NDArray

from pipeline.masks.window import Window, bounding_window


def pairwise_iou(masks: NDArray[np.bool_], others: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Intersection over union of every mask with every other.

    Args:
        masks: [N, H, W] bool.
        others: [M, H, W] bool.

    Returns:
        [N, M] float64 in [0, 1]; 0 where both are empty.
    """
    shared = _shared_pixels(masks, others)
    union = mask_areas(masks)[:, None] + mask_areas(others)[None] - shared
    return np.asarray(np.divide(shared, union, out=np.zeros(shared.shape), where=union > 0))


def mask_iou(mask: NDArray[np.bool_], other: NDArray[np.bool_]) -> float:
    """Intersection over union of two masks [H, W] bool; 0 if both are empty."""
    union = int(np.count_nonzero(mask | other))
    return int(np.count_nonzero(mask & other)) / union if union else 0.0


def mask_areas(masks: NDArray[np.bool_]) -> NDArray[np.int64]:
    """Pixels of each mask of [N, H, W] bool: [N] int64."""
    return np.array([np.count_nonzero(mask) for mask in masks], dtype=np.int64)  # with axes, numpy adds bit by bit


def _shared_pixels(masks: NDArray[np.bool_], others: NDArray[np.bool_]) -> NDArray[np.int64]:
    """[N, M] pixels that each mask has in common with each other: counted where their windows overlap."""
    shared = np.zeros((len(masks), len(others)), dtype=np.int64)
    windows = [[bounding_window(mask) for mask in each] for each in (masks, others)]
    tops, bottoms = _common(windows, axis=0)
    lefts, rights = _common(windows, axis=1)
    for row, column in np.argwhere((tops < bottoms) & (lefts < rights)).tolist():
        here = np.s_[tops[row, column] : bottoms[row, column], lefts[row, column] : rights[row, column]]
        shared[row, column] = np.count_nonzero(masks[row][here] & others[column][here])
    return shared


def _common(windows: list[list[Window]], *, axis: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Along an axis [N, M] first and last + 1 of what every two windows have in common; the last is not below the first
    where there is nothing."""
    starts, stops = (
        [np.array([getattr(window[axis], end) for window in each], dtype=np.int64) for each in windows]
        for end in ("start", "stop")
    )
    return np.maximum.outer(*starts), np.minimum.outer(*stops)
