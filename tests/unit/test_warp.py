"""Warps are compared with exact index arithmetic, with analytic fields, and with torch's grid sampling."""

import numpy as np
import pytest
import torch

from pipeline.masks import warp


def scaling(sx, sy=None):
    return np.diag([sx, sy or sx, 1.0])


def shift(dx, dy):
    return np.array([[1.0, 0, dx], [0, 1, dy], [0, 0, 1]])


def flip(width):
    return np.array([[-1.0, 0, width], [0, 1, 0], [0, 0, 1]])


def centres(height, width):
    return np.meshgrid(np.arange(width) + 0.5, np.arange(height) + 0.5)


def random_maps(*shape):
    return np.random.default_rng(0).random(shape, dtype=np.float32)


def test_map_points_at_corners_and_centres():
    corners = np.array([[0.0, 0], [10, 0], [0, 6], [10, 6]])
    np.testing.assert_array_equal(warp.map_points(corners, flip(10)), [[10, 0], [0, 0], [10, 6], [0, 6]])
    np.testing.assert_array_equal(warp.map_points(corners, shift(-2, -1) @ scaling(2)), corners * 2 - [2, 1])
    np.testing.assert_array_equal(warp.map_points(np.array([0.5, 0.5]), scaling(3, 2)), [1.5, 1.0])
    doubled = 2 * (shift(1, 2) @ scaling(2))  # the scale of a homography has no meaning
    np.testing.assert_allclose(warp.map_points(corners, doubled), corners * 2 + [1, 2])


def test_identity_is_exact_both_ways():
    maps = random_maps(3, 7, 11)
    canonical, visible = warp.warp_to_canonical(maps, np.eye(3), view_hw=(7, 11), canonical_hw=(7, 11))
    np.testing.assert_array_equal(canonical, maps)
    assert canonical.dtype == np.float32
    assert visible.dtype == bool
    assert visible.all()
    np.testing.assert_array_equal(warp.warp_to_view(maps > 0.5, np.eye(3), view_hw=(7, 11)), maps > 0.5)
    np.testing.assert_array_equal(warp.warp_maps_to_view(maps, np.eye(3), view_hw=(7, 11)), maps)


@pytest.mark.parametrize("width", [10, 11])
def test_flip_is_exact_both_ways(width):
    maps = random_maps(3, 7, width)
    canonical, visible = warp.warp_to_canonical(maps, flip(width), view_hw=(7, width), canonical_hw=(7, width))
    np.testing.assert_array_equal(canonical, maps[:, :, ::-1])
    assert visible.all()
    np.testing.assert_array_equal(
        warp.warp_to_view(maps > 0.5, flip(width), view_hw=(7, width)), maps[:, :, ::-1] > 0.5
    )


def test_crop_shows_exactly_the_window():
    maps = random_maps(2, 4, 5)
    homography = shift(-3, -2)  # the view is the window [2:6, 3:8] of a 9 x 12 image
    canonical, visible = warp.warp_to_canonical(maps, homography, view_hw=(4, 5), canonical_hw=(9, 12))
    expected = np.zeros((9, 12), dtype=bool)
    expected[2:6, 3:8] = True
    np.testing.assert_array_equal(visible, expected)
    np.testing.assert_array_equal(canonical[:, 2:6, 3:8], maps)
    assert not canonical[:, ~expected].any()
    whole = random_maps(2, 9, 12) > 0.5
    np.testing.assert_array_equal(warp.warp_to_view(whole, homography, view_hw=(4, 5)), whole[:, 2:6, 3:8])


def test_padding_is_not_visible_and_comes_back_false():
    maps = np.ones((1, 4, 4), dtype=np.float32)  # stride 4 over a 16 x 16 canvas, of which 10 x 12 is image
    canonical, visible = warp.warp_to_canonical(
        maps, scaling(0.5), view_hw=(10, 12), canonical_hw=(20, 24), canvas_hw=(16, 16)
    )
    assert visible.all()
    assert (canonical == 1).all()
    back = warp.warp_to_view(np.ones((1, 20, 24), dtype=bool), scaling(0.5), view_hw=(16, 16))
    expected = np.zeros((16, 16), dtype=bool)
    expected[:10, :12] = True
    np.testing.assert_array_equal(back[0], expected)
    weights = warp.warp_maps_to_view(np.ones((1, 20, 24), np.float32), scaling(0.5), view_hw=(16, 16), outside=0.25)
    np.testing.assert_array_equal(weights[0], np.where(expected, 1, 0.25))


def test_stride_is_a_matter_of_the_canvas_not_of_the_valid_area():
    columns = np.arange(4, dtype=np.float32)[None, None].repeat(4, axis=1)  # value j at x = (j + 0.5) * 4
    canonical, _ = warp.warp_to_canonical(
        columns, np.eye(3), view_hw=(16, 10), canonical_hw=(16, 10), canvas_hw=(16, 16)
    )
    expected = np.clip((np.arange(10) + 0.5) / 4 - 0.5, 0, 3)
    np.testing.assert_allclose(canonical[0, 7], expected, atol=1e-6)


