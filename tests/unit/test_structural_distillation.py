"""The structural loss must not depend on the view: features are pulled back exactly."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from pipeline.distill.self_similarity import View, features_at_cells, grid_centres, similarity_rows
from pipeline.distill.structural_loss import structural_loss

CANONICAL_HW = (96, 128)
GRID_HW = (12, 16)


def known_features(xy):
    """A smooth function of canonical position, linear so that bilinear sampling is exact: [..., 4]."""
    x, y = xy[..., 0], xy[..., 1]
    return torch.stack([0.02 * x + 1, 0.03 * y - 1, 0.01 * (x - y), torch.ones_like(x)], dim=-1)


def render_view(homography, valid_hw, canvas_hw, stride):
    """The feature map that a perfect network would give for the view."""
    rows = (torch.arange(canvas_hw[0] // stride) + 0.5) * stride
    columns = (torch.arange(canvas_hw[1] // stride) + 0.5) * stride
    y, x = torch.meshgrid(rows, columns, indexing="ij")
    view_xy1 = torch.stack([x, y, torch.ones_like(x)], dim=-1).double()
    canonical = view_xy1 @ torch.linalg.inv(homography).T
    features = known_features(canonical[..., :2] / canonical[..., 2:])
    features[(y >= valid_hw[0]) | (x >= valid_hw[1])] = 1e3  # padding holds garbage
    return features.permute(2, 0, 1).float()


def random_view(seed, *, pad):
    """Flip, resize, crop and pad, composed as a training pipeline composes them."""
    rng = np.random.default_rng(seed)
    height, width = CANONICAL_HW
    homography = np.eye(3)
    if rng.random() < 0.5:
        homography = np.array([[-1, 0, width], [0, 1, 0], [0, 0, 1.0]]) @ homography
    scale_x, scale_y = rng.uniform(0.7, 1.8, 2)
    homography = np.diag([scale_x, scale_y, 1.0]) @ homography
    full_hw = (int(height * scale_y), int(width * scale_x))
    crop = (int(rng.integers(40, full_hw[0])), int(rng.integers(40, full_hw[1])))
    top, left = rng.integers(0, full_hw[0] - crop[0] + 1), rng.integers(0, full_hw[1] - crop[1] + 1)
    homography = np.array([[1, 0, -left], [0, 1, -top], [0, 0, 1.0]]) @ homography
    canvas = tuple(-(-side // 32) * 32 + (32 if pad else 0) for side in crop)
    return View(torch.from_numpy(homography), CANONICAL_HW, crop, canvas)


@pytest.mark.parametrize("seed", range(12))
def test_features_are_pulled_back_exactly(seed):
    view = random_view(seed, pad=seed % 2 == 1)
    features = render_view(view.homography, view.valid_hw, view.canvas_hw, stride=1)
    sampled, visible = features_at_cells(features, view, GRID_HW)
    centres = grid_centres(GRID_HW, CANONICAL_HW)
    xy = (F.pad(centres, (0, 1), value=1.0).double() @ view.homography.T)[:, :2]
    inner = visible & (xy > 1).all(1) & (xy[:, 0] < view.valid_hw[1] - 1) & (xy[:, 1] < view.valid_hw[0] - 1)
    assert inner.any()
    torch.testing.assert_close(sampled[inner], known_features(centres)[inner], rtol=1e-4, atol=1e-3)


def test_visibility_at_the_corners():
    view = View(torch.tensor([[1.0, 0, -8], [0, 1, 0], [0, 0, 1]]), (32, 32), (32, 16), (32, 32))
    _, visible = features_at_cells(torch.zeros(1, 8, 8), view, (4, 4))
    # Cell centres lie at x = 4, 12, 20, 28; the view shows canonical x from 8 to 24.
    assert visible.view(4, 4).tolist() == [[False, True, True, False]] * 4


@pytest.mark.parametrize("seed", range(6))
def test_rows_equal_a_slow_loop(seed):
    generator = torch.Generator().manual_seed(seed)
    view = random_view(seed, pad=True)
    stride = 4
    features = torch.randn(5, view.canvas_hw[0] // stride, view.canvas_hw[1] // stride, generator=generator)
    points = torch.rand(9, 2, generator=generator) * torch.tensor([CANONICAL_HW[1], CANONICAL_HW[0]])
    cells = (points[:, 1] * GRID_HW[0] / CANONICAL_HW[0]).long() * GRID_HW[1] + (
        points[:, 0] * GRID_HW[1] / CANONICAL_HW[1]
    ).long()
    rows, mask = similarity_rows(features, view, cells, GRID_HW)
    sampled, visible = features_at_cells(features, view, GRID_HW)
    for i, (x, y) in enumerate(points.tolist()):
        row, column = int(y * GRID_HW[0] / CANONICAL_HW[0]), int(x * GRID_HW[1] / CANONICAL_HW[1])
        own = row * GRID_HW[1] + column
        for j in range(GRID_HW[0] * GRID_HW[1]):
            expected = F.cosine_similarity(sampled[own], sampled[j], dim=0)
            assert abs(float(rows[i, j] - expected)) < 1e-5
            assert bool(mask[i, j]) == bool(visible[own] and visible[j])


def test_whole_view_equals_the_resized_feature_map():
    """On a view that keeps the whole image the pull-back is the paper's bilinear resize to SAM's grid."""
    features = torch.randn(3, 24, 32, generator=torch.Generator().manual_seed(0))
    view = View(torch.eye(3), CANONICAL_HW, CANONICAL_HW, CANONICAL_HW)
    sampled, visible = features_at_cells(features, view, GRID_HW)
    resized = F.interpolate(features[None], GRID_HW, mode="bilinear", align_corners=False)[0]
    assert visible.all()
    torch.testing.assert_close(sampled.T.reshape(resized.shape), resized, rtol=1e-4, atol=1e-5)


def test_loss_is_zero_for_equal_rows_and_half_the_square_for_small_gaps():
    rows, mask = torch.tensor([[0.5, -0.2]]), torch.tensor([[True, True]])
    assert float(structural_loss([rows], [rows], [mask])) == 0
    assert float(structural_loss([rows], [rows - 0.4], [mask])) == pytest.approx(0.5 * 0.16)


def test_masked_cells_do_not_count_and_an_unseen_image_keeps_the_graph():
    rows = torch.tensor([[0.5, 9.0]], requires_grad=True)
    loss = structural_loss([rows], [torch.zeros(1, 2)], [torch.tensor([[True, False]])])
    assert float(loss) == pytest.approx(0.125)
    nothing = structural_loss([rows], [torch.zeros(1, 2)], [torch.zeros(1, 2, dtype=torch.bool)])
    nothing.backward()
    assert float(nothing) == 0
    assert rows.grad is not None


def test_every_view_weighs_the_same_whatever_it_shows_of_its_image():
    """A mean over all pairs of the batch would be (16 * 0.02 + 0.18) / 17 = 0.029."""
    whole, crop, hidden = torch.zeros(4, 4), torch.zeros(1, 4), torch.zeros(2, 4)
    seen = torch.zeros(1, 4, dtype=torch.bool)
    seen[0, 0] = True
    masks = [torch.ones(4, 4, dtype=torch.bool), seen, torch.zeros(2, 4, dtype=torch.bool)]
    loss = structural_loss([whole, crop, hidden], [whole + 0.2, crop + 0.6, hidden + 5], masks)
    assert float(loss) == pytest.approx((0.02 + 0.18) / 2)
    none_drawn = torch.zeros(0, 4)
    assert float(structural_loss([whole, none_drawn], [whole + 0.2, none_drawn], [masks[0], none_drawn.bool()])) == (
        pytest.approx(0.02)
    )


def test_gradient_reaches_the_features():
    features = torch.randn(4, 24, 32, requires_grad=True, generator=torch.Generator().manual_seed(1))
    view = View(torch.eye(3), CANONICAL_HW, CANONICAL_HW, CANONICAL_HW)
    rows, mask = similarity_rows(features, view, torch.tensor([17]), GRID_HW)
    structural_loss([rows], [torch.zeros_like(rows)], [mask]).backward()
    assert float(features.grad.abs().sum()) > 0
