"""A convolutional trunk for SAM 2's ``ImageEncoder``: what a very small model learns quickest from random weights.

The trunk of ``scenes-nano`` (``pipeline/assets/scenes_nano.yaml``). With the package's Hiera, 140 minutes of one core
gave a mean IoU of 0.705 from one click; 97 minutes more, with this trunk of random weights before the decoder of that
run, gave 0.753, and 50 more 0.779 (README). What Hiera would have gained in the same 97 minutes was not measured.
"""

from collections.abc import Sequence
from itertools import pairwise

import torch.nn.functional as F
from torch import Tensor, nn


class ResidualBlock(nn.Module):
    """Two 3 x 3 convolutions with group norm around an identity."""

    def __init__(self, channels: int, groups: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.first_norm = nn.GroupNorm(groups, channels)
        self.second = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.second_norm = nn.GroupNorm(groups, channels)
        nn.init.zeros_(self.second_norm.weight)

    def forward(self, maps: Tensor) -> Tensor:
        """[B, C, h, w] to the same."""
        inner = F.relu(self.first_norm(self.first(maps)))
        return F.relu(maps + self.second_norm(self.second(inner)))


class ConvTrunk(nn.Module):
    """Maps at strides 4, 8 and 16; a drop-in for ``Hiera`` in an ``ImageEncoder``."""

    def __init__(
        self, channels: Sequence[int] = (32, 64, 128), blocks: Sequence[int] = (2, 2, 3), groups: int = 8
    ) -> None:
        """Build three stages.

        Args:
            channels: Of the maps at strides 4, 8, 16.
            blocks: Residual blocks of each stage.
            groups: Of every group norm.
        """
        super().__init__()
        self.channel_list = list(channels)[::-1]
        """Deepest first, as the neck expects."""
        self.stem = nn.Conv2d(3, channels[0], 7, stride=4, padding=3, bias=False)
        self.stem_norm = nn.GroupNorm(groups, channels[0])
        self.stages = nn.ModuleList(
            nn.Sequential(*(ResidualBlock(width, groups) for _ in range(depth)))
            for width, depth in zip(channels, blocks, strict=True)
        )
        self.downs = nn.ModuleList(
            nn.Sequential(
                nn.Conv2d(narrow, wide, 3, stride=2, padding=1, bias=False), nn.GroupNorm(groups, wide), nn.ReLU()
            )
            for narrow, wide in pairwise(channels)
        )

    def forward(self, images: Tensor) -> list[Tensor]:
        """[B, 3, H, W] to maps [B, C, H / s, W / s] at strides s = 4, 8, 16."""
        maps = F.relu(self.stem_norm(self.stem(images)))
        outputs: list[Tensor] = []
        for number, stage in enumerate(self.stages):
            maps = stage(maps if number == 0 else self.downs[number - 1](maps))
            outputs.append(maps)
        return outputs
