"""Stand-ins for heavy parts: a SAM whose answers can be told from the image by eye."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from pipeline.sam.interface import ConfidentMasks, ImageEmbedding, PointMasks


@dataclass
class FakeSam:
    """A `SamBackend` without a network.

    Its three masks for a prompt are, in this order and with these predicted IoUs:

    * 0.95: the connected regions (4-neighbours, exactly equal colour) under the positive points and under the
      centre of the box, without those under negative points;
    * 0.85: every pixel of the image with one of those colours;
    * 0.60: the bounding box of the first mask.

    Logits are +10 inside and -10 outside at image resolution, so thresholds reproduce the masks exactly.
    The decoder tokens of a prompt are, per grid cell, the mean colour (3 channels), the share of the cell
    that the first mask covers, and a constant 0.5: five channels.
    """

    name: str = "fake"
    sha256: str = "f" * 64
    grid_hw: tuple[int, int] = (8, 8)
    input_hw: tuple[int, int] = (64, 64)
    embedded: list[tuple[int, int]] = field(default_factory=list)
    """Sizes of all images that were embedded, in order: lets a test count encoder calls."""

    def embed(self, images: Sequence[NDArray[np.uint8]]) -> list[ImageEmbedding]:
        self.embedded += [image.shape[:2] for image in images]
        return [
            ImageEmbedding(torch.from_numpy(image.transpose(2, 0, 1).copy())[None], (), image.shape[:2])
            for image in images
        ]

    def decode_points(self, embedding: ImageEmbedding, points_xy: Tensor, labels: Tensor) -> PointMasks:
        image = _image_of(embedding)
        masks = [_candidates(image, xy, label) for xy, label in zip(points_xy, labels, strict=True)]
        stacked = np.stack(masks) if masks else np.zeros((0, 3, *embedding.size_hw), bool)
        logits = torch.from_numpy(np.where(stacked, np.float32(10), np.float32(-10)))
        return PointMasks(logits, torch.tensor([[0.95, 0.85, 0.60]]).repeat(len(masks), 1))

    def decode_confident(
        self, embedding: ImageEmbedding, points_xy: Tensor, labels: Tensor, threshold: float
    ) -> ConfidentMasks:
        masks = self.decode_points(embedding, points_xy, labels)
        wanted = masks.predicted_iou > threshold
        return ConfidentMasks(masks.logits[wanted], masks.predicted_iou[wanted], wanted.nonzero()[:, 0])

    def decode_with_mask(
        self, embedding: ImageEmbedding, points_xy: Tensor | None, logits: Tensor
    ) -> tuple[Tensor, Tensor]:
        """The same mask, of which it is surer; without a click the region that holds most of the mask."""
        if points_xy is None:
            image = _image_of(embedding)
            masks = np.stack([_region_of_most(image, mask) for mask in (logits > 0).numpy()])
            logits = torch.from_numpy(np.where(masks, np.float32(10), np.float32(-10)))
        return logits, torch.full((len(logits),), 0.97)

    def decoder_tokens(self, embedding: ImageEmbedding, points_xy: Tensor) -> Tensor:
        colours = F.adaptive_avg_pool2d(embedding.tokens.float() / 255, self.grid_hw)  # [1, 3, gh, gw]
        labels = torch.ones(len(points_xy), 1, dtype=torch.int64)
        masks = (self.decode_points(embedding, points_xy[:, None], labels).logits[:, :1] > 0).float()
        covered = F.adaptive_avg_pool2d(masks, self.grid_hw)
        return torch.cat([colours.expand(len(points_xy), -1, -1, -1), covered, torch.full_like(covered, 0.5)], 1)

    def upsample(self, logits: Tensor, size_hw: tuple[int, int]) -> Tensor:
        return F.interpolate(logits[:, None].float(), size_hw, mode="bilinear", align_corners=False)[:, 0]


def region_at(image: NDArray[np.uint8], x: float, y: float) -> NDArray[np.bool_]:
    """The connected region of exactly the colour at (x, y): what `FakeSam` answers to a click there."""
    height, width = image.shape[:2]
    row, column = min(max(int(y), 0), height - 1), min(max(int(x), 0), width - 1)
    same = (image == image[row, column]).all(-1)
    _, labels = cv2.connectedComponents(same.astype(np.uint8), connectivity=4)
    return np.asarray(labels == labels[row, column])


def _region_of_most(image: NDArray[np.uint8], mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """The connected region of one colour in which most pixels of a mask [H, W] lie; of equal ones the first."""
    regions = [region_at(image, column, row) for row, column in np.argwhere(mask)]
    return max(regions, key=lambda region: int((region & mask).sum()))


def _image_of(embedding: ImageEmbedding) -> NDArray[np.uint8]:
    return embedding.tokens[0].permute(1, 2, 0).numpy()


def _candidates(image: NDArray[np.uint8], points_xy: Tensor, labels: Tensor) -> NDArray[np.bool_]:
    region = np.zeros(image.shape[:2], bool)
    for (x, y), label in zip(points_xy.tolist(), labels.tolist(), strict=True):
        if label == 1:
            region |= region_at(image, x, y)
    corners = [xy for xy, label in zip(points_xy.tolist(), labels.tolist(), strict=True) if label in (2, 3)]
    if corners:
        (left, top), (right, bottom) = corners
        region |= region_at(image, (left + right) / 2, (top + bottom) / 2)
    for (x, y), label in zip(points_xy.tolist(), labels.tolist(), strict=True):
        if label == 0:
            region &= ~region_at(image, x, y)
    box = np.zeros_like(region)
    alike = np.zeros_like(region)
    if region.any():
        rows, columns = np.nonzero(region)
        box[rows.min() : rows.max() + 1, columns.min() : columns.max() + 1] = True
        for colour in np.unique(image[region], axis=0):
            alike |= (image == colour).all(-1)
    return np.stack([region, alike, box])
