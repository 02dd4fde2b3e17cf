"""One dense mask that many stored masks are compared with: its box, its area, and its code when it comes to that."""

from dataclasses import dataclass
from functools import cached_property

import cv2
import numpy as np
from numpy.typing import NDArray

from pipeline.masks import rle

_BLOCK_ROWS = 128
_NO_BOX = (0, 0, 0, 0)


@dataclass(frozen=True, eq=False)
class QueryMask:
    """A mask [H, W] bool, looked at once; not to be changed while this is used."""

    mask: NDArray[np.bool_]
    box: tuple[int, int, int, int]
    """x0, y0, x1, y1 (exclusive) of its pixels; all zero for an empty mask."""
    area: int
    """Foreground pixels."""

    @classmethod
    def of(cls, mask: NDArray[np.bool_]) -> "QueryMask":
        """Find box and area of a mask [H, W] bool, C-contiguous where it shall be fast."""
        box = bounding_box(mask)
        x0, y0, x1, y1 = box
        crop = mask[y0:y1, x0:x1].view(np.uint8)
        return cls(mask, box, cv2.countNonZero(crop) if crop.size else 0)

    @cached_property
    def code(self) -> rle.Rle:
        """The mask as a COCO code, from the pixels of its box alone."""
        x0, y0, x1, y1 = self.box
        height, width = self.mask.shape
        crop = self.mask[y0:y1, x0:x1].view(np.uint8)
        if not crop.size:
            return rle.from_edges(np.zeros(0, np.int64), height=height, width=width)
        # A row of background below the box, so that no run of the crop goes on in its next column.
        flat = cv2.transpose(cv2.copyMakeBorder(crop, 0, 1, 0, 0, cv2.BORDER_CONSTANT)).reshape(-1)
        edges = np.flatnonzero(flat[1:] != flat[:-1]) + 1
        if flat[0]:
            edges = np.concatenate([[0], edges])
        columns, places = np.divmod(edges, y1 - y0 + 1)
        edges = (columns + x0) * height + places + y0
        if y1 - y0 == height:
            edges = _without_touching(edges)
        return rle.from_edges(edges, height=height, width=width)

    def shared_with(self, codes: list[bytes]) -> NDArray[np.int64]:
        """Pixels shared with each of K masks of the same size, given as codes: [K]."""
        return rle.shared_pixels(self.code, self.area, codes)


def bounding_box(mask: NDArray[np.bool_]) -> tuple[int, int, int, int]:
    """x0, y0, x1, y1 (exclusive) of the foreground of a mask [H, W] bool; all zero where there is none.

    The first and the last pixel row by row are found at the speed of memory; only the rows between are looked at twice.
    """
    height, width = mask.shape
    if mask.size == 0:
        return _NO_BOX
    first = int(mask.reshape(-1).argmax())
    y0, y1 = first // width, height
    if not mask[y0, first % width]:
        return _NO_BOX
    while y1 - _BLOCK_ROWS > y0 and not _any(mask[y1 - _BLOCK_ROWS : y1]):
        y1 -= _BLOCK_ROWS
    columns = np.asarray(mask[y0:y1].any(axis=0))
    x0, x1 = int(columns.argmax()), width - int(columns[::-1].argmax())
    rows = np.asarray(mask[max(y0, y1 - _BLOCK_ROWS) : y1, x0:x1].any(axis=1))
    return x0, y0, x1, y1 - int(rows[::-1].argmax())


def _any(rows: NDArray[np.bool_]) -> bool:
    flat = rows.reshape(-1)
    return bool(flat[flat.argmax()])  # twice as fast as any()


def _without_touching(edges: NDArray[np.int64]) -> NDArray[np.int64]:
    """Join runs of neighbouring columns that end and begin at the same place: both edges go."""
    touches = np.flatnonzero(edges[1:] == edges[:-1])
    return np.delete(edges, np.concatenate([touches, touches + 1]))
