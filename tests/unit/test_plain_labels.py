"""What works inside windows gives what whole frames give, to the bit: `jobs.bench.plain_labels` has those."""

from dataclasses import astuple

import numpy as np
import pytest
import torch

from jobs.bench import plain_labels as plain
from pipeline.data.arp import ArpSettings, Sample, mix_pair, paste
from pipeline.distill.self_similarity import View
from pipeline.masks import warp
from pipeline.masks.overlap import mask_areas, pairwise_iou
from pipeline.masks.points import SAMPLING_RULES
from pipeline.masks.window import bounding_window
from pipeline.models.pseudo_labels import TeacherQueries, sigmoid, to_canonical, to_view
from pipeline.refine.interface import Refined, TeacherMasks
from pipeline.refine.prompts import box_corners, make_prompts

SEEDS = range(40)
FRAMES = [(24, 32), (40, 8), (16, 20), (1, 64), (64, 1), (32, 54)]
"""Canonical sizes of a multiple of 64 pixels: torch's sigmoid of a whole frame has no end that it does one by one."""


def random_masks(rng, size_hw):
    """None to five masks: objects anywhere, across borders, on a border, of one pixel, of none, of all."""
    height, width = size_hw
    y, x = np.mgrid[:height, :width]
    masks = np.zeros((rng.integers(6), height, width), bool)
    for mask in masks:
        kind = rng.integers(6)
        row, column = rng.integers(height), rng.integers(width)
        if kind < 3:
            mask[:] = ((y - row) / rng.uniform(1, 12)) ** 2 + ((x - column) / rng.uniform(1, 12)) ** 2 < 1
        elif kind == 3:
            mask[row, column] = True
        elif kind == 4:
            mask[:] = True
        mask &= rng.random(size_hw) < 0.9 if kind == 0 else True
    return masks


def random_view(rng, canonical_hw):
    """Enlarged or reduced, perhaps flipped, with padding, of all, a part or (seldom) nothing of the image."""
    scale_y, scale_x = rng.choice([0.5, 0.73, 1.0, 1.6, 2.0], size=2)
    matrix = np.diag([scale_x, scale_y, 1.0])
    if rng.random() < 0.5:
        matrix = np.array([[-1, 0, scale_x * canonical_hw[1]], [0, 1, 0], [0, 0, 1]]) @ matrix
    matrix[:2, 2] -= rng.integers(-3, [canonical_hw[1] + 1, canonical_hw[0] + 1]) * (rng.random() < 0.7)
    valid = tuple(int(n) for n in rng.integers(1, 50, size=2))
    canvas = tuple(int(n + rng.integers(0, 20) * (rng.random() < 0.7)) for n in valid)
    return View(torch.from_numpy(matrix.astype(np.float32)), canonical_hw, valid, canvas)