def test_a_linear_field_survives_crop_scale_and_flip():
    """A field linear in canonical position, painted at the view's cells, must read as itself wherever it is visible."""
    homography = shift(-20, -13) @ flip(90) @ scaling(1.5, 1.25)
    x, y = centres(20, 25)  # 25 x 20 cells of stride 2 over a 50 x 40 view
    cells = warp.map_points(np.stack([x * 2, y * 2], axis=-1), np.linalg.inv(homography))
    field = (0.01 * cells[..., 0] + 0.007 * cells[..., 1]).astype(np.float32)
    canonical, visible = warp.warp_to_canonical(field[None], homography, view_hw=(40, 50), canonical_hw=(50, 60))
    x, y = centres(50, 60)
    in_view = warp.map_points(np.stack([x, y], axis=-1), homography)
    away_from_border = ((in_view > 1) & (in_view < [49, 39])).all(axis=-1)
    assert away_from_border.sum() > 500
    assert visible[away_from_border].all()
    np.testing.assert_allclose(canonical[0][away_from_border], (0.01 * x + 0.007 * y)[away_from_border], atol=1e-5)
    np.testing.assert_array_equal(visible, ((in_view >= 0) & (in_view < [50, 40])).all(axis=-1))


def test_crop_and_scale_against_an_analytic_disc():
    homography = shift(-12, -30) @ scaling(2.0)
    x, y = centres(80, 100)
    canonical_disc = (x - 40) ** 2 + (y - 45) ** 2 < 20**2
    view_x, view_y = centres(120, 130)
    view_disc = (view_x - 68) ** 2 + (view_y - 60) ** 2 < 40**2
    warped = warp.warp_to_view(canonical_disc[None], homography, view_hw=(120, 130))[0]
    rim = np.abs(np.hypot(view_x - 68, view_y - 60) - 40) < 1.5  # nearest sampling: at most one canonical pixel off
    np.testing.assert_array_equal(warped[~rim], view_disc[~rim])
    probability = 1 / (1 + np.exp(np.hypot(view_x - 68, view_y - 60) - 40)).astype(np.float32)
    back, visible = warp.warp_to_canonical(probability[None], homography, view_hw=(120, 130), canonical_hw=(80, 100))
    rim = np.abs(np.hypot(x - 40, y - 45) - 20) < 0.25
    np.testing.assert_array_equal((back[0] > 0.5)[visible & ~rim], canonical_disc[visible & ~rim])
    assert not back[0][~visible].any()


@pytest.mark.parametrize("scale", [2.0, 3.0])
def test_round_trip_of_a_mask_through_an_enlarged_flipped_view(scale):
    mask = random_maps(2, 9, 13) > 0.5
    width = int(13 * scale)
    homography = flip(width) @ scaling(scale)
    view = warp.warp_to_view(mask, homography, view_hw=(int(9 * scale), width))
    back, visible = warp.warp_to_canonical(
        view.astype(np.float32), homography, view_hw=view.shape[1:], canonical_hw=(9, 13)
    )
    assert visible.all()
    np.testing.assert_array_equal(back > 0.5, mask)


def test_rotation_takes_the_general_path_and_agrees_with_torch():
    angle = 0.4
    turn = np.array([[np.cos(angle), -np.sin(angle), 8.0], [np.sin(angle), np.cos(angle), -3.0], [0, 0, 1]])
    maps = random_maps(2, 10, 12)
    ours, visible = warp.warp_to_canonical(maps, turn, view_hw=(20, 24), canonical_hw=(18, 21))
    x, y = centres(18, 21)
    in_view = warp.map_points(np.stack([x, y], axis=-1), turn)
    grid = torch.from_numpy(in_view / [24, 20] * 2 - 1)[None].expand(2, -1, -1, -1)
    theirs = torch.nn.functional.grid_sample(
        torch.from_numpy(maps)[:, None].double(), grid, mode="bilinear", padding_mode="border", align_corners=False
    )[:, 0].numpy()
    assert 50 < visible.sum() < visible.size
    np.testing.assert_allclose(ours[:, visible], theirs[:, visible], atol=1e-5)
    assert not ours[:, ~visible].any()


def test_general_and_separable_paths_agree():
    maps = random_maps(2, 10, 12)
    straight = shift(-4.3, 2.1) @ scaling(1.71, 0.93)  # no centre on a pixel edge
    barely_turned = straight.copy()
    barely_turned[0, 1] = 1e-13
    fast, fast_visible = warp.warp_to_canonical(maps, straight, view_hw=(20, 24), canonical_hw=(18, 21))
    slow, slow_visible = warp.warp_to_canonical(maps, barely_turned, view_hw=(20, 24), canonical_hw=(18, 21))
    np.testing.assert_array_equal(fast_visible, slow_visible)
    np.testing.assert_allclose(fast, slow, atol=1e-6)
    canonical = random_maps(2, 18, 21) > 0.5
    fast_view = warp.warp_to_view(canonical, straight, view_hw=(20, 24))
    np.testing.assert_array_equal(fast_view, warp.warp_to_view(canonical, barely_turned, view_hw=(20, 24)))


def test_perspective_shows_nothing_behind_the_camera():
    # The horizon is at x = 5; the shift moves what lies behind it onto the view, upside down.
    perspective = shift(400, 400) @ np.array([[1.0, 0, 0], [0, 1, 0], [-0.2, 0, 1]])
    _, visible = warp.warp_to_canonical(random_maps(1, 8, 8), perspective, view_hw=(800, 800), canonical_hw=(6, 10))
    assert visible[:, :4].any()
    assert not visible[:, 5:].any()


def test_no_instances_and_nothing_visible():
    none, visible = warp.warp_to_canonical(random_maps(0, 4, 4), np.eye(3), view_hw=(4, 4), canonical_hw=(5, 6))
    assert none.shape == (0, 5, 6)
    assert visible.sum() == 16
    far, visible = warp.warp_to_canonical(random_maps(1, 4, 4), shift(99, 0), view_hw=(4, 4), canonical_hw=(5, 6))
    assert not visible.any()
    assert not far.any()
    assert warp.warp_to_view(np.ones((0, 5, 6), bool), np.eye(3), view_hw=(4, 4)).shape == (0, 4, 4)
