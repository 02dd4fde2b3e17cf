"""What the rest of the pipeline may ask of a SAM: embed images, decode points, read decoder tokens."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

Precision = Literal["fp32", "bf16"]
"""Numbers that a SAM computes with; bf16 on CUDA devices only."""


@dataclass(frozen=True)
class ImageEmbedding:
    """One encoded image; opaque to callers, made by :meth:`SamBackend.embed` and given back to it."""

    tokens: Tensor
    """[1, C, gh, gw] image tokens on the backend's device."""
    high_resolution: tuple[Tensor, ...]
    """Skip features of the mask decoder, finest first; empty where the model has none."""
    size_hw: tuple[int, int]
    """Height and width of the canonical image."""


@dataclass(frozen=True)
class PointMasks:
    """Three candidate masks for each of P prompts."""

    logits: Tensor
    """[P, 3, h, w] float32 at the decoder's own resolution; the mask is where they exceed 0."""
    predicted_iou: Tensor
    """[P, 3] float32, SAM's own estimate of each candidate's quality."""


@dataclass(frozen=True)
class ConfidentMasks:
    """M masks whose predicted IoU is above a threshold, in the order of their prompts, then of the candidates."""

    logits: Tensor
    """[M, h, w] float32 at the decoder's own resolution."""
    predicted_iou: Tensor
    """[M] float32."""
    prompt: Tensor
    """[M] int64, which prompt."""


@dataclass(frozen=True)
class SamFacts:
    """What a store says of its SAM: enough to plan one, without the weights; the names are those of a backend."""

    name: str
    sha256: str
    grid_hw: tuple[int, int]


class SamBackend(Protocol):
    """A promptable segmenter. All coordinates are canonical pixels, pixel centres at +0.5."""

    @property
    def name(self) -> str:
        """What the user called it, recorded in stores."""

    @property
    def sha256(self) -> str:
        """Digest of the weights, recorded in stores."""

    @property
    def grid_hw(self) -> tuple[int, int]:
        """Rows and columns of the decoder's token grid, which covers the whole canonical image."""

    @property
    def input_hw(self) -> tuple[int, int]:
        """Size in pixels to which every image is stretched before encoding."""

    def embed(self, images: Sequence[NDArray[np.uint8]]) -> list[ImageEmbedding]:
        """Encode RGB images [H, W, 3] uint8, of any sizes, as one batch."""

    def decode_points(self, embedding: ImageEmbedding, points_xy: Tensor, labels: Tensor) -> PointMasks:
        """Masks for P prompts of K points each.

        Args:
            embedding: the image.
            points_xy: [P, K, 2] float, canonical pixels.
            labels: [P, K] int: 1 on the object, 0 off the object, -1 padding; a box is two points, its top left corner
                (2) and then its bottom right corner (3), on the edges of its outermost pixels.
        """

    def decode_confident(
        self, embedding: ImageEmbedding, points_xy: Tensor, labels: Tensor, threshold: float
    ) -> ConfidentMasks:
        """Of the masks of :meth:`decode_points`, those with a predicted IoU above ``threshold``; others cost less."""

    def decode_with_mask(
        self, embedding: ImageEmbedding, points_xy: Tensor | None, logits: Tensor
    ) -> tuple[Tensor, Tensor]:
        """One mask for each of P prompts of a first mask, with or without a click on the object.

        Args:
            embedding: the image.
            points_xy: [P, 2] float, canonical pixels; None: the mask alone.
            logits: [P, h, w] float32 over the whole image: at the decoder's own resolution, as it gave them, or at any
                other, from which they are resampled.

        Returns:
            Logits [P, h, w] float32 and predicted IoUs [P] float32.
        """

    def decoder_tokens(self, embedding: ImageEmbedding, points_xy: Tensor) -> Tensor:
        """[P, C, gh, gw] float32 image tokens after the decoder's last two-way block.

        One positive point [P, 2] per prompt; every prompt has its own, conditioned map.
        """

    def upsample(self, logits: Tensor, size_hw: tuple[int, int]) -> Tensor:
        """Mask logits [M, h, w] at canonical size, [M, H, W] float32, bilinear."""
