"""ReLA's decoder (Liu et al., GRES, CVPR 2023): regions look at the image, at the words and at each other."""

import pipeline.models.mmcv_ops  # noqa: F401  isort: skip  (must come before mmdet)
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import torch
from mmdet.models.layers.positional_encoding import SinePositionalEncoding
from mmengine.model import BaseModule
from torch import Tensor, nn
from torch.nn import functional

from pipeline.models.referring.interface import ReferOutput
from pipeline.models.referring.text_encoder import TextFeatures

TEXT_SHARE = 0.1
"""Share of the words' attention that reaches the regions, beside the learnt one."""


class _Attention(nn.Module):
    """Attention with residual and norm, positions added to queries and keys."""

    def __init__(self, channels: int, num_heads: int) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(channels, num_heads, batch_first=True)
        self.norm = nn.LayerNorm(channels)

    def forward(
        self,
        x: Tensor,
        memory: Tensor,
        *,
        position: Tensor | None = None,
        memory_position: Tensor | None = None,
        **masks: Any,
    ) -> Tensor:
        """[B, R, C] and memory [B, N, C] to [B, R, C]."""
        query = x if position is None else x + position
        key = memory if memory_position is None else memory + memory_position
        normalised: Tensor = self.norm(x + self.attention(query, key, memory, need_weights=False, **masks)[0])
        return normalised


class _RegionLayer(nn.Module):
    """The parts of one layer; the decoder puts the words between the first and the second."""

    def __init__(self, channels: int, num_heads: int, feedforward_channels: int) -> None:
        super().__init__()
        self.look = _Attention(channels, num_heads)
        self.exchange = _Attention(channels, num_heads)
        self.feedforward = perceptron([channels, feedforward_channels, channels])
        self.norm = nn.LayerNorm(channels)


class RegionDecoder(BaseModule):
    """R regions, the learnable queries of a Mask2Former laid out as a grid over the image.

    Only what the last layer says is supervised; the masks of the layers before only limit where the next one looks.
    """

    num_levels = 3

    def __init__(
        self,
        *,
        text_channels: int,
        channels: int,
        grid_hw: tuple[int, int],
        num_layers: int,
        num_heads: int,
        feedforward_channels: int,
        attend_to_padding: bool = False,
    ) -> None:
        """Build regions, layers and heads.

        Args:
            text_channels: Of the text encoder.
            channels: Of regions, feature maps and mask features.
            grid_hw: Rows and columns of regions (ReLA: 10, 10).
            num_layers: Layers (ReLA: 9), which look at the three maps in turn, coarsest first.
            num_heads: Of every attention.
            feedforward_channels: Inside the layers.
            attend_to_padding: Let regions see the padding of short sentences, as the released code does.
        """
        super().__init__()
        self.grid_hw, self.num_heads, self.attend_to_padding = grid_hw, num_heads, attend_to_padding
        num_regions = grid_hw[0] * grid_hw[1]
        self.region_embed = nn.Embedding(num_regions, channels)
        self.position_embed = nn.Embedding(num_regions, channels)
        self.level_embed = nn.Embedding(self.num_levels, channels)
        self.positions = SinePositionalEncoding(num_feats=channels // 2, normalize=True)
        self.layers = nn.ModuleList(_RegionLayer(channels, num_heads, feedforward_channels) for _ in range(num_layers))
        self.words = nn.Linear(text_channels, channels, bias=False)
        self.word_attention = _Attention(channels, num_heads)
        self.word_weight = nn.Parameter(torch.zeros(()))
        self.norm = nn.LayerNorm(channels)
        self.mask_head = perceptron([channels, channels, channels, channels])
        self.minimap_head = nn.Linear(channels, 2)
        self.no_target_head = perceptron([channels, channels, 2])

    def init_weights(self) -> None:
        """Xavier for the layers; the words' projection starts at zero, as released."""
        for part in (self.layers, self.word_attention):
            for parameter in part.parameters():
                if parameter.ndim > 1:
                    nn.init.xavier_uniform_(parameter)
        nn.init.zeros_(self.words.weight)

    def forward(self, maps: Sequence[Tensor], mask_features: Tensor, text: TextFeatures) -> ReferOutput:
        """Decode.

        Args:
            maps: Three maps [B, C, h_i, w_i], coarsest first.
            mask_features: [B, C, H/4, W/4].
            text: Features of the B sentences.
        """
        batch = len(mask_features)
        memories = [self._memory(level, features) for level, features in enumerate(maps)]
        regions = self.region_embed.weight.expand(batch, -1, -1)
        position = self.position_embed.weight.expand(batch, -1, -1)
        layer: Any
        for index, layer in enumerate(self.layers):
            level = index % self.num_levels
            memory, memory_position = memories[level]
            hidden = self._hidden_from(regions, mask_features, maps[level].shape[2:])
            regions = layer.look(regions, memory, position=position, memory_position=memory_position, attn_mask=hidden)
            if index == 0:
                regions = self._read(regions, text)
            regions = layer.exchange(regions, regions, position=position, memory_position=position)
            regions = layer.norm(regions + layer.feedforward(regions))
        return self._heads(regions, mask_features)

    def _memory(self, level: int, features: Tensor) -> tuple[Tensor, Tensor]:
        """Tokens of a map and their positions, both [B, h * w, C]."""
        nothing_padded = features.new_zeros((len(features), *features.shape[2:]), dtype=torch.bool)
        position: Tensor = self.positions(nothing_padded)
        tokens = features.flatten(2).transpose(1, 2) + self.level_embed.weight[level]
        return tokens, position.flatten(2).transpose(1, 2)

    @torch.no_grad()
    def _hidden_from(self, regions: Tensor, mask_features: Tensor, size_hw: Sequence[int]) -> Tensor:
        """Where each region must not look: outside its mask so far. [B * heads, R, h * w] bool.

        A region whose mask is empty looks everywhere.
        """
        masks = torch.einsum("brc,bchw->brhw", self.mask_head(self.norm(regions)), mask_features)
        small = functional.interpolate(masks, size=tuple(size_hw), mode="bilinear", align_corners=False)
        hidden = (small.sigmoid() < 0.5).flatten(2)
        hidden &= ~hidden.all(dim=2, keepdim=True)
        return hidden.repeat_interleave(self.num_heads, dim=0)

    def _read(self, regions: Tensor, text: TextFeatures) -> Tensor:
        """Add what the words say to every region."""
        padding = None if self.attend_to_padding else ~text.mask
        said = self.word_attention(regions, self.words(text.tokens), key_padding_mask=padding)
        return regions + TEXT_SHARE * self.word_weight.sigmoid() * said

    def _heads(self, regions: Tensor, mask_features: Tensor) -> ReferOutput:
        """The mask is the sum of all regions' masks, each weighted by its cell of the minimap."""
        regions = self.norm(regions)
        minimap = self.minimap_head(regions)  # [B, R, 2]
        filters = torch.einsum("brk,brc->bkc", minimap, self.mask_head(regions))
        logits = torch.einsum("bkc,bchw->bkhw", filters, mask_features)
        return ReferOutput(logits, minimap.transpose(1, 2), self.no_target_head(regions).mean(dim=1))


def perceptron(widths: Sequence[int]) -> nn.Sequential:
    """Linear maps with ReLU between them."""
    layers: list[nn.Module] = []
    for wide, narrow in pairwise(widths):
        layers += [nn.Linear(wide, narrow), nn.ReLU()]
    return nn.Sequential(*layers[:-1])
