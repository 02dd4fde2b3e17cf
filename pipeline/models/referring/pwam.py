"""Pixel-word attention and the language gate of LAVT (Yang et al., CVPR 2022, equations 1 to 9)."""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

from pipeline.models.referring.text_encoder import TextFeatures

_MASKED = -1e4
"""Added to the logits of padding; half precision still holds it."""


class PixelWordAttention(nn.Module):
    """PWAM: every pixel gathers the words that concern it, and the two are multiplied.

    Its 1 x 1 convolutions are written as linear maps over tokens [B, HW, C]: the same values and the same default
    initialisation without transposing.
    """

    def __init__(self, channels: int, text_channels: int, *, dropout: float = 0.0) -> None:
        """One attention head, as in the paper.

        Args:
            channels: Of the image tokens, and of everything inside.
            text_channels: Of the text encoder.
            dropout: Of the projected image and of the result (LAVT: none).
        """
        super().__init__()
        self.image = nn.Sequential(nn.Linear(channels, channels), nn.GELU(), nn.Dropout(dropout))
        self.query = nn.Linear(channels, channels)
        self.key = nn.Linear(text_channels, channels)
        self.value = nn.Linear(text_channels, channels)
        self.gathered = nn.Linear(channels, channels)
        self.fused = nn.Sequential(nn.Linear(channels, channels), nn.GELU(), nn.Dropout(dropout))

    def forward(self, pixels: Tensor, text: TextFeatures) -> Tensor:
        """Fuse image tokens [B, HW, C] with the sentence: [B, HW, C]."""
        is_word = text.mask[:, :, None].to(pixels)  # [B, T, 1]
        query = instance_norm(self.query(pixels))
        key, value = self.key(text.tokens) * is_word, self.value(text.tokens) * is_word
        logits = query @ key.transpose(1, 2) / math.sqrt(query.shape[2])  # [B, HW, T]
        attention = (logits + _MASKED * (1 - is_word.transpose(1, 2))).softmax(dim=2)
        gathered = instance_norm(self.gathered(attention @ value))
        fused: Tensor = self.fused(self.image(pixels) * gathered)
        return fused


class LanguageGate(nn.Module):
    """How much of the fused map flows back into the backbone, in (-1, 1) for every channel of every pixel."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(channels, channels, bias=False),
            nn.ReLU(),
            nn.Linear(channels, channels, bias=False),
            nn.Tanh(),
        )

    def forward(self, fused: Tensor) -> Tensor:
        """Gate of the fused map, both [B, HW, C]."""
        gate: Tensor = self.layers(fused)
        return gate

    @torch.no_grad()
    def close(self) -> None:
        """Set both matrices to zero, as the released ReLA does: the gate and all its gradients are zero for ever."""
        for weight in self.parameters():
            weight.zero_()


def instance_norm(tokens: Tensor) -> Tensor:
    """Mean 0 and variance 1 for every channel of every image, over its pixels; no parameters. [B, HW, C]."""
    return functional.instance_norm(tokens.transpose(1, 2)).transpose(1, 2)
