"""Stored masks at another size, by nearest neighbour, without decoding one of them."""

import numpy as np
from numpy.typing import NDArray

from pipeline.masks.library import MaskLibrary
from pipeline.masks.run_encoding import encode_runs
from pipeline.masks.run_lengths import Ints, runs_of_codes


def sampled_places(length: int, size: int) -> Ints:
    """Which of ``length`` pixels lies under the centre of each of ``size`` new ones: [size] int64, rising.

    Exact in integers. The released SemiRES takes the pixel under the corner for its proposals and the one under the
    centre for images and ground truth, so that they are up to a pixel apart; here all are sampled alike.
    """
    return np.asarray((2 * np.arange(size, dtype=np.int64) + 1) * length // (2 * size), np.int64)


def resampled_mask(mask: NDArray[np.bool_], size_hw: tuple[int, int]) -> NDArray[np.bool_]:
    """A dense mask [H, W] bool at another size [h, w], C-contiguous; sides are stretched independently."""
    rows, columns = (sampled_places(old, new) for old, new in zip(mask.shape, size_hw, strict=True))
    return np.ascontiguousarray(mask[rows[:, None], columns])


def resampled_library(library: MaskLibrary, size_hw: tuple[int, int]) -> MaskLibrary:
    """All masks of a library at another size, as :func:`resampled_mask` would give each of them.

    Args:
        library: K masks; one that has no pixel under a new centre stays, with area 0.
        size_hw: The new height and width in pixels.

    Raises:
        AnnotationError: a code is malformed.
    """
    height, width = library.size_hw
    num = len(library)
    runs, offsets = runs_of_codes(library.codes, np.full(num, height * width, np.int64), where="RLE")
    owner, column, top, bottom = _by_columns(runs, np.repeat(np.arange(num), np.diff(offsets)), height)
    top, bottom = (np.searchsorted(sampled_places(height, size_hw[0]), edge) for edge in (top, bottom))
    columns = sampled_places(width, size_hw[1])
    left, right = np.searchsorted(columns, column), np.searchsorted(columns, column, side="right")
    copies = np.where(bottom > top, right - left, 0)  # an enlarged column is repeated, a lost one goes
    pieces = np.repeat(np.arange(len(copies)), copies)
    column = left[pieces] + _counted_up(copies)
    start = column * size_hw[0] + top[pieces]
    order = np.lexsort((start, owner[pieces]))
    pieces, column, start = pieces[order], column[order], start[order]
    length = (bottom - top)[pieces]
    offsets = np.concatenate([[0], np.cumsum(np.bincount(owner[pieces], minlength=num))])
    covered = np.concatenate([[0], np.cumsum(length)])
    codes = encode_runs(np.stack([start, start + length], axis=1), offsets, height=size_hw[0], width=size_hw[1])
    boxes = _boxes(column, top[pieces], bottom[pieces], offsets)
    areas = np.asarray(covered[offsets[1:]] - covered[offsets[:-1]], np.int64)
    return MaskLibrary(size_hw, areas, boxes, tuple(code.encode() for code in codes))


def _by_columns(runs: Ints, owner: Ints, height: int) -> tuple[Ints, Ints, Ints, Ints]:
    """Runs [R, 2] cut where a column ends: owner, column, first row and last row (exclusive) of each piece."""
    first = runs[:, 0] // height
    count = (runs[:, 1] - 1) // height - first + 1
    pieces = np.repeat(np.arange(len(runs)), count)
    column = first[pieces] + _counted_up(count)
    top = np.maximum(runs[pieces, 0] - column * height, 0)
    bottom = np.minimum(runs[pieces, 1] - column * height, height)
    return owner[pieces], column, top, bottom


def _counted_up(counts: Ints) -> Ints:
    """0, 1, ... for each count, in one array."""
    return np.arange(int(counts.sum())) - np.repeat(np.cumsum(counts) - counts, counts)


def _boxes(column: Ints, top: Ints, bottom: Ints, offsets: Ints) -> NDArray[np.float32]:
    """[K, 4] tight boxes x, y, width, height of masks whose pieces lie at offsets [K + 1]; zero without any."""
    boxes = np.zeros((len(offsets) - 1, 4), np.float32)
    filled = np.flatnonzero(np.diff(offsets))
    starts = offsets[filled]
    if len(filled):
        x0, y0 = np.minimum.reduceat(column, starts), np.minimum.reduceat(top, starts)
        x1, y1 = np.maximum.reduceat(column, starts) + 1, np.maximum.reduceat(bottom, starts)
        boxes[filled] = np.stack([x0, y0, x1 - x0, y1 - y0], axis=1)
    return boxes
