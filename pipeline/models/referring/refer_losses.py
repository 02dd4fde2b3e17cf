"""Losses of referring segmentation: one number per image, so that whoever combines images decides how they weigh."""

from collections.abc import Sequence
from typing import Literal, get_args

import torch
from torch import Tensor
from torch.nn import functional

Normalise = Literal["pixels", "weights"]
"""What a weighted sum over pixels is divided by: how many pixels there are, or the sum of their weights."""

NORMALISATIONS: tuple[str, ...] = get_args(Normalise)

UnlabelledMix = Literal["per_image", "halves"]
"""per_image: every image learnt weighs the same. halves: matched and unmatched images make one half of the loss each,
however many they are (as released)."""

UNLABELLED_MIXES: tuple[str, ...] = get_args(UnlabelledMix)

ClassWeights = Sequence[float]
"""Weights of background and object pixels."""

CLASS_WEIGHTS: ClassWeights = (0.9, 1.1)
"""Of LAVT and of SemiRES as released; the paper of SemiRES writes an unweighted cross entropy."""


def pixel_cross_entropy(
    logits: Tensor,
    targets: Tensor,
    *,
    class_weights: ClassWeights | None = CLASS_WEIGHTS,
    pixel_weights: Tensor | None = None,
    normalise: Normalise = "pixels",
) -> Tensor:
    """Cross entropy of background and object, for each image on its own; with pixel weights Eq: SemiRES/pwa (Eq. 10).

    LAVT's training (SemiRES' burn-in) divides by the sum of weights, SemiRES' mutual learning by the number of pixels.
    LAVT sums both over the whole batch first; here every image counts the same.

    Args:
        logits: [B, 2, H, W] of background and object; half precision is computed in float32.
        targets: [B, H, W] bool, the object.
        class_weights: Of background and object pixels; None is 1 for both.
        pixel_weights: [B, H, W] not negative, beside the class weights; None is 1 everywhere.
        normalise: The divisor; an image whose weights are all zero has loss zero.

    Returns:
        [B] float32.
    """
    entropy = functional.cross_entropy(logits.float(), targets.long(), reduction="none")  # [B, H, W]
    weights = torch.ones_like(entropy) if pixel_weights is None else pixel_weights.to(entropy)
    weights = weights * class_weight_map(targets, class_weights)
    divisor = weights.sum(dim=(1, 2)).clamp_min(1e-12) if normalise == "weights" else float(targets[0].numel())
    return (entropy * weights).sum(dim=(1, 2)) / divisor  # Eq: SemiRES/pwa


def class_weight_map(targets: Tensor, class_weights: ClassWeights | None) -> Tensor:
    """The weight of every pixel's class, float32 of the shape of ``targets`` (bool); None is 1 for both classes."""
    background, target = class_weights or (1.0, 1.0)
    return torch.where(targets.bool(), target, background).float()


def unlabelled_loss(per_image: Tensor, matched: Tensor, learnt: Tensor, *, mix: UnlabelledMix = "per_image") -> Tensor:
    """Combine the losses of the unlabelled images of a batch.

    SemiRES as released averages the term of matched images and the term of unmatched ones whatever their counts (one
    unmatched image of three weighs half of the loss); where one of them is missing the other counts fully.

    Args:
        per_image: [B] losses.
        matched: [B] bool, whose pseudo-label was replaced by proposals.
        learnt: [B] bool; the others count in no mean.
        mix: How images weigh.

    Returns:
        A scalar; zero, and still attached to ``per_image``, where nothing is learnt.
    """
    groups = [learnt] if mix == "per_image" else [learnt & matched, learnt & ~matched]
    means = [torch.where(group, per_image, 0).sum() / group.sum() for group in groups if bool(group.any())]
    return torch.stack(means).mean() if means else torch.where(learnt, per_image, 0).sum()
