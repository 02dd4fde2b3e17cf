"""The way between a training view and the canonical frame (the pixels of the decoded original image).

One convention: pixel (row r, column c) covers [c, c + 1) x [r, r + 1), its centre is (x, y) = (c + 0.5, r + 0.5). A
homography maps canonical coordinates to view coordinates. A map of any stride covers its area edge to edge, so cell
(i, j) of an [h, w] map over a canvas of W x H pixels has its centre at ((j + 0.5) W / w, (i + 0.5) H / h).

Flips, resizes, crops and pads leave the axes apart: then both axes are sampled one after the other. Anything else
(rotation, shear, perspective) takes the slower gather. Both are exact to float rounding; identity and flip to the bit.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pipeline.masks.window import bounding_window

Floats = NDArray[np.float64]
Activation = Callable[[NDArray[np.float32]], NDArray[np.float32]]
"""Of values, each by itself: float32 of any shape to float32 of that shape."""

_BLOCK = 1 << 15
"""Values sampled at a time: they stay in the processor's cache."""


def map_points(points_xy: NDArray[np.floating], homography: NDArray[np.floating]) -> Floats:
    """Map points by a homography.

    Args:
        points_xy: [..., 2] x, y in pixels.
        homography: [3, 3].

    Returns:
        [..., 2] float64; not finite where a perspective sends a point to infinity.
    """
    points = np.asarray(points_xy, dtype=np.float64)
    matrix = np.asarray(homography, dtype=np.float64)
    mapped = points @ matrix[:, :2].T + matrix[:, 2]
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.asarray(mapped[..., :2] / mapped[..., 2:])


def warp_to_canonical(
    probabilities: NDArray[np.float32],
    homography: NDArray[np.floating],
    *,
    view_hw: tuple[int, int],
    canonical_hw: tuple[int, int],
    canvas_hw: tuple[int, int] | None = None,
    activation: Activation | None = None,
) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    """Bring a network's maps of a view into the canonical frame, by bilinear sampling at pixel centres.

    Args:
        probabilities: [N, h, w], at any stride.
        homography: [3, 3] canonical to view.
        view_hw: The valid (not padded) area of the view in pixels.
        canonical_hw: Size of the canonical frame in pixels.
        canvas_hw: The area in view pixels that the maps cover, padding included; the valid area by default.
        activation: What the sampled values go through: of logits that are to become probabilities.

    Returns:
        maps [N, H, W] float32, 0 where not visible, and visible [H, W] bool: canonical pixels whose centre falls
        inside the valid area.
    """
    maps = np.asarray(probabilities, dtype=np.float32)
    x, y = _mapped_centres(np.asarray(homography, dtype=np.float64), canonical_hw)
    visible = _inside(x, y, view_hw)
    canvas_h, canvas_w = canvas_hw or view_hw
    cell_x, cell_y = x * (maps.shape[2] / canvas_w), y * (maps.shape[1] / canvas_h)
    return _bilinear(maps, cell_x, cell_y, visible, outside=0.0, activation=activation), visible


def warp_to_view(
    masks: NDArray[np.bool_],
    homography: NDArray[np.floating],
    *,
    view_hw: tuple[int, int],
    canvas_hw: tuple[int, int] | None = None,
) -> NDArray[np.bool_]:
    """Bring canonical masks into a view: every view pixel takes the canonical pixel under its centre.

    Args:
        masks: [N, H, W] bool canonical.
        homography: [3, 3] canonical to view.
        view_hw: Which pixels may show something; centres outside the canonical frame become False.
        canvas_hw: Size of the result, at least that of the view, whose size it is by default; what is beyond the view
            is False.

    Returns:
        [N, h, w] bool.
    """
    height, width = masks.shape[1:]
    x, y = _mapped_centres(np.linalg.inv(np.asarray(homography, dtype=np.float64)), view_hw)
    warped = np.zeros((len(masks), *(canvas_hw or view_hw)), dtype=bool)
    shown = warped[:, : view_hw[0], : view_hw[1]]
    columns, rows = _clipped_floor(x, width), _clipped_floor(y, height)
    if not _is_separable(x, y):
        shown[:] = masks[:, rows, columns] & _inside(x, y, (height, width))
        return warped
    rows[(y < 0) | (y >= height)] = -1
    columns[(x < 0) | (x >= width)] = -1
    part = _seen(rows), _seen(columns)
    for mask, target in zip(masks[:, *part], shown, strict=True):
        _copy_object(mask, target, rows[:, 0] - part[0].start, columns[0] - part[1].start)
    return warped


