"""The network's side of the self-similarity, read in SAM's canonical grid whatever the training view.

Eq: S4M/self-similarity lives here for the network (``pipeline.sam.decoder_features`` has SAM's side). The stored
target is never warped: the network's features are pulled back. For each cell of SAM's grid the centre is mapped
from the canonical frame into the view and the feature map is sampled there, bilinearly; cells that the view does
not show are masked out. Exact under flip, resize, crop and pad.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

_MIN_NORM = 1e-6
"""Smallest feature norm that is divided by (spec of the released loss)."""


@dataclass(frozen=True)
class View:
    """How one training view shows its canonical image; pixel centres at +0.5."""

    homography: Tensor
    """[3, 3] canonical to view."""
    canonical_hw: tuple[int, int]
    """Size of the decoded original image in pixels."""
    valid_hw: tuple[int, int]
    """Part of the view that shows image, padding excluded."""
    canvas_hw: tuple[int, int]
    """Area in view pixels that the feature map covers, padding included."""

    def as_image(self) -> "View":
        """The same view as an image of its own: what it shows is canonical, and all of it is visible."""
        return View(torch.eye(3, dtype=self.homography.dtype), self.valid_hw, self.valid_hw, self.canvas_hw)


def grid_centres(grid_hw: tuple[int, int], canonical_hw: tuple[int, int]) -> Tensor:
    """Centres of the grid's cells, which cover the canonical image edge to edge: [gh * gw, 2] float32 (x, y)."""
    rows = (torch.arange(grid_hw[0]) + 0.5) * (canonical_hw[0] / grid_hw[0])
    columns = (torch.arange(grid_hw[1]) + 0.5) * (canonical_hw[1] / grid_hw[1])
    y, x = torch.meshgrid(rows, columns, indexing="ij")
    return torch.stack([x.flatten(), y.flatten()], dim=1)


def points_in_view(points_xy: Tensor, view: View) -> tuple[Tensor, Tensor]:
    """Where canonical points lie in a view.

    Args:
        points_xy: [P, 2] float, canonical pixels.
        view: The view.

    Returns:
        [P, 2] view pixels, and [P] bool: which of them the view shows.
    """
    mapped = F.pad(points_xy, (0, 1), value=1.0) @ view.homography.to(points_xy).T  # [P, 3]
    xy = mapped[:, :2] / mapped[:, 2:]
    height, width = view.valid_hw
    visible = (mapped[:, 2] > 0) & (xy >= 0).all(dim=1) & (xy[:, 0] < width) & (xy[:, 1] < height)
    return xy, visible


def features_at_cells(features: Tensor, view: View, grid_hw: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """Sample one feature map at the centres of SAM's cells.

    Args:
        features: [C, h, w], any stride; covers ``view.canvas_hw`` edge to edge.
        view: Where the canonical image lies in it.
        grid_hw: SAM's grid.

    Returns:
        features [gh * gw, C] and visible [gh * gw] bool. Values of invisible cells mean nothing.
    """
    xy, visible = points_in_view(grid_centres(grid_hw, view.canonical_hw).to(features), view)
    canvas = xy.new_tensor([view.canvas_hw[1], view.canvas_hw[0]])
    where = (2 * xy / canvas - 1)[None, None]  # [1, 1, G, 2]
    sampled = F.grid_sample(features[None], where, mode="bilinear", padding_mode="border", align_corners=False)
    return sampled[0, :, 0].T, visible


def similarity_rows(features: Tensor, view: View, cells: Tensor, grid_hw: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """Cosine between the cell of each point and every cell, with what of it the view shows.

    Eq: S4M/self-similarity. ``C[i, j] = cos(f[c(i)], f[j])`` with

    ======  ==========================================
    c(i)    cell under point i, ``cells`` [P]
    f[j]    feature at the centre of cell j [G, C]
    ======  ==========================================

    Args:
        features: [C, h, w] feature map of the view.
        view: Geometry of the view.
        cells: [P] int64, flat index (row * gw + column) of the cell under each stored point.
        grid_hw: SAM's grid.

    Returns:
        rows [P, gh * gw] in [-1, 1] and mask [P, gh * gw] bool, true where both cells are visible.
    """
    sampled, visible = features_at_cells(features.float(), view, grid_hw)
    unit = sampled / sampled.norm(dim=1, keepdim=True).clamp(min=_MIN_NORM)
    rows = unit[cells] @ unit.T  # Eq: S4M/self-similarity
    return rows, visible[cells][:, None] & visible[None]
