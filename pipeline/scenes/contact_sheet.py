"""Pictures of scenes for the documentation: a grid of tiles with every instance outlined in its class's colour."""

from collections.abc import Sequence

import cv2
import numpy as np
from numpy.typing import NDArray

from pipeline.scenes.render import Scene
from pipeline.scenes.shapes import BENCHMARK_FAMILIES

OUTLINE_COLOURS: tuple[tuple[int, int, int], ...] = (
    (255, 255, 255), (255, 64, 64), (64, 255, 64), (80, 140, 255),
    (255, 255, 64), (255, 80, 255), (64, 255, 255), (255, 160, 40),
)  # fmt: skip
"""RGB; told apart on any fill because every line has a dark border."""
_DARK = (16, 16, 16)
_GAP = 6
_LEGEND_HEIGHT = 26


def draw_outlines(
    image: NDArray[np.uint8],
    masks: NDArray[np.bool_],
    colours: Sequence[tuple[int, int, int]],
    *,
    scale: int = 1,
) -> NDArray[np.uint8]:
    """Draw the outlines of N masks on a copy of an image.

    Args:
        image: [H, W, 3] uint8 RGB.
        masks: [N, H, W] bool, N may be 0.
        colours: N RGB colours.
        scale: enlarge the image first, by pixel repetition, so that outlines lie on pixel edges.

    Returns:
        [scale * H, scale * W, 3] uint8.
    """
    canvas = np.ascontiguousarray(image.repeat(scale, axis=0).repeat(scale, axis=1))
    outlines = [
        cv2.findContours(_enlarged(mask, scale), cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE)[0] for mask in masks
    ]  # holes too
    for contours in outlines:  # all borders first, so that no border covers a neighbour's line
        cv2.drawContours(canvas, contours, -1, _DARK, 3)
    for contours, colour in zip(outlines, colours, strict=True):
        cv2.drawContours(canvas, contours, -1, colour, 1)
    return canvas


def _enlarged(mask: NDArray[np.bool_], scale: int) -> NDArray[np.uint8]:
    return np.ascontiguousarray(mask.repeat(scale, axis=0).repeat(scale, axis=1).astype(np.uint8))


def draw_contact_sheet(
    scenes: Sequence[Scene], *, columns: int = 4, scale: int = 1, class_names: Sequence[str] = tuple(BENCHMARK_FAMILIES)
) -> NDArray[np.uint8]:
    """Tile scenes row by row, each instance outlined in its class's colour, with a legend below.

    Args:
        scenes: at least one, all of one size.
        columns: tiles in a row.
        scale: enlargement of a tile.
        class_names: classes in legend order; families beyond the eighth share colours.

    Returns:
        [H, W, 3] uint8 RGB.
    """
    colours = {name: OUTLINE_COLOURS[i % len(OUTLINE_COLOURS)] for i, name in enumerate(class_names)}
    side = scenes[0].image.shape[0] * scale
    rows = -(-len(scenes) // columns)
    height, width = rows * (side + _GAP) + _GAP, columns * (side + _GAP) + _GAP
    sheet = np.full((height + _LEGEND_HEIGHT, width, 3), 32, np.uint8)
    for place, scene in enumerate(scenes):
        masks = np.array([instance.mask for instance in scene.instances], dtype=bool).reshape(
            -1, *scene.image.shape[:2]
        )
        tile = draw_outlines(scene.image, masks, [colours[i.family] for i in scene.instances], scale=scale)
        top, left = (_GAP + n * (side + _GAP) for n in divmod(place, columns))
        sheet[top : top + side, left : left + side] = tile
    _draw_legend(sheet[height:], colours)
    return sheet


def _draw_legend(strip: NDArray[np.uint8], colours: dict[str, tuple[int, int, int]]) -> None:
    """Write the class names into the strip [h, W, 3], in place."""
    step = strip.shape[1] / max(1, len(colours))
    for place, (name, colour) in enumerate(colours.items()):
        origin = (int(place * step) + _GAP, 17)
        cv2.putText(strip, name, origin, cv2.FONT_HERSHEY_SIMPLEX, 0.45, colour, 1, cv2.LINE_AA)
