"""SAM 2's mask decoder for many prompts on one image, with the same weights and results, and less work.

The package's own decoder copies the image tokens for every prompt and then does everything per prompt. Here

* what the first block projects from the image (keys, values and queries) is the same for all prompts: done once;
* the position code enters keys and queries through a projection of its own: no sum as large as all tokens;
* where heads x prompt tokens are few beside the attention's channels, projections of image tokens move to the few
  prompt tokens: (x W_k) q = x (W_k q), and softmax(...) (x W_v) = (softmax(...) x) W_v;
* predicted IoUs come first, and only masks that are wanted are computed;
* both transposed convolutions have stride = kernel = 2, so they are one linear map per token: the pixels of a token
  stay together, channels last, until the masks are put together.

All of it is algebra: results differ from the package's by rounding (tests/unit/test_prompt_decoder.py).
"""

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

NUM_MASKS = 3
"""Outputs of the multimask mode; the single-mask output is not computed."""


@dataclass(frozen=True)
class Decoded:
    """The two-way transformer's output for P prompts."""

    queries: Tensor
    """[P, T, C] prompt tokens."""
    image_tokens: Tensor
    """[P, gh * gw, C]."""

    def __getitem__(self, prompts: Tensor) -> "Decoded":
        """Some of the prompts."""
        return Decoded(self.queries[prompts], self.image_tokens[prompts])