def random_queries(rng, view):
    count = int(rng.integers(5))
    cells = [max(1, -(-side // int(rng.choice([1, 4])))) for side in view.canvas_hw]
    logits = torch.from_numpy(rng.normal(scale=6, size=(count, *cells)).astype(np.float32))
    return TeacherQueries(logits, torch.arange(count), torch.full((count,), 0.9))


def random_teacher(seed):
    rng = np.random.default_rng(seed)
    view = random_view(rng, FRAMES[seed % len(FRAMES)])
    return rng, view, plain.to_canonical(random_queries(rng, view), view)


def random_sample(rng, size_hw, *, weighted):
    masks = random_masks(rng, size_hw)
    image = rng.integers(0, 256, (*size_hw, 3), dtype=np.uint8)
    weights = tuple(
        rng.random(size_hw, dtype=np.float32) if weighted and rng.random() < 0.5 else None for _ in range(len(masks))
    )
    return Sample(image, masks, rng.integers(0, 80, len(masks)), weights)


def assert_same(found, expected):
    """Equal to the bit, of one type; tuples and lists of arrays item by item."""
    if isinstance(expected, tuple | list):
        assert len(found) == len(expected)
        for one, other in zip(found, expected, strict=True):
            assert_same(one, other)
    elif expected is None:
        assert found is None
    else:
        assert found.dtype == expected.dtype
        np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("seed", SEEDS)
def test_windows_hold_every_pixel_and_no_empty_border(seed):
    rng = np.random.default_rng(seed)
    for mask in random_masks(rng, tuple(rng.integers(1, 30, size=2))):
        window = bounding_window(mask)
        assert mask[window].sum() == mask.sum()
        inside = mask[window]
        if mask.any():
            assert all(edge.any() for edge in (inside[0], inside[-1], inside[:, 0], inside[:, -1]))
            rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
            assert_same(
                box_corners(mask), np.array([[columns[0], rows[0]], [columns[-1] + 1, rows[-1] + 1]], np.float32)
            )
        else:
            assert inside.shape == (0, 0)


@pytest.mark.parametrize("seed", SEEDS)
def test_probabilities_and_masks_in_the_canonical_frame(seed):
    rng = np.random.default_rng(seed)
    view = random_view(rng, FRAMES[seed % len(FRAMES)])
    queries = random_queries(rng, view)
    found, expected = to_canonical(queries, view), plain.to_canonical(queries, view)
    assert_same(astuple(found), astuple(expected))
    assert_same(found.masks, (expected.probabilities > 0.5) & expected.visible)


def test_the_views_of_these_tests_show_all_part_and_nothing_of_their_images():
    shown = [random_teacher(seed)[2].visible.mean() for seed in SEEDS]
    assert {0.0, 1.0} < {float(share) for share in shown}
    assert sum(0 < share < 1 for share in shown) > 10


def test_masks_where_the_visible_region_is_no_rectangle():
    rng = np.random.default_rng(0)
    visible = np.add.outer(np.arange(12), np.arange(16)) > 9
    teacher = TeacherMasks(rng.random((3, 12, 16), np.float32), visible, np.arange(3), np.ones(3, np.float32))
    assert_same(teacher.masks, (teacher.probabilities > 0.5) & visible)


@pytest.mark.parametrize("turned", [False, True])
def test_an_activation_sees_what_was_sampled_and_nothing_else(turned):
    maps = np.random.default_rng(0).normal(size=(2, 8, 9)).astype(np.float32)
    homography = np.array([[1.3, 0.2 * turned, -4], [-0.1 * turned, 1.1, 2], [0, 0, 1]])
    sizes = {"view_hw": (16, 18), "canonical_hw": (21, 20)}
    plain_maps, visible = warp.warp_to_canonical(maps, homography, **sizes)
    found, same = warp.warp_to_canonical(maps, homography, **sizes, activation=lambda values: values - 100)
    assert_same(same, visible)
    assert_same(found, np.where(visible, plain_maps - 100, np.float32(0)))
    assert 0 < visible.sum() < visible.size


@pytest.mark.parametrize("size", [0, 1, 63, 64, 65, 2**14 - 1, 2**14 + 1, 50_000])
def test_a_logit_has_one_probability_wherever_it_stands(size):
    logits = np.random.default_rng(size).normal(scale=5, size=size).astype(np.float32)
    found = sigmoid(logits)
    np.testing.assert_array_equal(found[::-1], sigmoid(np.ascontiguousarray(logits[::-1])))
    np.testing.assert_array_equal(found[1:], sigmoid(logits[1:]))
    np.testing.assert_allclose(found, torch.from_numpy(logits).sigmoid().numpy(), rtol=2e-7)


@pytest.mark.parametrize("rule", SAMPLING_RULES)
@pytest.mark.parametrize("seed", SEEDS)
def test_points_and_the_draws_that_they_take(seed, rule):
    _, _, teacher = random_teacher(seed)
    ours, theirs = (np.random.default_rng(seed) for _ in range(2))
    prompts = make_prompts(teacher, "points", num_points=3, sampling=rule, rng=ours)
    drawn = plain.draw_points(teacher, num_points=3, rule=rule, rng=theirs)
    assert [prompt.instance for prompt in prompts] == [k for k, points in enumerate(drawn) if len(points)]
    assert_same([prompt.points_xy for prompt in prompts], [points for points in drawn if len(points)])
    assert ours.bit_generator.state == theirs.bit_generator.state


@pytest.mark.parametrize("least", [0, 1, 16])
@pytest.mark.parametrize("seed", SEEDS)
def test_masks_and_weights_in_the_view(seed, least):
    rng = np.random.default_rng(seed)
    view = random_view(rng, tuple(int(n) for n in rng.integers(1, 40, size=2)))
    masks = random_masks(rng, view.canonical_hw)
    weights = [rng.random(view.canonical_hw, np.float32) if rng.random() < 0.5 else None for _ in masks]
    refined = Refined(masks, weights, ["kept"] * len(masks))
    labels = rng.integers(0, 80, len(masks))
    found, expected = (each(refined, labels, view, min_pixels=least) for each in (to_view, plain.to_view))
    assert_same([found.masks, found.labels, found.weights], [expected.masks, expected.labels, expected.weights])


@pytest.mark.parametrize("seed", SEEDS)
def test_pasting_on_the_same_place(seed):
    rng = np.random.default_rng(seed)
    size_hw = tuple(int(n) for n in rng.integers(1, 50, size=2))
    samples = [random_sample(rng, size_hw, weighted=seed % 2 == 0) for _ in range(2)]
    settings = ArpSettings(
        min_source_area=int(rng.choice([0, 30])), min_visible_pixels=int(rng.choice([1, 16])), min_visible_share=0.3
    )
    found = mix_pair(*samples, settings, np.random.default_rng(0))
    assert_same([astuple(each) for each in found], [astuple(each) for each in plain.mix_pair(*samples, settings)])


@pytest.mark.parametrize("seed", SEEDS)
def test_pasting_on_another_place_in_order(seed):
    """Every pasted pixel shows the last patch that lies there, and belongs to it alone."""
    rng = np.random.default_rng(seed)
    source, receiver = (random_sample(rng, tuple(rng.integers(20, 50, size=2)), weighted=False) for _ in range(2))
    settings = ArpSettings(mode="moved", min_visible_pixels=1, min_visible_share=0)
    alone = []  # each patch by itself, placed by the same draws
    draws = np.random.default_rng(seed)
    for index in np.flatnonzero(mask_areas(source.masks)):
        one = Sample(source.image, source.masks[[index]], source.labels[[index]])
        nothing = Sample(receiver.image, receiver.masks[:0], receiver.labels[:0])
        alone.append(paste(one, nothing, settings, draws))
    image, owner = receiver.image.copy(), np.full(receiver.image.shape[:2], -1)
    for number, patch in enumerate(alone):
        image[patch.masks[0]] = patch.image[patch.masks[0]]
        owner[patch.masks[0]] = number
    mixed = paste(source, receiver, settings, np.random.default_rng(seed))
    assert_same(mixed.image, image)
    own = [mask & (owner < 0) for mask in receiver.masks]
    expected = [mask for mask in [*own, *(owner == number for number in range(len(alone)))] if mask.any()]
    assert_same(list(mixed.masks), expected)


@pytest.mark.parametrize("seed", SEEDS)
def test_overlaps_of_masks(seed):
    rng = np.random.default_rng(seed)
    size_hw = tuple(rng.integers(1, 40, size=2))
    masks, others = random_masks(rng, size_hw), random_masks(rng, size_hw)
    assert_same(pairwise_iou(masks, others), plain.pairwise_iou(masks, others))
    assert_same(pairwise_iou(masks[:, ::-1], others), plain.pairwise_iou(masks[:, ::-1], others))
    assert_same(mask_areas(masks), masks.sum(axis=(1, 2)))