def _seen(indices: NDArray[np.int64]) -> slice:
    """From the lowest to the highest index that is not negative."""
    seen = indices[indices >= 0]
    return slice(int(seen.min()), int(seen.max()) + 1) if len(seen) else slice(0, 0)


def _copy_object(
    mask: NDArray[np.bool_], target: NDArray[np.bool_], rows: NDArray[np.int64], columns: NDArray[np.int64]
) -> None:
    """Set target [h, w], all False, to mask[rows][:, columns]; negative indices leave it False. Only the mask's window
    is looked at; the indices rise or fall throughout."""
    window = bounding_window(mask)
    taken_rows, taken_columns = (_run(indices, part) for indices, part in zip((rows, columns), window, strict=True))
    from_rows, from_columns = rows[taken_rows] - window[0].start, columns[taken_columns] - window[1].start
    target[taken_rows, taken_columns] = mask[window].take(from_rows, axis=0).take(from_columns, axis=1)


def _run(indices: NDArray[np.int64], part: slice) -> slice:
    """Where indices that rise or fall are within a part."""
    where = np.flatnonzero((indices >= part.start) & (indices < part.stop))
    return slice(int(where[0]), int(where[-1]) + 1) if len(where) else slice(0, 0)


def warp_maps_to_view(
    maps: NDArray[np.float32], homography: NDArray[np.floating], *, view_hw: tuple[int, int], outside: float = 0.0
) -> NDArray[np.float32]:
    """Bring canonical maps (loss weights, probabilities) into a view, by bilinear sampling at pixel centres.

    Args:
        maps: [N, H, W] float32 canonical.
        homography: [3, 3] canonical to view.
        view_hw: Size of the result.
        outside: Value of view pixels that lie outside the canonical frame (padding).

    Returns:
        [N, h, w] float32.
    """
    x, y = _mapped_centres(np.linalg.inv(np.asarray(homography, dtype=np.float64)), view_hw)
    inside = _inside(x, y, (maps.shape[1], maps.shape[2]))
    return _bilinear(np.asarray(maps, dtype=np.float32), x, y, inside, outside=outside)


def _mapped_centres(matrix: Floats, size_hw: tuple[int, int]) -> tuple[Floats, Floats]:
    """Map all pixel centres of a frame.

    Returns:
        x and y: [1, W] and [H, 1] where the axes stay apart, both [H, W] otherwise.
    """
    columns, rows = np.arange(size_hw[1]) + 0.5, np.arange(size_hw[0]) + 0.5
    matrix = matrix / matrix[2, 2]
    if not matrix[[0, 1, 2, 2], [1, 0, 0, 1]].any():
        return (matrix[0, 0] * columns + matrix[0, 2])[None], (matrix[1, 1] * rows + matrix[1, 2])[:, None]
    grid = np.stack(np.meshgrid(columns, rows), axis=-1)  # [H, W, 2]
    mapped = map_points(grid, matrix)
    behind = grid @ matrix[2, :2] + 1.0 <= 0  # a perspective shows nothing behind the camera
    mapped[behind] = np.nan
    return mapped[..., 0], mapped[..., 1]


def _is_separable(x: Floats, y: Floats) -> bool:
    """Whether these are the centres of `_mapped_centres` where the axes stay apart."""
    return len(x) == 1 and y.shape[1] == 1


def _inside(x: Floats, y: Floats, size_hw: tuple[int, int]) -> NDArray[np.bool_]:
    """[H, W] bool: x in [0, width) and y in [0, height); never true for NaN."""
    return np.asarray(((x >= 0) & (x < size_hw[1])) & ((y >= 0) & (y < size_hw[0])))