class PromptDecoder:
    """Runs a ``sam2`` ``MaskDecoder``; holds references to its weights and none of its own."""

    def __init__(self, decoder: Any, position: Tensor) -> None:
        """Take the modules.

        Args:
            decoder: ``sam2.modeling.sam.mask_decoder.MaskDecoder``.
            position: [1, C, gh, gw] position code of the image tokens.
        """
        self._decoder = decoder
        self._grid_hw = (position.shape[2], position.shape[3])
        self._position = position.flatten(2).transpose(1, 2)  # [1, N, C]

    def attend(self, image: Tensor, tokens: Tensor) -> Decoded:
        """The two-way transformer.

        Args:
            image: [1, C, gh, gw] image tokens, dense prompt added, the same for all prompts.
            tokens: [P, T, C] output and prompt tokens.
        """
        transformer = self._decoder.transformer
        keys = image.flatten(2).transpose(1, 2)  # [1, N, C] until a block makes them each prompt's own
        queries = tokens
        for block in transformer.layers:
            if block.skip_first_layer_pe:
                queries = block.self_attn(q=queries, k=queries, v=queries)
            else:
                placed = queries + tokens
                queries = queries + block.self_attn(q=placed, k=placed, v=queries)
            queries = block.norm1(queries)
            queries = queries + self._from_image(block.cross_attn_token_to_image, queries + tokens, keys)
            queries = block.norm2(queries)
            queries = block.norm3(queries + block.mlp(queries))
            keys = block.norm4(self._to_image(block.cross_attn_image_to_token, queries + tokens, queries, keys))
        queries = queries + self._from_image(transformer.final_attn_token_to_image, queries + tokens, keys)
        return Decoded(transformer.norm_final_attn(queries), keys.expand(len(tokens), -1, -1))

    def _from_image(self, attention: Any, asking: Tensor, keys: Tensor) -> Tensor:
        """Prompt tokens [P, T, C] attend to image tokens [P or 1, N, C]: [P, T, C]."""
        heads, (prompts, length, _) = attention.num_heads, asking.shape
        queries = _split(attention.q_proj(asking), heads)  # [P, h, T, d]
        place = self._place(attention.k_proj)  # [1, N, h * d]
        if len(keys) == 1:
            # One image for all: prompts are only more queries.
            merged = queries.transpose(0, 1).reshape(1, heads, prompts * length, queries.shape[-1])
            key = _split(F.linear(keys, attention.k_proj.weight) + place, heads)
            seen = F.scaled_dot_product_attention(merged, key, _split(attention.v_proj(keys), heads))
            seen = seen.reshape(heads, prompts, length, queries.shape[-1]).transpose(0, 1)
        elif _is_narrow(attention, length):
            scores = _scores(queries, attention.k_proj.weight, place, keys)  # [P, h * T, N]
            summary = scores.softmax(-1) @ keys  # [P, h * T, C]
            summary = summary.reshape(prompts, heads, length, keys.shape[-1])
            seen = summary @ _per_head(attention.v_proj.weight, heads).transpose(1, 2)  # [P, h, T, d]
            seen = seen + attention.v_proj.bias.reshape(heads, 1, -1)
        else:
            key = _split(F.linear(keys, attention.k_proj.weight) + place, heads)
            seen = F.scaled_dot_product_attention(queries, key, _split(attention.v_proj(keys), heads))
        answer: Tensor = attention.out_proj(seen.transpose(1, 2).flatten(2))
        return answer

    def _to_image(self, attention: Any, offering: Tensor, values: Tensor, keys: Tensor) -> Tensor:
        """Image tokens [P or 1, N, C] attend to prompt tokens [P, T, C]: themselves and what they see, [P, N, C]."""
        heads, (prompts, length, _) = attention.num_heads, offering.shape
        key = _split(attention.k_proj(offering), heads)  # [P, h, T, d]
        value = _split(attention.v_proj(values), heads)
        place = self._place(attention.q_proj)  # [1, N, h * d]
        if not _is_narrow(attention, length):
            asking = _split(F.linear(keys, attention.q_proj.weight) + place, heads).expand(prompts, -1, -1, -1)
            seen = F.scaled_dot_product_attention(asking, key, value)
            answer: Tensor = keys + attention.out_proj(seen.transpose(1, 2).flatten(2))
            return answer
        scores = _scores(key, attention.q_proj.weight, place, keys)
        shares = scores.reshape(prompts, heads, length, keys.shape[1]).softmax(2).flatten(1, 2)  # [P, h * T, N]
        # [C, h * d] to [h, d, C]: what a head's output becomes. A head's shares sum to 1, so each takes its part of
        # the bias.
        out = attention.out_proj.weight.reshape(-1, heads, key.shape[-1]).permute(1, 2, 0)
        rows = (value @ out).flatten(1, 2) + attention.out_proj.bias / heads  # [P, h * T, C]
        return _plus_product(keys.expand(prompts, -1, -1), shares.transpose(1, 2), rows)

    def _place(self, projection: Any) -> Tensor:
        """[1, N, h * d] what the position code adds to keys or queries, bias included, at full precision."""
        with torch.autocast(self._position.device.type, enabled=False):
            return F.linear(self._position, projection.weight, projection.bias)

    def predicted_iou(self, decoded: Decoded) -> Tensor:
        """[P, 3] of the multimask outputs, at the precision that is on."""
        head = self._decoder.iou_prediction_head
        quality: Tensor = head(decoded.queries[:, self._iou_index].float())[:, 1:]
        return quality

    def masks(self, decoded: Decoded, high_resolution: tuple[Tensor, ...]) -> Tensor:
        """Logits [P, 3, 4gh, 4gw] of the multimask outputs.

        Args:
            decoded: P prompts.
            high_resolution: the image's skip features [1, C / 8, 4gh, 4gw] and [1, C / 4, 2gh, 2gw], or none.
        """
        fine, middle = (_by_token(s, self._grid_hw) for s in high_resolution) if high_resolution else (None, None)
        first, norm, activation, second, last_activation = self._decoder.output_upscaling
        inner = _upscale(decoded.image_tokens, first, middle)  # [P, N, 4, C / 4]
        inner = F.layer_norm(inner, norm.weight.shape, norm.weight, norm.bias, norm.eps)
        pixels = last_activation(_upscale(activation(inner), second, fine))  # [P, N, 4, 4, C / 8]
        pixels = pixels.flatten(1, 3)  # [P, N * 16, C / 8]
        logits: Tensor = self._kernels(decoded) @ pixels.transpose(1, 2)  # [P, 3, N * 16]
        height, width = self._grid_hw
        # Token row and column, then row and column in the first and in the second doubling.
        parts = logits.reshape(len(logits), NUM_MASKS, height, width, 2, 2, 2, 2).permute(0, 1, 2, 4, 6, 3, 5, 7)
        return parts.reshape(len(logits), NUM_MASKS, 4 * height, 4 * width)

    def _kernels(self, decoded: Decoded) -> Tensor:
        """[P, 3, C / 8]: what every pixel's features are multiplied with."""
        start = self._iou_index + 2  # past the quality token and the single-mask token
        heads = self._decoder.output_hypernetworks_mlps[1:]
        return torch.stack([head(decoded.queries[:, start + i]) for i, head in enumerate(heads)], 1)

    @property
    def _iou_index(self) -> int:
        # SAM 2.1 puts an object-score token before the quality token and the mask tokens.
        return 1 if self._decoder.pred_obj_scores else 0


