"""The structural distillation loss: the network's self-similarity should be SAM's. Eq: S4M/structural-loss."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor


def structural_loss(rows: Sequence[Tensor], targets: Sequence[Tensor], masks: Sequence[Tensor]) -> Tensor:
    """Huber loss between self-similarity rows, mean over everything that the views show.

    Eq: S4M/structural-loss. ``L_SD = mean over b, i, j of huber(C_T[b, i, j] - C_SAM[b, i, j])`` with delta 1 (the
    released smooth L1 of beta 1); cells and points outside the view or in padding do not count (the released mean
    counts padding).

    Args:
        rows: B tensors [P, G] of the network, ``C_T``.
        targets: B tensors [P, G] of SAM, ``C_SAM``.
        masks: B tensors [P, G] bool.

    Returns:
        Scalar; 0, still attached to the graph, where nothing is visible.
    """
    total, count = torch.stack([row.sum() * 0 for row in rows]).sum(), 0
    for row, target, mask in zip(rows, targets, masks, strict=True):
        gap = F.huber_loss(row, target.to(row), reduction="none", delta=1.0)  # Eq: S4M/structural-loss
        total = total + (gap * mask).sum()
        count += int(mask.sum())
    return total / max(count, 1)
