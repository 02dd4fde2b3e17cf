"""The structural distillation loss: the network's self-similarity should be SAM's. Eq: S4M/structural-loss."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor


def structural_loss(rows: Sequence[Tensor], targets: Sequence[Tensor], masks: Sequence[Tensor]) -> Tensor:
    """Huber loss between self-similarity rows: mean over what a view shows, then over the views.

    Eq: S4M/structural-loss. ``L_SD = mean over b of (mean over i, j of huber(C_T[b, i, j] - C_SAM[b, i, j]))`` with
    delta 1 (the released smooth L1 of beta 1). Cells and points outside the view or in padding do not count (the
    released mean counts padding). Every view that shows a pair weighs the same, however much of its image it shows: a
    mean over all pairs of a batch would give a crop at twice the size a sixteenth of a whole image's points and
    cells, and so next to no weight.

    Args:
        rows: B tensors [P, G] of the network, ``C_T``; P may differ between them.
        targets: B tensors [P, G] of SAM, ``C_SAM``.
        masks: B tensors [P, G] bool.

    Returns:
        Scalar; 0, still attached to the graph, where nothing is visible.
    """
    total, num_views = torch.stack([row.sum() * 0 for row in rows]).sum(), 0
    for row, target, mask in zip(rows, targets, masks, strict=True):
        num_pairs = int(mask.sum())
        if num_pairs:
            gap = F.huber_loss(row, target.to(row), reduction="none", delta=1.0)  # Eq: S4M/structural-loss
            total = total + (gap * mask).sum() / num_pairs
            num_views += 1
    return total / max(num_views, 1)
