"""The way between a training view and the canonical frame (the pixels of the decoded original image).

One convention: pixel (row r, column c) covers [c, c + 1) x [r, r + 1), its centre is (x, y) = (c + 0.5, r + 0.5). A
homography maps canonical coordinates to view coordinates. A map of any stride covers its area edge to edge, so cell
(i, j) of an [h, w] map over a canvas of W x H pixels has its centre at ((j + 0.5) W / w, (i + 0.5) H / h).

Flips, resizes, crops and pads leave the axes apart: then both axes are sampled one after the other. Anything else
(rotation, shear, perspective) takes the slower gather. Both are exact to float rounding; identity and flip to the bit.
"""

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]


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
) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    """Bring a network's maps of a view into the canonical frame, by bilinear sampling at pixel centres.

    Args:
        probabilities: [N, h, w], at any stride.
        homography: [3, 3] canonical to view.
        view_hw: The valid (not padded) area of the view in pixels.
        canonical_hw: Size of the canonical frame in pixels.
        canvas_hw: The area in view pixels that the maps cover, padding included; the valid area by default.

    Returns:
        maps [N, H, W] float32, 0 where not visible, and visible [H, W] bool: canonical pixels whose centre falls
        inside the valid area.
    """
    maps = np.asarray(probabilities, dtype=np.float32)
    x, y = _mapped_centres(np.asarray(homography, dtype=np.float64), canonical_hw)
    visible = _inside(x, y, view_hw)
    canvas_h, canvas_w = canvas_hw or view_hw
    cell_x, cell_y = x * (maps.shape[2] / canvas_w), y * (maps.shape[1] / canvas_h)
    return _bilinear(maps, cell_x, cell_y, visible, outside=0.0), visible


def warp_to_view(
    masks: NDArray[np.bool_], homography: NDArray[np.floating], *, view_hw: tuple[int, int]
) -> NDArray[np.bool_]:
    """Bring canonical masks into a view: every view pixel takes the canonical pixel under its centre.

    Args:
        masks: [N, H, W] bool canonical.
        homography: [3, 3] canonical to view.
        view_hw: Size of the result; centres that lie outside the canonical frame (padding) become False.

    Returns:
        [N, h, w] bool.
    """
    height, width = masks.shape[1:]
    x, y = _mapped_centres(np.linalg.inv(np.asarray(homography, dtype=np.float64)), view_hw)
    inside = _inside(x, y, (height, width))
    columns = _clipped_floor(x, width)
    rows = _clipped_floor(y, height)
    return np.asarray(masks[:, rows, columns] & inside)


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


def _inside(x: Floats, y: Floats, size_hw: tuple[int, int]) -> NDArray[np.bool_]:
    """[H, W] bool: x in [0, width) and y in [0, height); never true for NaN."""
    return np.asarray((x >= 0) & (x < size_hw[1]) & (y >= 0) & (y < size_hw[0]))


def _clipped_floor(values: Floats, count: int) -> NDArray[np.int64]:
    return np.asarray(np.clip(np.nan_to_num(np.floor(values)), 0, count - 1), dtype=np.int64)


def _bilinear(
    maps: NDArray[np.float32], x: Floats, y: Floats, wanted: NDArray[np.bool_], *, outside: float
) -> NDArray[np.float32]:
    """Sample maps [N, h, w] at cell coordinates (centres at +0.5, clamped at the border) where `wanted` [H, W]."""
    out = np.full((len(maps), *wanted.shape), outside, dtype=np.float32)
    if not wanted.any() or len(maps) == 0:
        return out
    if len(x) == 1 and y.shape[1] == 1:  # axes apart: `wanted` is a rectangle
        rows, columns = np.flatnonzero(wanted.any(axis=1)), np.flatnonzero(wanted.any(axis=0))
        rectangle = _blend_axis(_blend_axis(maps, y[rows, 0], axis=1), x[0, columns], axis=2)
        out[:, rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1] = rectangle
        return out
    left, right, across = _neighbours(x[wanted], maps.shape[2])
    upper, lower, down = _neighbours(y[wanted], maps.shape[1])
    top = maps[:, upper, left] * (1 - across) + maps[:, upper, right] * across
    bottom = maps[:, lower, left] * (1 - across) + maps[:, lower, right] * across
    out[:, wanted] = top * (1 - down) + bottom * down
    return out


def _blend_axis(maps: NDArray[np.float32], coordinates: Floats, *, axis: int) -> NDArray[np.float32]:
    """Sample one axis of [N, h, w] maps at cell coordinates [T]."""
    before, after, share = _neighbours(coordinates, maps.shape[axis])
    first = maps.take(before, axis=axis)
    if not share.any():
        return first
    share = share[:, None] if axis == 1 else share
    return np.asarray(first * (1 - share) + maps.take(after, axis=axis) * share, dtype=np.float32)


def _neighbours(coordinates: Floats, count: int) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float32]]:
    """The cells before and after a coordinate and the share of the one after; clamped to the outermost centres."""
    position = np.clip(coordinates - 0.5, 0, count - 1)
    before = np.floor(position).astype(np.int64)
    return before, np.minimum(before + 1, count - 1), (position - before).astype(np.float32)
