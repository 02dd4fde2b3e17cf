"""The rows and columns that hold a mask: what is outside of them need not be looked at."""

import numpy as np
from numpy.typing import NDArray

Window = tuple[slice, slice]
"""Rows, columns: ``array[..., *window]``."""


def bounding_window(mask: NDArray[np.bool_]) -> Window:
    """The smallest window with every pixel of a mask.

    Args:
        mask: [H, W] bool.

    Returns:
        Rows and columns; both ``slice(0, 0)`` for a mask without a pixel.
    """
    rows = _span(mask, axis=0)
    return rows, _span(mask[rows], axis=1)


def _span(mask: NDArray[np.bool_], *, axis: int) -> slice:
    where = np.flatnonzero(mask.any(axis=1 - axis))
    return slice(int(where[0]), int(where[-1]) + 1) if len(where) else slice(0, 0)
