"""Overlapping crops of an image, in which small objects are seen larger, as in ``SAM2AutomaticMaskGenerator``."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

_EDGE_PIXELS = 20.0
"""A box that ends this close to a crop's edge is taken to be cut off there."""


@dataclass(frozen=True)
class Crop:
    """A part of an image: columns x0 to x1 and rows y0 to y1, ends exclusive."""

    x0: int
    y0: int
    x1: int
    y1: int
    layer: int
    """0 is the whole image."""
    image_hw: tuple[int, int]

    @property
    def area(self) -> int:
        """Pixels."""
        return (self.x1 - self.x0) * (self.y1 - self.y0)

    def of(self, image: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """The pixels of the crop."""
        return image[self.y0 : self.y1, self.x0 : self.x1]

    def place(self, spans: NDArray[np.int64]) -> NDArray[np.int64]:
        """Runs [R, 2] within columns of the crop, as runs of the image (column * height + row, end exclusive)."""
        height = self.y1 - self.y0
        column, row = np.divmod(spans[:, 0], height)
        start = (self.x0 + column) * self.image_hw[0] + self.y0 + row
        return np.stack([start, start + spans[:, 1] - spans[:, 0]], axis=1)


def crops_of(size_hw: Sequence[int], num_layers: int, overlap_ratio: float) -> list[Crop]:
    """The whole image, then layer by layer 2 x 2, 4 x 4, ... overlapping crops, columns first.

    Args:
        size_hw: Of the image in pixels.
        num_layers: 0 for the image alone.
        overlap_ratio: Overlap of the first layer's crops, a share of the shorter side; halved from layer to layer.
    """
    height, width = size_hw
    crops = [Crop(0, 0, width, height, 0, (height, width))]
    for layer in range(1, num_layers + 1):
        num = 2**layer
        overlap = int(overlap_ratio * min(height, width) * (2 / num))
        wide, high = (math.ceil((overlap * (num - 1) + side) / num) for side in (width, height))
        corners = product(range(num), range(num))
        for x0, y0 in ((i * (wide - overlap), j * (high - overlap)) for i, j in corners):
            # The last crops of a tiny image may begin beyond it.
            if x0 < width and y0 < height:
                crops.append(Crop(x0, y0, min(x0 + wide, width), min(y0 + high, height), layer, (height, width)))
    return crops


def touches_inner_edge(boxes_xyxy: Tensor, crop: Crop) -> Tensor:
    """[M] bool: boxes [M, 4] of a crop that end near an edge of it which is not near the same edge of the image."""
    if crop.layer == 0:
        return torch.zeros(len(boxes_xyxy), dtype=torch.bool, device=boxes_xyxy.device)
    height, width = crop.image_hw
    placed = boxes_xyxy + torch.tensor([crop.x0, crop.y0] * 2, device=boxes_xyxy.device)
    near = [
        (placed - torch.tensor(edges, device=boxes_xyxy.device)).abs() <= _EDGE_PIXELS
        for edges in ((crop.x0, crop.y0, crop.x1, crop.y1), (0, 0, width, height))
    ]
    return (near[0] & ~near[1]).any(1)
