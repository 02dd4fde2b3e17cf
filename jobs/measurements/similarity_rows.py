"""Rows of self-similarity, of SAM and of networks, on one grid: how alike every place of an image is to one point."""

from collections.abc import Sequence
from typing import Any

import cv2
import numpy as np
import torch
from numpy.typing import NDArray

from jobs.measurements.figure_pages import Pixels
from jobs.networks import pack
from pipeline.distill.self_similarity import View
from pipeline.models.image_panels import model_row
from pipeline.models.mask2former import captured_output, view_of
from pipeline.sam.decoder_features import cells_of_points


def deepest_point(mask: NDArray[np.bool_]) -> NDArray[np.float32]:
    """[2] x, y of the pixel centre of a mask [H, W] that is furthest from its border."""
    depth = cv2.distanceTransform(np.pad(mask, 1).astype(np.uint8), cv2.DIST_L2, 5)[1:-1, 1:-1]
    row, column = np.unravel_index(depth.argmax(), depth.shape)
    return np.array([column + 0.5, row + 0.5], np.float32)


def cell_of(point: NDArray[np.float32], size_hw: tuple[int, int], grid_hw: tuple[int, int]) -> int:
    """Index in a flattened grid of the cell that holds a point [2] x, y of an image."""
    row, column = cells_of_points(point[None], size_hw, grid_hw)[0]
    return int(row) * grid_hw[1] + int(column)


def whole_image(size_hw: tuple[int, int]) -> View:
    """The view that shows all of an image at its own size."""
    return View(torch.eye(3), size_hw, size_hw, size_hw)


@torch.no_grad()
def network_rows(
    network: Any, ready: Any, image: Pixels, cells: Sequence[int], grid_hw: tuple[int, int]
) -> list[NDArray[np.float32]]:
    """Each cell's row [gh, gw] of the network's mask features, those that structural distillation acts on.

    Args:
        network: A DistilledMask2Former.
        ready: Transforms of its evaluation images.
        image: [H, W, 3] uint8 RGB.
        cells: Of the flattened grid.
        grid_hw: SAM's.
    """
    batch = network.data_preprocessor({k: [v] for k, v in pack(ready, image, image_id=0).items()}, False)
    with captured_output(network.panoptic_head.pixel_decoder) as outputs:
        network.panoptic_head(network.extract_feat(batch["inputs"]), batch["data_samples"])
    view = view_of(batch["data_samples"][0].metainfo)
    return [model_row(outputs[0][0][0], view, torch.tensor([cell]), grid_hw) for cell in cells]


def share_of_cells(mask: NDArray[np.bool_], grid_hw: tuple[int, int]) -> NDArray[np.float32]:
    """How much of every cell a mask [H, W] covers: [gh, gw] in [0, 1], to four decimals, so that a full one has 1."""
    share = cv2.resize(mask.astype(np.float32), grid_hw[::-1], interpolation=cv2.INTER_AREA)
    return np.asarray(np.round(share, 4), np.float32)
