"""Pages of captioned panels for the documentation: rows and columns of pictures, each with its words below it."""

from collections.abc import Sequence
from pathlib import Path
from textwrap import wrap

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from pipeline.scenes.contact_sheet import OUTLINE_COLOURS, draw_outlines

Pixels = NDArray[np.uint8]
"""[H, W, 3] RGB."""
Panel = tuple[Pixels, str]
"""A picture and one line below it."""
_GAP, _MARGIN = 8, 10
_TITLE, _CAPTION, _NOTE = 14, 12, 13
"""Sizes of letters."""


def page(titles: Sequence[str], rows: Sequence[Sequence[Panel]], note: str) -> Pixels:
    """Panels below their columns' titles, and a note under all of them.

    Args:
        titles: One for each column.
        rows: Panels of any sizes, as many in every row.
        note: A few sentences, wrapped to the page's width.

    Returns:
        [H, W, 3] uint8 RGB.
    """
    column = max(picture.shape[1] for row in rows for picture, _ in row) + _GAP
    width = column * len(titles) - _GAP + 2 * _MARGIN
    heights = [max(picture.shape[0] for picture, _ in row) + _CAPTION + 2 * _GAP for row in rows]
    lines = wrap(note, int(width / (0.5 * _NOTE)))
    head = _MARGIN + _TITLE + _GAP
    sheet = Image.new("RGB", (width, head + sum(heights) + len(lines) * (_NOTE + 4) + _MARGIN), "white")
    pen = ImageDraw.Draw(sheet)
    for place, title in enumerate(titles):
        pen.text((_MARGIN + place * column, _MARGIN), title, "black", ImageFont.load_default(_TITLE))
    top = head
    for row, height in zip(rows, heights, strict=True):
        for place, (picture, caption) in enumerate(row):
            left = _MARGIN + place * column
            sheet.paste(Image.fromarray(picture), (left, top))
            below = top + picture.shape[0] + 2
            pen.text((left, below), caption, "black", ImageFont.load_default(_CAPTION))
        top += height
    for number, line in enumerate(lines):
        pen.text((_MARGIN, top + number * (_NOTE + 4)), line, "black", ImageFont.load_default(_NOTE))
    return np.asarray(sheet)


def save(picture: Pixels, path: Path, *, colours: int = 256) -> None:
    """Write a PNG with a palette: textures of scenes would take three times as much without."""
    path.parent.mkdir(parents=True, exist_ok=True)
    small = Image.fromarray(picture).quantize(colours, kmeans=3, dither=Image.Dither.NONE)
    small.save(path, optimize=True)


def outlined(image: Pixels, masks: NDArray[np.bool_], labels: NDArray[np.int64], *, side: int) -> Pixels:
    """An image and masks [N, H, W] at another longest side, every mask outlined in its class's colour."""
    scale = side / max(image.shape[:2])
    height, width = (round(length * scale) for length in image.shape[:2])
    way = cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR
    sized = np.asarray(cv2.resize(image, (width, height), interpolation=way), np.uint8)
    inside = [cv2.resize(mask.astype(np.float32), (width, height), interpolation=way) >= 0.5 for mask in masks]
    colours = [OUTLINE_COLOURS[label % len(OUTLINE_COLOURS)] for label in labels.tolist()]
    return draw_outlines(sized, np.array(inside, bool).reshape(-1, height, width), colours)