def _is_narrow(attention: Any, length: int) -> bool:
    """Whether image tokens meet ``length`` prompt tokens rather than their own projections.

    Fewer operations where heads x length < channels; up to twice that it is still quicker on CPUs, whose fused
    attention is slow for heads of a few channels (measured with the embedded SAM: 0.41 against 0.56 s).
    """
    return bool(attention.num_heads * length < 2 * attention.internal_dim)


def _split(channels: Tensor, heads: int) -> Tensor:
    """[P, N, h * d] to [P, h, N, d]."""
    return channels.reshape(*channels.shape[:-1], heads, channels.shape[-1] // heads).transpose(1, 2)


def _per_head(weight: Tensor, heads: int) -> Tensor:
    """A projection's weight [h * d, C] as [h, d, C]."""
    return weight.reshape(heads, -1, weight.shape[1])


def _scores(tokens: Tensor, weight: Tensor, place: Tensor, keys: Tensor) -> Tensor:
    """What prompt tokens [P, h, T, d] and projected image tokens [P or 1, N, C] have in common: [P, h * T, N].

    Not in autocast: fused attention keeps its scores in float32, and rounded to bfloat16 they would move masks.
    """
    heads = tokens.shape[1]
    with torch.autocast(tokens.device.type, enabled=False):
        tokens = tokens.to(keys.dtype) * tokens.shape[-1] ** -0.5
        if len(keys) == 1:
            return _per_prompt(tokens, _split(F.linear(keys, weight) + place, heads))
        moved = tokens @ _per_head(weight, heads)  # [P, h, T, C]
        return torch.baddbmm(_per_prompt(tokens, _split(place, heads)), moved.flatten(1, 2), keys.transpose(1, 2))


def _per_prompt(queries: Tensor, place: Tensor) -> Tensor:
    """Prompt tokens [P, h, T, d] times what all prompts share [1, h, N, d]: [P, h * T, N]."""
    prompts, heads, length, _ = queries.shape
    scores = queries.transpose(0, 1).flatten(1, 2) @ place[0].transpose(1, 2)  # [h, P * T, N]
    return scores.reshape(heads, prompts, length, place.shape[2]).transpose(0, 1).flatten(1, 2)


def _plus_product(base: Tensor, left: Tensor, right: Tensor) -> Tensor:
    """``base + left @ right`` in one pass; in autocast apart, for there it would round ``base`` too."""
    if torch.is_autocast_enabled(base.device.type):
        return base + left @ right
    return torch.baddbmm(base, left, right)


def _upscale(tokens: Tensor, convolution: Any, skip: Tensor | None) -> Tensor:
    """A transposed convolution of stride = kernel = 2 on single pixels: [..., C] to [..., 4, C'], row by row.

    ``skip`` is added to it: [1, N, ..., 4, C'] or None.
    """
    weight = convolution.weight.permute(2, 3, 1, 0)  # [2, 2, C', C]
    flat = tokens @ weight.reshape(-1, weight.shape[-1]).T
    out: Tensor = flat.reshape(*flat.shape[:-1], 4, flat.shape[-1] // 4)
    # The bias with the skip features: one pass over all pixels instead of two.
    added = convolution.bias if skip is None else (skip + convolution.bias).to(out.dtype)
    return out.add_(added)


def _by_token(features: Tensor, grid_hw: tuple[int, int]) -> Tensor:
    """Skip features [1, C, s gh, s gw] as [1, N, 4, C] or [1, N, 4, 4, C], in the order of :func:`_upscale`."""
    height, width = grid_hw
    channels, side = features.shape[1], features.shape[2] // height
    if side == 2:
        parts = features.reshape(1, channels, height, 2, width, 2).permute(0, 2, 4, 3, 5, 1)
    else:
        parts = features.reshape(1, channels, height, 2, 2, width, 2, 2).permute(0, 2, 5, 3, 6, 4, 7, 1)
    return parts.reshape(1, height * width, *[4] * (side // 2), channels)
