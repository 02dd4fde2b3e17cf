"""Fewer clicks: what a coarse grid found already is not clicked again. Not the reference's result; off by default."""

import torch
from torch import Tensor

_LARGEST_SHARE = 4.0
"""Clicks are spared by masks of at most so many of the coarse grid's cells: a larger mask may hold other objects."""


def spared(points_xy: Tensor, logits: Tensor, size_hw: tuple[int, int], coarse_points_per_side: int) -> Tensor:
    """Which clicks lie in a small mask of the coarse grid.

    Args:
        points_xy: [N, 2] float32 pixels.
        logits: [M, h, w] float32 of the masks that the coarse grid gave and that passed all filters.
        size_hw: of the image in pixels.
        coarse_points_per_side: of the coarse grid.

    Returns:
        [N] bool, on the device of ``logits``.
    """
    height, width = logits.shape[1:]
    masks = logits > 0
    areas = masks.flatten(1).sum(1, dtype=torch.int32)
    small = areas <= _LARGEST_SHARE * height * width / coarse_points_per_side**2
    covered = masks[small].any(0)  # [h, w]
    scale = torch.tensor([width / size_hw[1], height / size_hw[0]], device=logits.device)
    cells = (points_xy.to(logits.device) * scale).long()
    return covered[cells[:, 1].clamp(max=height - 1), cells[:, 0].clamp(max=width - 1)]
