"""The Swin backbone of LAVT and ReLA: after the blocks of every stage the sentence is mixed into the image."""

import pipeline.models.mmcv_ops  # noqa: F401  isort: skip  (must come before mmdet)
import re
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from mmdet.models.backbones.swin import SwinTransformer, WindowMSA, swin_converter
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint as checkpointed

from pipeline.errors import CheckpointError
from pipeline.models.referring.pwam import LanguageGate, PixelWordAttention
from pipeline.models.referring.text_encoder import TextFeatures
from pipeline.sam.checkpoints import load_weights, verify_sha256

_NOT_PRETRAINED = re.compile(r"^(fusions|gates|norm\d)\.")
"""Parts that no image classifier has."""
_NOT_USED = re.compile(r"^(head|norm)\.|(attn_mask|relative_position_index)$")
"""Parts of a published classifier that follow from the architecture or serve its classes only."""


class LanguageSwin(SwinTransformer):
    """mmdet's Swin with a PWAM after every stage and a language gate before every patch merging.

    The outputs are the fused maps F_i, normalised, not what flows on: ``x <- x + gate(F_i) * F_i``, then merging. The
    last stage has no gate, because nothing comes after it (released LAVT has one that is never used).
    """

    def __init__(
        self,
        *,
        text_channels: int,
        fusion_dropout: float = 0.0,
        zero_init_gates: bool = False,
        with_cp: bool = False,
        weights: str | None = None,
        weights_sha256: str | None = None,
        **swin: Any,
    ) -> None:
        """Build the backbone.

        Args:
            text_channels: Of the text encoder.
            fusion_dropout: Inside the PWAMs.
            zero_init_gates: Released ReLA's gates, which never open.
            with_cp: Recompute the blocks in the backward pass: less memory, a third more time.
            weights: Published Swin classifier (``swin_base_patch4_window12_384_22k.pth``, or safetensors), read by
                :meth:`init_weights`; None starts from random weights.
            weights_sha256: Digest that the file must have.
            **swin: mmdet's settings, ``out_indices`` and pretraining aside.
        """
        super().__init__(**swin)
        widths = self.num_features
        self.fusions = nn.ModuleList(PixelWordAttention(c, text_channels, dropout=fusion_dropout) for c in widths)
        self.gates = nn.ModuleList(LanguageGate(c) for c in widths[:-1])
        self.zero_init_gates, self.recompute = zero_init_gates, with_cp
        self.weights, self.weights_sha256 = weights, weights_sha256

    def train(self, mode: bool = True) -> "LanguageSwin":
        """Like mmdet's, which forgets to return itself."""
        super().train(mode)
        return self

    def init_weights(self) -> None:
        """Linear maps of Swin and gates as in Swin (truncated normal), then the pretrained weights over them.

        Raises:
            CheckpointError: the file is missing, unsafe, or of another architecture.
        """
        for module in [self.patch_embed, self.stages, self.gates]:
            for part in module.modules():
                if isinstance(part, nn.Linear):
                    nn.init.trunc_normal_(part.weight, std=0.02)
                    if part.bias is not None:
                        nn.init.zeros_(part.bias)
                elif isinstance(part, WindowMSA):
                    part.init_weights()
        if self.zero_init_gates:
            gate: Any
            for gate in self.gates:
                gate.close()
        if self.weights is not None:
            verify_sha256(self.weights, self.weights_sha256)
            load_swin(self, load_weights(self.weights), where=self.weights)

    def forward(self, images: Tensor, text: TextFeatures) -> tuple[Tensor, ...]:
        """Fused maps of the stages.

        Args:
            images: [B, 3, H, W] normalised.
            text: Features of the B sentences.

        Returns:
            [B, C_i, H / s_i, W / s_i] with s = 4, 8, 16, 32.
        """
        x, hw = self.patch_embed(images)
        x = self.drop_after_pos(x)
        maps = []
        for index, (stage, fusion) in enumerate(zip(self.stages, self.fusions, strict=True)):
            for block in stage.blocks:
                x = self._block(block, x, hw)
            fused = fusion(x, text)
            normalised = getattr(self, f"norm{index}")(fused)
            maps.append(normalised.transpose(1, 2).unflatten(2, hw).contiguous())
            if stage.downsample is not None:
                x, hw = stage.downsample(x + self.gates[index](fused) * fused, hw)
        return tuple(maps)

    def _block(self, block: nn.Module, x: Tensor, hw: Sequence[int]) -> Tensor:
        if self.recompute and torch.is_grad_enabled():
            again: Tensor = checkpointed(block, x, hw, use_reentrant=False)
            return again
        once: Tensor = block(x, hw)
        return once


def load_swin(backbone: LanguageSwin, published: Mapping[str, Tensor], *, where: str) -> None:
    """Load a published Swin classifier; PWAMs, gates and output norms keep what they have.

    Its patch merging orders the four neighbours in another way than mmdet's, so those weights are permuted.

    Args:
        backbone: Filled in place.
        published: State dict in the names of the Swin authors, or already in mmdet's.
        where: Named in errors.

    Raises:
        CheckpointError: a parameter of Swin is missing, unknown or has another shape.
    """
    is_theirs = any(name.startswith("layers.") for name in published)
    converted = swin_converter(published) if is_theirs else published
    weights = {name.removeprefix("backbone."): value for name, value in converted.items()}
    weights = {name: value for name, value in weights.items() if not _NOT_USED.search(name)}
    own = {name: value for name, value in backbone.state_dict().items() if not _NOT_USED.search(name)}
    missing = [name for name in own if name not in weights and not _NOT_PRETRAINED.search(name)]
    unknown = [name for name in weights if name not in own]
    reshaped = [name for name in own if name in weights and own[name].shape != weights[name].shape]
    if missing or unknown or reshaped:
        raise CheckpointError(
            "the weights are of another Swin",
            where=where,
            expected="the sizes and the window of the config's backbone",
            got=f"missing {missing[:2]}, unknown {unknown[:2]}, other shape {reshaped[:2]}",
            fix="give the published weights of this size and window",
        )
    backbone.load_state_dict(weights, strict=False)
