"""Plain feature matching, the alternative to which S4M compares its structural distillation."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor


def feature_loss(found: Sequence[Tensor], targets: Sequence[Tensor]) -> Tensor:
    """Huber loss between the network's projected features and SAM's, at the same points.

    ``L = mean over b, i, c of huber(W f_b[c_i] + bias - F_b,i[c_i])`` with delta 1, as the structural loss. f_b[c_i]
    is the network's feature at the centre of the cell of SAM's grid that holds point i; W is a learned linear map to
    SAM's channels; F_b,i[c_i] is what SAM has in that cell (``pipeline.sam.decoder_features.features_at_points``),
    neither of them normalised. Unlike self-similarity this asks for SAM's values, and has SAM's features at the P
    points only, not at all cells.

    Args:
        found: B tensors [P, C] of the network, projected.
        targets: B tensors [P, C] of SAM.

    Returns:
        Scalar; 0, still attached to the graph, where there is no point.
    """
    total = torch.stack([each.sum() * 0 for each in found]).sum()
    for each, target in zip(found, targets, strict=True):
        total = total + F.huber_loss(each, target.to(each), reduction="sum", delta=1.0)
    return total / max(sum(each.numel() for each in found), 1)
