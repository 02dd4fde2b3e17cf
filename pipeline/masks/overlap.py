"""Overlaps of masks: exact intersections from runs, without decoding, and dense IoU for small sets.

With S the exclusive prefix sum of a mask in column-major order, a proposal's intersection with it is the sum over the
proposal's runs of S[end] - S[start]: exact integers, the same as a loop over pixels.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import InputError
from pipeline.masks.rle import Rle, dense, runs_of_many


@dataclass(frozen=True)
class RunTable:
    """The foreground runs of K masks of one size, concatenated."""

    runs: NDArray[np.int64]
    """[R, 2] start, end (exclusive), column-major flat pixel index."""
    offsets: NDArray[np.int64]
    """[K + 1]: the runs of mask k are runs[offsets[k]:offsets[k + 1]]."""
    height: int
    width: int

    @classmethod
    def from_rles(cls, rles: Sequence[Rle], *, size_hw: tuple[int, int]) -> "RunTable":
        """Read the runs of K codes (K may be 0).

        Args:
            rles: Codes of masks of one size.
            size_hw: That size, in pixels.

        Raises:
            InputError: a mask has another size.
            AnnotationError: a code is malformed.
        """
        for index, rle in enumerate(rles):
            if tuple(rle["size"]) != tuple(size_hw):
                raise InputError(
                    "a mask has another size than its image",
                    where=f"mask {index} of {len(rles)}",
                    expected=list(size_hw),
                    got=list(rle["size"]),
                    fix="was the image replaced after the masks were made? make them again",
                )
        return cls(*runs_of_many(rles), height=size_hw[0], width=size_hw[1])

    def __len__(self) -> int:
        """Return the number of masks."""
        return len(self.offsets) - 1

    def union(self, chosen: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Decode the union of the chosen masks.

        Args:
            chosen: [C] indices of masks; only these are decoded.

        Returns:
            [H, W] bool.
        """
        parts = [self.runs[self.offsets[index] : self.offsets[index + 1]] for index in chosen]
        runs = np.concatenate(parts) if parts else self.runs[:0]
        return dense(runs, height=self.height, width=self.width)


def intersections(table: RunTable, mask: NDArray[np.bool_]) -> NDArray[np.int64]:
    """Count the pixels that each of K masks shares with one dense mask, decoding none.

    Args:
        table: Runs of K masks.
        mask: [H, W] bool. Given the visible region, this is the visible area of every mask.

    Returns:
        [K] int64 pixels.
    """
    if mask.shape != (table.height, table.width):
        raise ValueError(f"mask is {mask.shape}, the runs are of {(table.height, table.width)}")
    used = np.flatnonzero(mask.any(axis=0))
    if len(used) == 0 or len(table.runs) == 0:
        return np.zeros(len(table), dtype=np.int64)
    # Only the columns the mask touches can add to a sum; a small instance makes a short prefix sum.
    first, last = int(used[0]), int(used[-1]) + 1
    columns = np.ascontiguousarray(mask[:, first:last].T)
    prefix = np.zeros(columns.size + 1, dtype=np.int32)
    np.cumsum(columns.ravel(), dtype=np.int32, out=prefix[1:])
    ends = np.clip(table.runs - first * table.height, 0, columns.size)
    per_run = (prefix[ends[:, 1]] - prefix[ends[:, 0]]).astype(np.int64)
    total: NDArray[np.int64] = np.concatenate(
        [[0], np.cumsum(per_run)]
    )  # differences at the offsets: masks without a run get 0
    return np.asarray(total[table.offsets[1:]] - total[table.offsets[:-1]], dtype=np.int64)


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


def pairwise_coverage(masks: NDArray[np.bool_], others: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Share of every mask that every other covers: intersection over the area of the first.

    Args:
        masks: [N, H, W] bool.
        others: [M, H, W] bool.

    Returns:
        [N, M] float64 in [0, 1]; 0 where the first is empty.
    """
    shared = _shared_pixels(masks, others)
    areas = np.broadcast_to(_areas(masks)[:, None], shared.shape)
    return np.divide(shared, areas, out=np.zeros(shared.shape), where=areas > 0)


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
