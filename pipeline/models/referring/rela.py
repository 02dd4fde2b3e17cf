"""ReLA (Liu et al., GRES, CVPR 2023): the language-aware Swin, a deformable pixel decoder and a decoder of regions."""

import pipeline.models.mmcv_ops  # noqa: F401  isort: skip  (must come before mmdet)
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from mmdet.models.layers.msdeformattn_pixel_decoder import MSDeformAttnPixelDecoder
from mmengine.config import ConfigDict
from torch import Tensor
from torch.nn import functional

from pipeline.models.referring.interface import ReferNetwork, ReferOutput
from pipeline.models.referring.language_swin import LanguageSwin
from pipeline.models.referring.rela_decoder import RegionDecoder
from pipeline.models.referring.text_encoder import TextEncoder, TextFeatures

LOSS_WEIGHT = 5.0
AUXILIARY_SHARE = 0.1
"""Of minimap and no-target beside the mask."""
CLASS_WEIGHTS = (0.9, 1.1)
"""Of background and object, and of "there is an object" and "there is none"."""


class RelaNetwork(ReferNetwork):
    """Text encoder, backbone, pixel decoder and region decoder."""

    pixel_loss_weight = LOSS_WEIGHT

    def __init__(
        self,
        *,
        text_encoder: Mapping[str, Any],
        backbone: Mapping[str, Any],
        pixel_decoder: Mapping[str, Any],
        region_decoder: Mapping[str, Any],
    ) -> None:
        """Build the four parts.

        Args:
            text_encoder: Settings of :class:`TextEncoder`.
            backbone: Settings of :class:`LanguageSwin`, ``text_channels`` aside.
            pixel_decoder: Settings of mmdet's MSDeformAttnPixelDecoder, ``in_channels`` and ``strides`` aside.
            region_decoder: Settings of :class:`RegionDecoder`, ``text_channels`` aside.
        """
        super().__init__()
        self.text_encoder = TextEncoder(**text_encoder)
        text_channels = self.text_encoder.num_channels
        self.backbone = LanguageSwin(text_channels=text_channels, **backbone)
        self.pixel_decoder = MSDeformAttnPixelDecoder(
            in_channels=self.backbone.num_features, strides=[4, 8, 16, 32], **ConfigDict(pixel_decoder)
        )
        self.region_decoder = RegionDecoder(text_channels=text_channels, **region_decoder)

    def forward(self, images: Tensor, sentences: Sequence[str]) -> ReferOutput:
        """Segment what the sentences speak of, see :class:`ReferNetwork`."""
        return self.segment(images, self.text_encoder(sentences))

    def segment(self, images: Tensor, text: TextFeatures) -> ReferOutput:
        """Segment with sentences that are encoded already."""
        mask_features, maps = self.pixel_decoder(list(self.backbone(images, text)))
        output: ReferOutput = self.region_decoder(maps, mask_features, text)
        return output

    def auxiliary_losses(self, output: ReferOutput, targets: Tensor, has_target: Tensor) -> dict[str, Tensor]:
        """Minimap and no-target, see :class:`ReferNetwork`.

        A cell of the minimap is object where the mask is at all four pixels around its centre: the mask is sampled
        bilinearly at the grid and what is below 1 counts as 0.
        """
        if output.minimap is None or output.no_target is None:
            raise TypeError("not an output of ReLA")
        grid = functional.interpolate(
            targets[:, None].float(), size=self.region_decoder.grid_hw, mode="bilinear", align_corners=False
        )
        weight = LOSS_WEIGHT * AUXILIARY_SHARE
        return {
            "minimap": weight * balanced_cross_entropy(output.minimap, grid.flatten(1).long()),
            "no_target": weight * balanced_cross_entropy(output.no_target, (~has_target).long()),
        }

    def upsample(self, logits: Tensor, size_hw: tuple[int, int]) -> Tensor:
        """Bilinear, cells edge to edge."""
        return functional.interpolate(logits, size=size_hw, mode="bilinear", align_corners=False)


def balanced_cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """Cross entropy with :data:`CLASS_WEIGHTS`, one value an image.

    Args:
        logits: [B, 2, ...].
        labels: [B, ...] int64.

    Returns:
        [B]; the mean is the loss of the batch, a sum divided by the sum of the batch's weights.
    """
    weights = torch.tensor(CLASS_WEIGHTS, device=logits.device)
    entropy = functional.cross_entropy(logits.float(), labels, weight=weights, reduction="none")
    return entropy.reshape(len(labels), -1).sum(dim=1) * len(labels) / weights[labels].sum()