def _clipped_floor(values: Floats, count: int) -> NDArray[np.int64]:
    return np.asarray(np.clip(np.nan_to_num(np.floor(values)), 0, count - 1), dtype=np.int64)


def _bilinear(
    maps: NDArray[np.float32],
    x: Floats,
    y: Floats,
    wanted: NDArray[np.bool_],
    *,
    outside: float,
    activation: Activation | None = None,
) -> NDArray[np.float32]:
    """Sample maps [N, h, w] at cell coordinates (centres at +0.5, clamped at the border) where `wanted` [H, W]."""
    shape = (len(maps), *wanted.shape)
    # Of zeros, those never written to take no memory and no time.
    out = np.zeros(shape, dtype=np.float32) if outside == 0 else np.full(shape, outside, dtype=np.float32)
    if not wanted.any() or len(maps) == 0:
        return out
    if not _is_separable(x, y):
        sampled = _gathered(maps, x[wanted], y[wanted])
        out[:, wanted] = sampled if activation is None else activation(sampled)
        return out
    rows, columns = bounding_window(wanted)  # all of it is wanted
    down, across = _taps(y[rows, 0], maps.shape[1]), _taps(x[0, columns], maps.shape[2])
    for values, target in zip(maps, out[:, rows, columns], strict=True):
        _fill(target, values, down, across, activation)
    return out


@dataclass(frozen=True)
class _Taps:
    """Of T samples along one axis."""

    before: NDArray[np.int64]
    """[T] the cell before each sample, clamped to the outermost centres."""
    after: NDArray[np.int64]
    """[T] the one after it."""
    share: NDArray[np.float32] | None
    """[T] how much of the one after it; None where all lie on centres."""

    def part(self, which: slice) -> "_Taps":
        return _Taps(self.before[which], self.after[which], None if self.share is None else self.share[which])


def _taps(coordinates: Floats, count: int) -> _Taps:
    """The taps of cell coordinates [T] (centres at +0.5) among this many cells."""
    position = np.clip(coordinates - 0.5, 0, count - 1)
    before = np.floor(position).astype(np.int64)
    share = (position - before).astype(np.float32)
    return _Taps(before, np.minimum(before + 1, count - 1), share if share.any() else None)


def _fill(
    target: NDArray[np.float32],
    values: NDArray[np.float32],
    down: _Taps,
    across: _Taps,
    activation: Activation | None,
) -> None:
    """Sample one map [h, w] into target [H, W], some rows at a time."""
    step = max(1, _BLOCK // target.shape[1])
    for start in range(0, len(target), step):
        rows = slice(start, start + step)
        sampled = _blend(_blend(values, down.part(rows), axis=0), across, axis=1)
        target[rows] = sampled if activation is None else activation(sampled)


def _blend(values: NDArray[np.float32], taps: _Taps, *, axis: int) -> NDArray[np.float32]:
    """Sample one axis of values [h, w]."""
    first = values.take(taps.before, axis=axis)
    if taps.share is None:
        return first
    share = taps.share[:, None] if axis == 0 else taps.share
    second = values.take(taps.after, axis=axis)
    first *= 1 - share
    second *= share
    first += second
    return first


def _gathered(maps: NDArray[np.float32], x: Floats, y: Floats) -> NDArray[np.float32]:
    """Maps [N, h, w] at K cell coordinates, each with its own row and column: [N, K] float32."""
    across, down = _taps(x, maps.shape[2]), _taps(y, maps.shape[1])
    right = np.float32(0) if across.share is None else across.share
    lower = np.float32(0) if down.share is None else down.share
    top = maps[:, down.before, across.before] * (1 - right) + maps[:, down.before, across.after] * right
    bottom = maps[:, down.after, across.before] * (1 - right) + maps[:, down.after, across.after] * right
    return np.asarray(top * (1 - lower) + bottom * lower, dtype=np.float32)
