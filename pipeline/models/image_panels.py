"""Small pictures of what a training does: masks on views, and similarity rows as heat; numpy arrays in and out."""

from collections.abc import Sequence

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from pipeline.distill.self_similarity import View, similarity_rows
from pipeline.masks.warp import warp_maps_to_view

Image = NDArray[np.uint8]
"""[H, W, 3] RGB."""
TILE = 144
"""Longest side of a picture, in pixels."""
_GAP = 4
_TINT = 0.5


def tile_hw(size_hw: tuple[int, int]) -> tuple[int, int]:
    """Size of a small picture of something of this size."""
    scale = min(TILE / max(size_hw), 1.0)
    return max(round(size_hw[0] * scale), 1), max(round(size_hw[1] * scale), 1)


def masks_on(image: Image, masks: NDArray[np.bool_]) -> Image:
    """A small picture with masks [N, H, W] in colours, each with its outline; later ones lie on top."""
    height, width = tile_hw(image.shape[:2])
    picture = shrunk(image)
    for mask, colour in zip(masks, _colours(len(masks)), strict=True):
        # The mean, not the nearest: a thin object would vanish.
        covered = cv2.resize(mask.astype(np.float32), (width, height), interpolation=cv2.INTER_AREA) >= 0.5
        picture[covered] = (1 - _TINT) * picture[covered] + _TINT * colour
        outlines, _ = cv2.findContours(covered.astype(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
        cv2.drawContours(picture, outlines, -1, colour.tolist(), 1)
    return picture


def shrunk(image: Image) -> Image:
    """The image at the size of a small picture."""
    height, width = tile_hw(image.shape[:2])
    return np.asarray(cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA), np.uint8)


def in_view(logits: Tensor, canvas_hw: tuple[int, int]) -> NDArray[np.bool_]:
    """Mask logits [N, h, w] of a network as masks [N, H, W] of the canvas."""
    if not len(logits):
        return np.zeros((0, *canvas_hw), bool)
    large = F.interpolate(logits[None].float(), canvas_hw, mode="bilinear", align_corners=False)[0]
    return np.asarray((large > 0).cpu().numpy())


def heat_in_view(row: NDArray[np.float32], view: View) -> Image:
    """A similarity row [gh, gw] of the canonical image, from -1 (blue) to 1 (red), as the view shows it; small."""
    grid_hw, size_hw = row.shape, tile_hw(view.canvas_hw)
    to_canonical = np.diag([view.canonical_hw[1] / grid_hw[1], view.canonical_hw[0] / grid_hw[0], 1.0])
    to_tile = np.diag([size_hw[1] / view.canvas_hw[1], size_hw[0] / view.canvas_hw[0], 1.0])
    homography = to_tile @ view.homography.cpu().numpy().astype(np.float64) @ to_canonical
    values = warp_maps_to_view(row[None].astype(np.float32), homography, view_hw=size_hw, outside=np.nan)[0]
    levels = np.nan_to_num((np.clip(values, -1, 1) + 1) * 127.5, nan=0).astype(np.uint8)
    picture = cv2.cvtColor(cv2.applyColorMap(levels, cv2.COLORMAP_JET), cv2.COLOR_BGR2RGB)
    picture[np.isnan(values)] = 0
    return np.asarray(picture, np.uint8)


@torch.no_grad()
def model_row(feature: Tensor, view: View, cell: Tensor, grid_hw: tuple[int, int]) -> NDArray[np.float32]:
    """A network's similarity row [gh, gw] for one cell: ``feature`` [C, h, w], ``cell`` [1]; not drawn where unseen."""
    with torch.autocast(feature.device.type, enabled=False):
        row, visible = similarity_rows(feature.detach().float(), view, cell, grid_hw)
    row = torch.where(visible, row, torch.nan)
    return np.asarray(row.reshape(grid_hw).float().cpu().numpy())


def marked(picture: Image, cell: int, grid_hw: tuple[int, int], view: View) -> Image:
    """A small picture of a view with a cross at a cell of the canonical grid."""
    height, width = picture.shape[:2]
    x = (cell % grid_hw[1] + 0.5) * view.canonical_hw[1] / grid_hw[1]
    y = (cell // grid_hw[1] + 0.5) * view.canonical_hw[0] / grid_hw[0]
    mapped = view.homography.cpu().numpy().astype(np.float64) @ (x, y, 1.0)
    place = mapped[:2] / mapped[2] * (width / view.canvas_hw[1], height / view.canvas_hw[0])
    out = picture.copy()
    cv2.drawMarker(out, (int(place[0]), int(place[1])), (255, 255, 255), cv2.MARKER_CROSS, 9, 3)
    cv2.drawMarker(out, (int(place[0]), int(place[1])), (0, 0, 0), cv2.MARKER_CROSS, 7, 1)
    return out


def sheet(rows: Sequence[Sequence[Image]]) -> Image:
    """Pictures of any sizes in rows and columns, with gaps."""
    height = max(picture.shape[0] for row in rows for picture in row) + _GAP
    width = max(picture.shape[1] for row in rows for picture in row) + _GAP
    out = np.full((height * len(rows), width * max(len(row) for row in rows), 3), 255, np.uint8)
    for i, row in enumerate(rows):
        for j, picture in enumerate(row):
            top, left = i * height, j * width
            out[top : top + picture.shape[0], left : left + picture.shape[1]] = picture
    return out


def _colours(count: int) -> Image:
    """[count, 3] hues that differ from their neighbours."""
    hues = (np.arange(count) * 111) % 180  # near the golden ratio of a circle of 180
    hsv = np.stack([hues, np.full(count, 220), np.full(count, 255)], axis=-1).astype(np.uint8)
    return np.asarray(cv2.cvtColor(hsv[None], cv2.COLOR_HSV2RGB)[0] if count else np.zeros((0, 3)), np.uint8)
