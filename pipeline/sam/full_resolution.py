"""Masks at the image's resolution from logits at the decoder's, looking only at the pixels that their outlines cross.

Bilinear values between four logits lie between the least and the greatest of them. So where all four are above a
threshold (or none is) every pixel between them is settled, whatever the image's size; only cells that the outline
crosses are evaluated, each pixel with the arithmetic of ``F.interpolate(mode="bilinear", align_corners=False)``. That
is a few percent of the pixels; memory does not depend on the image's size, and no full-resolution mask ever exists.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

_Cells = tuple[Tensor, Tensor, Tensor]
"""Mask, row and column of N cells, [N] int64 each."""
MAX_VALUES = {"cpu": 2**18, "cuda": 2**25}
"""Logits, and pixels between them, that are looked at together, by device; temporaries take some 30 bytes for each.
On a CPU so few that they stay in its caches; on a GPU many, for every part costs launches and waits."""
_ROUNDING = 1e-5
"""A corner this close to a threshold, relative to the largest logit (or 1), does not settle a cell."""


@dataclass(frozen=True)
class Measures:
    """What full resolution tells of M masks."""

    stability_score: Tensor
    """[M] float32; 0 for an empty mask."""
    boxes_xyxy: Tensor
    """[M, 4] int64, first and last column and row of the mask (both inclusive); 0 for an empty one."""
    nonempty: Tensor
    """[M] bool."""

    def __getitem__(self, keep: Tensor | slice) -> "Measures":
        """A subset by index, bool mask or slice."""
        return Measures(self.stability_score[keep], self.boxes_xyxy[keep], self.nonempty[keep])

    @classmethod
    def joined(cls, parts: Sequence["Measures"]) -> "Measures":
        """One or more, one after the other."""
        return cls(
            torch.cat([part.stability_score for part in parts]),
            torch.cat([part.boxes_xyxy for part in parts]),
            torch.cat([part.nonempty for part in parts]),
        )


class FullResolution:
    """Logits of one size, seen at one image size."""

    def __init__(self, logits_hw: tuple[int, int], size_hw: tuple[int, int], device: torch.device) -> None:
        """Lay the image's pixels over the logits.

        Args:
            logits_hw: h, w of the logits.
            size_hw: H, W of the image in pixels.
            device: of the logits.
        """
        self.size_hw = size_hw
        self._rows, self._columns = (_Axis.of(s, n, device) for s, n in zip(logits_hw, size_hw, strict=True))
        self._has_pixels = (self._rows.count > 0)[:, None] & (self._columns.count > 0)  # [h + 1, w + 1]

    @classmethod
    def of(cls, logits: Tensor, size_hw: tuple[int, int]) -> "FullResolution":
        """For logits [M, h, w] of an image H, W."""
        return cls((logits.shape[1], logits.shape[2]), size_hw, logits.device)

    def measure(self, logits: Tensor, offset: float) -> Measures:
        """Stability, boxes and emptiness of the masks that the upsampled logits have above 0.

        Stability is the IoU of the masks cut at ``offset`` and at ``-offset``; the first lies in the second.

        Args:
            logits: [M, h, w] float32.
            offset: not negative.
        """
        return Measures.joined([self._measure(part, offset) for part in self._split(logits)])

    def runs(self, logits: Tensor) -> tuple[Tensor, Tensor]:
        """Foreground runs, each within one column, of the masks that the upsampled logits have above 0.

        Args:
            logits: [M, h, w] float32.

        Returns:
            ``mask`` [R] int64, rising, and ``spans`` [R, 2] int64, first pixel and end (exclusive) as
            column * H + row, rising within a mask; a run may touch the next where it fills its column.
        """
        masks, spans, done = [], [], 0
        for part in self._split(logits):
            mask, span = self._runs(part)
            masks.append(mask + done)
            spans.append(span)
            done += len(part)
        return torch.cat(masks), torch.cat(spans)

    def _split(self, logits: Tensor) -> tuple[Tensor, ...]:
        size = max(1, MAX_VALUES[logits.device.type] // (logits.shape[1] * logits.shape[2]))
        # One part even of no mask: it says the types of the empty results.
        parts: tuple[Tensor, ...] = logits.split(size)  # type: ignore[no-untyped-call]
        return parts

    def _measure(self, logits: Tensor, offset: float) -> Measures:
        least, most = _corners(logits)
        crossed = self._crossed(least, most, _margin(logits), (offset, 0.0, -offset))
        settled = self._has_pixels & ~crossed
        inner, outer = (self._area((least > threshold) & settled) for threshold in (offset, -offset))
        box = self._box((least > 0) & settled)
        for cells in self._chosen(crossed):
            values = self._values(logits, cells)
            inner.index_add_(0, cells[0], _count(values > offset))
            outer.index_add_(0, cells[0], _count(values > -offset))
            self._extend(box, values > 0, cells)
        first, last = box[:, :2], -box[:, 2:]
        nonempty = last[:, 0] >= 0
        boxes = torch.cat([first, last], 1) * nonempty[:, None]
        return Measures((inner / outer).nan_to_num(0).float(), boxes, nonempty)

    def _runs(self, logits: Tensor) -> tuple[Tensor, Tensor]:
        height, width = self.size_hw
        least, most = _corners(logits)
        crossed = self._crossed(least, most, _margin(logits), (0.0,))
        # A run may also begin or end at an edge of the image, and between pixels that skip logits, where no outline
        # need be.
        rows = self._rows.cell if self._rows.has_gaps else self._rows.cell[[0, -1]]
        crossed[:, rows] |= (most[:, rows] > 0) & self._has_pixels[rows]
        places: dict[str, list[Tensor]] = {"rises": [], "falls": []}
        for cells in self._chosen(crossed):
            mask, row, column = cells
            y, x, count = self._rows.start[row], self._columns.start[column], self._rows.count[row]
            # One row of pixels before the cell's own and one after them.
            above = F.pad(self._values(logits, cells) > 0, (0, 0, 1, 1))
            above[:, 0] = self._line(logits, cells, y - 1) > 0
            above[torch.arange(len(y), device=y.device), count + 1] = self._line(logits, cells, y + count) > 0
            # Changes before each pixel of the cell; that after the last one too, unless the cell below tells of it.
            below = (y + count).clamp(max=height - 1)
            is_told = (y + count < height) & crossed[mask, self._rows.cell[below], column]
            position = torch.arange(above.shape[1] - 1, device=above.device)
            seen = (position < (count + ~is_told)[:, None])[:, :, None]
            origin = mask * (height * width + 1) + x * height + y
            places["rises"].append(_places(above[:, 1:] & ~above[:, :-1] & seen, origin, height))
            places["falls"].append(_places(above[:, :-1] & ~above[:, 1:] & seen, origin, height))
        rises, falls = (torch.cat(found).sort().values for found in places.values())
        mask = rises // (height * width + 1)
        return mask, torch.stack([rises, falls], 1) - (mask * (height * width + 1))[:, None]

    def _crossed(self, least: Tensor, most: Tensor, margin: float, thresholds: tuple[float, ...]) -> Tensor:
        """[M, h + 1, w + 1] bool: cells whose pixels may lie on both sides of a threshold."""
        crossed = torch.zeros_like(least, dtype=torch.bool)
        for threshold in thresholds:
            crossed |= (most > threshold - margin) & (least <= threshold + margin)
        return crossed & self._has_pixels

    def _chosen(self, cells: Tensor) -> Iterator[_Cells]:
        """The chosen cells of [M, h + 1, w + 1] bool, some at a time, always one part."""
        pixels = (self._rows.longest + 2) * self._columns.longest
        for part in cells.nonzero().split(max(1, MAX_VALUES[cells.device.type] // pixels)):  # type: ignore[no-untyped-call]
            mask, row, column = part.unbind(1)
            yield mask, row, column

    def _values(self, logits: Tensor, cells: _Cells) -> Tensor:
        """Upsampled logits [N, k, l] in N cells; minus infinity where a cell has fewer pixels."""
        _, row, column = cells
        y, is_row = self._rows.pixels_of(row)
        _, is_column = self._columns.pixels_of(column)
        share = self._rows.share[y][:, :, None]
        upper, lower = (self._between(logits, cells, side[row]) for side in (self._rows.before, self._rows.after))
        values = upper[:, None] * (1 - share) + lower[:, None] * share
        return values.masked_fill_(~(is_row[:, :, None] & is_column[:, None]), -torch.inf)

    def _line(self, logits: Tensor, cells: _Cells, y: Tensor) -> Tensor:
        """Upsampled logits [N, l] in the columns of N cells at the pixel rows y [N]; minus infinity off the image."""
        _, is_column = self._columns.pixels_of(cells[2])
        inside = (y >= 0) & (y < self.size_hw[0])
        y = y.clamp(0, self.size_hw[0] - 1)
        row, share = self._rows.cell[y], self._rows.share[y][:, None]
        upper, lower = (self._between(logits, cells, side[row]) for side in (self._rows.before, self._rows.after))
        return (upper * (1 - share) + lower * share).masked_fill_(~(is_column & inside[:, None]), -torch.inf)

    def _between(self, logits: Tensor, cells: _Cells, row: Tensor) -> Tensor:
        """Values [N, l] at the pixel columns of N cells on the rows of logits ``row`` [N]."""
        mask, _, column = cells
        x, _ = self._columns.pixels_of(column)
        share = self._columns.share[x]
        left, right = (logits[mask, row, side[column]] for side in (self._columns.before, self._columns.after))
        return left[:, None] * (1 - share) + right[:, None] * share

    def _area(self, settled: Tensor) -> Tensor:
        """[M] int64 pixels of whole cells [M, h + 1, w + 1] bool."""
        columns = settled.float() @ self._columns.count.float()  # [M, h + 1], whole numbers that float32 holds
        return (columns.double() @ self._rows.count.double()).long()

    def _box(self, settled: Tensor) -> Tensor:
        """[M, 4] int64 first column, first row, minus the last column, minus the last row; 1 as last where none is."""
        sides = []
        for axis, occupied in ((self._columns, settled.any(1)), (self._rows, settled.any(2))):
            n = len(axis.cell)
            sides.append(torch.where(occupied, axis.start, n).amin(1))
            sides.append(torch.where(occupied, 1 - axis.start - axis.count, 1).amin(1))
        return torch.stack([sides[0], sides[2], sides[1], sides[3]], 1)

    def _extend(self, box: Tensor, above: Tensor, cells: _Cells) -> None:
        """Widen boxes, as of :meth:`_box`, by pixels [N, k, l] bool of some cells, in place."""
        mask, row, column = cells
        found = above.flatten(1).any(1)
        above, mask = above[found], mask[found]
        sides = []
        for axis, cell, occupied in (
            (self._columns, column[found], above.any(1)),
            (self._rows, row[found], above.any(2)),
        ):
            first = axis.start[cell] + occupied.byte().argmax(1)
            last = axis.start[cell] + occupied.shape[1] - 1 - occupied.flip(1).byte().argmax(1)
            sides += [first, -last]
        corners = torch.stack([sides[0], sides[2], sides[1], sides[3]], 1)
        box.scatter_reduce_(0, mask[:, None].expand(-1, 4), corners, "amin")


@dataclass(frozen=True)
class _Axis:
    """How the n pixels of one axis lie between its s logits: s + 1 cells, of which the outer ones have one logit."""

    cell: Tensor
    """[n] int64 the cell of each pixel."""
    share: Tensor
    """[n] float32 weight of the logit after it."""
    before: Tensor
    """[s + 1] int64 the logit before each cell's pixels ..."""
    after: Tensor
    """[s + 1] int64 ... and the one after them."""
    start: Tensor
    """[s + 1] int64 first pixel of each cell."""
    count: Tensor
    """[s + 1] int64 its pixels, possibly none."""
    longest: int
    """The most pixels of a cell."""
    has_gaps: bool
    """Whether there are cells without a pixel between cells with pixels."""

    @classmethod
    def of(cls, logits: int, pixels: int, device: torch.device) -> "_Axis":
        """In float32 throughout, as torch does it."""
        scale = np.float32(logits) / np.float32(pixels)
        source = scale * (np.arange(pixels, dtype=np.float32) + np.float32(0.5)) - np.float32(0.5)
        low = np.minimum(np.floor(source), logits - 1)
        cell, cells = (low + 1).astype(np.int64), np.arange(logits + 1)
        counts = np.bincount(cell, minlength=logits + 1)
        share = np.where(source < 0, 0, np.clip(source - low, 0, 1)).astype(np.float32)

        def there(array: np.ndarray) -> Tensor:
            return torch.from_numpy(array).to(device)

        return cls(
            cell=there(cell),
            share=there(share),
            before=there(np.maximum(cells - 1, 0)),
            after=there(np.minimum(cells, logits - 1)),
            start=there(np.searchsorted(cell, cells)),
            count=there(counts),
            longest=int(counts.max()),
            has_gaps=bool((np.diff(cell) > 1).any()),
        )

    def pixels_of(self, cells: Tensor) -> tuple[Tensor, Tensor]:
        """Pixels [N, k] of N cells, and whether each is one and not padding, which may be any pixel."""
        steps = torch.arange(self.longest, device=cells.device)
        pixels = (self.start[cells][:, None] + steps).clamp(max=len(self.cell) - 1)
        return pixels, steps < self.count[cells][:, None]


def _corners(logits: Tensor) -> tuple[Tensor, Tensor]:
    """The least and the greatest logit at the corners of every cell, both [M, h + 1, w + 1]."""
    found = []
    for choose in (torch.minimum, torch.maximum):
        pairs = choose(logits[:, :, :-1], logits[:, :, 1:])
        pairs = torch.cat([logits[:, :, :1], pairs, logits[:, :, -1:]], 2)
        found.append(torch.cat([pairs[:, :1], choose(pairs[:, :-1], pairs[:, 1:]), pairs[:, -1:]], 1))
    return found[0], found[1]


def _margin(logits: Tensor) -> float:
    return _ROUNDING * max(1.0, float(logits.abs().max()) if logits.numel() else 0.0)


def _count(chosen: Tensor) -> Tensor:
    """[N] int64 how many of [N, k, l] bool."""
    return chosen.flatten(1).sum(1, dtype=torch.int32).long()


def _places(changes: Tensor, origin: Tensor, height: int) -> Tensor:
    """Where the changes [N, k, l] bool of cells lie that begin at ``origin`` [N], column by column."""
    cell, row, column = changes.nonzero().unbind(1)
    return origin[cell] + column * height + row
