"""Small holes and islands of masks, removed at full resolution: the only step that paints masks."""

import cv2
import numpy as np
from numpy.typing import NDArray


def clean(mask: NDArray[np.bool_], min_area: int) -> tuple[NDArray[np.bool_], bool]:
    """Fill holes, then drop islands, of fewer than ``min_area`` pixels (8-neighbours both).

    If all islands are that small the largest stays.

    Args:
        mask: [H, W] bool, not empty.
        min_area: pixels.

    Returns:
        The mask, and whether it had such a hole or island.
    """
    holes, small_holes = _regions(~mask, min_area)
    filled = mask | small_holes[holes]
    islands, small_islands = _regions(filled, min_area)
    had_small = bool(small_holes.any() or small_islands.any())
    if small_islands[1:].all():
        small_islands[1 + np.bincount(islands.ravel())[1:].argmax()] = False
    return filled & ~small_islands[islands], had_small


def _regions(mask: NDArray[np.bool_], min_area: int) -> tuple[NDArray[np.int32], NDArray[np.bool_]]:
    """Labels [H, W] of the connected regions, 0 outside, and which labels are small."""
    _, labels, stats, _ = cv2.connectedComponentsWithStats(mask.astype(np.uint8), connectivity=8)
    small = np.asarray(stats[:, cv2.CC_STAT_AREA] < min_area)
    small[0] = False
    return np.asarray(labels, np.int32), small
