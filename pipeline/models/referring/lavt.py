"""LAVT (Yang et al., CVPR 2022): a language-aware Swin and a decoder of convolutions; SemiRES' network."""

import pipeline.models.mmcv_ops  # noqa: F401  isort: skip  (must come before mmdet)
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from mmcv.cnn import ConvModule
from mmengine.model import BaseModule
from torch import Tensor, nn
from torch.nn import functional

from pipeline.models.referring.interface import ReferNetwork, ReferOutput
from pipeline.models.referring.language_swin import LanguageSwin
from pipeline.models.referring.text_encoder import TextEncoder, TextFeatures


class LavtDecoder(BaseModule):
    """From the coarsest map to the finest: upsample, concatenate, convolve twice; then two logits a pixel."""

    def __init__(self, in_channels: Sequence[int], *, channels: int, norm_cfg: Mapping[str, Any]) -> None:
        """Build the convolutions.

        Args:
            in_channels: Of the four maps, finest first.
            channels: Inside (LAVT: half of the coarsest map's).
            norm_cfg: Batch norm, SyncBN in LAVT; ``BN`` or ``GN`` where several processes train without GPUs.
        """
        super().__init__()
        norm = {"norm_cfg": dict(norm_cfg), "act_cfg": {"type": "ReLU"}, "bias": False, "padding": 1}
        above = [in_channels[-1], *[channels] * (len(in_channels) - 2)]
        self.levels = nn.ModuleList(
            nn.Sequential(ConvModule(coarse + fine, channels, 3, **norm), ConvModule(channels, channels, 3, **norm))
            for coarse, fine in zip(above, reversed(in_channels[:-1]), strict=True)
        )
        self.logits = nn.Conv2d(channels, 2, 1)

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        """Logits [B, 2, h, w] at the size of the finest map; maps finest first."""
        x = maps[-1]
        for level, finer in zip(self.levels, reversed(maps[:-1]), strict=True):
            x = level(torch.cat([_resized(x, finer.shape[2:]), finer], dim=1))
        logits: Tensor = self.logits(x)
        return logits


class LavtNetwork(ReferNetwork):
    """Text encoder, backbone and decoder."""

    def __init__(
        self, *, text_encoder: Mapping[str, Any], backbone: Mapping[str, Any], decoder: Mapping[str, Any]
    ) -> None:
        """Build the three parts.

        Args:
            text_encoder: Settings of :class:`TextEncoder`.
            backbone: Settings of :class:`LanguageSwin`, ``text_channels`` aside.
            decoder: Settings of :class:`LavtDecoder`, ``in_channels`` aside.
        """
        super().__init__()
        self.text_encoder = TextEncoder(**text_encoder)
        self.backbone = LanguageSwin(text_channels=self.text_encoder.num_channels, **backbone)
        self.decoder = LavtDecoder(self.backbone.num_features, **decoder)

    def forward(self, images: Tensor, sentences: Sequence[str]) -> ReferOutput:
        """Segment what the sentences speak of, see :class:`ReferNetwork`."""
        return self.segment(images, self.text_encoder(sentences))

    def segment(self, images: Tensor, text: TextFeatures) -> ReferOutput:
        """Segment with sentences that are encoded already."""
        return ReferOutput(self.decoder(self.backbone(images, text)))

    def auxiliary_losses(self, output: ReferOutput, targets: Tensor, has_target: Tensor) -> dict[str, Tensor]:
        """None: LAVT learns pixels only."""
        return {}

    def upsample(self, logits: Tensor, size_hw: tuple[int, int]) -> Tensor:
        """Bilinear between the centres of the corner cells (``align_corners``), as inside the decoder."""
        return _resized(logits, size_hw)


def _resized(maps: Tensor, size_hw: Sequence[int]) -> Tensor:
    return functional.interpolate(maps, size=tuple(size_hw), mode="bilinear", align_corners=True)
