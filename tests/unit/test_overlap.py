"""Run-length intersections are compared with counting pixels one by one."""

import numpy as np
import pytest

from pipeline.errors import InputError
from pipeline.masks import overlap, rle


def random_blobs(rng, count, height, width):
    masks = rng.random((count, height, width)) < rng.random((count, 1, 1))
    masks[:: max(1, count // 3)] = False
    return masks


def table_of(masks):
    return overlap.RunTable.from_rles(rle.encode_many(masks), size_hw=masks.shape[1:])


def test_intersections_equal_counting_pixels():
    rng = np.random.default_rng(0)
    for _ in range(50):
        height, width, count = rng.integers(1, 30, size=3)
        proposals = random_blobs(rng, int(count), int(height), int(width))
        mask = rng.random((height, width)) < 0.5
        mask[:, : rng.integers(0, width + 1)] = False  # leaves columns out at the start
        counted = [int((proposal & mask).sum()) for proposal in proposals]
        np.testing.assert_array_equal(overlap.intersections(table_of(proposals), mask), counted)


def test_intersections_of_nothing():
    mask = np.ones((4, 5), dtype=bool)
    assert overlap.intersections(table_of(np.zeros((0, 4, 5), dtype=bool)), mask).shape == (0,)
    np.testing.assert_array_equal(overlap.intersections(table_of(np.ones((2, 4, 5), dtype=bool)), ~mask), [0, 0])
    np.testing.assert_array_equal(overlap.intersections(table_of(np.zeros((2, 4, 5), dtype=bool)), mask), [0, 0])


def test_visible_area_is_the_intersection_with_the_visible_region():
    proposals = np.zeros((2, 6, 8), dtype=bool)
    proposals[0, 1:5, 1:7] = True
    proposals[1, 0, 0] = True
    visible = np.zeros((6, 8), dtype=bool)
    visible[2:, 3:] = True
    np.testing.assert_array_equal(overlap.intersections(table_of(proposals), visible), [3 * 4, 0])


def test_union_decodes_only_the_chosen():
    rng = np.random.default_rng(1)
    masks = random_blobs(rng, 7, 9, 11)
    table = table_of(masks)
    assert len(table) == 7
    np.testing.assert_array_equal(table.union(np.array([1, 4, 0])), masks[[1, 4, 0]].any(axis=0))
    assert not table.union(np.array([], dtype=np.int64)).any()


def test_a_mask_of_another_size_is_refused():
    code = rle.encode(np.ones((4, 5), dtype=bool))
    with pytest.raises(InputError, match="another size"):
        overlap.RunTable.from_rles([code], size_hw=(5, 4))
    with pytest.raises(ValueError, match="runs are of"):
        overlap.intersections(overlap.RunTable.from_rles([code], size_hw=(4, 5)), np.ones((5, 4), dtype=bool))


def test_pairwise_ratios_against_hand_counts():
    masks = np.zeros((3, 4, 4), dtype=bool)
    masks[0, :2] = True  # 8 pixels
    masks[1, 1:3] = True  # 8, of which 4 shared
    iou = overlap.pairwise_iou(masks, masks)
    np.testing.assert_allclose(iou, [[1, 4 / 12, 0], [4 / 12, 1, 0], [0, 0, 0]])
    np.testing.assert_allclose(overlap.pairwise_coverage(masks, masks[:2]), [[1, 0.5], [0.5, 1], [0, 0]])
    assert overlap.mask_iou(masks[0], masks[1]) == 4 / 12
    assert overlap.mask_iou(masks[2], masks[2]) == 0.0


def test_two_hundred_proposals_at_full_hd_need_no_decoding(monkeypatch):
    """A size check without a clock: the work is one prefix sum over the mask's columns and one pass over the runs."""
    rng = np.random.default_rng(2)
    proposals = []
    for _ in range(200):
        top, left = rng.integers(0, 900), rng.integers(0, 1700)
        proposal = np.zeros((1080, 1920), dtype=bool)
        proposal[top : top + 150, left : left + 200] = True
        proposals.append(rle.encode(proposal))
    table = overlap.RunTable.from_rles(proposals, size_hw=(1080, 1920))
    mask = np.zeros((1080, 1920), dtype=bool)
    mask[400:600, 500:800] = True
    monkeypatch.setattr(overlap, "dense", None)  # decoding anything would fail
    shared = overlap.intersections(table, mask)
    boxes = np.array([rle.bbox_xywh(code) for code in proposals], dtype=int)
    across = np.minimum(boxes[:, 0] + boxes[:, 2], 800) - np.maximum(boxes[:, 0], 500)
    down = np.minimum(boxes[:, 1] + boxes[:, 3], 600) - np.maximum(boxes[:, 1], 400)
    np.testing.assert_array_equal(shared, np.clip(across, 0, None) * np.clip(down, 0, None))
    assert shared.any()
