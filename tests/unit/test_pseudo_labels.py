"""Which queries become pseudo-labels, and the way of their masks into the canonical frame and back."""

import numpy as np
import pytest
import torch

from pipeline.distill.self_similarity import View
from pipeline.errors import ConfigError
from pipeline.masks.library import MaskLibrary
from pipeline.masks.rle import encode
from pipeline.models.pseudo_labels import (
    PseudoLabelFilter,
    TeacherQueries,
    filter_queries,
    lie_on,
    mask_nms,
    to_canonical,
    to_view,
)
from pipeline.refine.build import build_refiner
from pipeline.refine.interface import Refined

CANONICAL = (24, 32)


def view(*, scale=2.0, flip=False, offset_xy=(0, 0), valid_hw=(48, 64), canvas_hw=(64, 64)) -> View:
    matrix = np.diag([scale, scale, 1.0])
    if flip:
        matrix = np.array([[-1, 0, scale * CANONICAL[1]], [0, 1, 0], [0, 0, 1]]) @ matrix
    matrix[:2, 2] -= offset_xy
    return View(torch.from_numpy(matrix.astype(np.float32)), CANONICAL, valid_hw, canvas_hw)


VIEWS = {
    "whole": view(),
    "flipped": view(flip=True),
    "cropped": view(offset_xy=(11, 6), valid_hw=(30, 40), canvas_hw=(32, 64)),
    "flipped and cropped": view(flip=True, offset_xy=(5, 9), valid_hw=(33, 41), canvas_hw=(64, 64)),
    "reduced": view(scale=0.5, valid_hw=(12, 16), canvas_hw=(32, 32)),
    "enlarged by 3, odd crop": view(scale=3.0, offset_xy=(1, 2), valid_hw=(50, 61), canvas_hw=(64, 64)),
}


def refined(masks, weights=None):
    return Refined(masks, weights or [None] * len(masks), ["kept"] * len(masks))


def logit(probability):
    return float(np.log(probability / (1 - probability)))


def class_logits(*rows):
    return torch.log(torch.tensor(rows, dtype=torch.float64))


def test_both_thresholds_are_strict_and_no_object_never_passes():
    classes = class_logits([0.75, 0.125, 0.125], [0.76, 0.12, 0.12], [0.1, 0.8, 0.1], [0.05, 0.05, 0.9])
    masks = torch.full((4, 2, 5), 0.0, dtype=torch.float64)  # sigmoid 0.5 on 10 cells: soft area exactly 5
    exact = PseudoLabelFilter(score_threshold=0.75, min_soft_area=5.0)
    assert len(filter_queries(classes, masks, exact).labels) == 0
    below = PseudoLabelFilter(score_threshold=0.75, min_soft_area=4.999)
    kept = filter_queries(classes, masks, below)
    assert kept.labels.tolist() == [0, 1]  # in query order; 0.75 itself is not above 0.75
    assert kept.scores.tolist() == pytest.approx([0.76, 0.8])
    assert filter_queries(classes, masks, PseudoLabelFilter(0.0, 0.0)).labels.tolist() == [0, 0, 1]


def test_the_size_is_the_soft_area_not_the_binary_one():
    classes = class_logits([0.9, 0.05, 0.05], [0.9, 0.05, 0.05])
    masks = torch.stack([torch.full((4, 4), logit(0.4)), torch.full((4, 4), logit(0.3))]).double()
    kept = filter_queries(classes, masks, PseudoLabelFilter(0.7, 5.0))
    assert len(kept.labels) == 1  # 16 * 0.4 = 6.4 > 5 though no cell is above 0.5; 16 * 0.3 = 4.8 is not
    assert torch.equal(kept.logits, masks[:1])


def test_not_a_number_is_no_pseudo_label():
    classes = torch.full((1, 3), float("nan"))
    assert len(filter_queries(classes, torch.ones(1, 4, 4) * 9, PseudoLabelFilter()).labels) == 0


@pytest.mark.parametrize("threshold", [-0.1, 1.1])
def test_a_threshold_that_is_no_probability_is_refused(threshold):
    with pytest.raises(ConfigError, match="probability"):
        PseudoLabelFilter(score_threshold=threshold)


def stripes(*spans, width=20):
    """Masks [N, 1, width] of the cells from start to end."""
    masks = torch.zeros(len(spans), 1, width, dtype=torch.bool)
    for mask, (start, end) in zip(masks, spans, strict=True):
        mask[:, start:end] = True
    return masks


def test_of_two_masks_of_one_object_the_surer_stays():
    masks = stripes((0, 8), (0, 10), (12, 16), (12, 20))  # IoU of the pairs: 0.8 and 0.5
    scores = torch.tensor([0.8, 0.9, 0.8, 0.75])
    assert mask_nms(masks, scores, 0.7).tolist() == [1, 2, 3]
    assert mask_nms(masks, scores, 0.8).tolist() == [0, 1, 2, 3]  # 0.8 is not above 0.8
    assert mask_nms(masks, scores, 0.49).tolist() == [1, 2]


def test_a_mask_that_goes_takes_none_with_it():
    chain = stripes((0, 10), (4, 14), (8, 18))  # neighbours overlap by 6 of 14, the ends by 2 of 18
    assert mask_nms(chain, torch.tensor([0.9, 0.8, 0.7]), 0.4).tolist() == [0, 2]


def test_suppression_of_ties_and_of_empty_masks():
    same = stripes((3, 9), (3, 9), (0, 0), (0, 0))
    assert mask_nms(same, torch.full((4,), 0.8), 0.5).tolist() == [0, 2, 3]
    assert mask_nms(same[:0], torch.zeros(0), 0.5).tolist() == []


def test_duplicates_stay_unless_asked_and_go_whatever_their_class():
    classes = class_logits([0.8, 0.1, 0.1], [0.05, 0.9, 0.05], [0.85, 0.1, 0.05])
    masks = torch.where(stripes((0, 10), (0, 9), (12, 20)), 5.0, -5.0).double()
    assert filter_queries(classes, masks, PseudoLabelFilter()).labels.tolist() == [0, 1, 0]
    kept = filter_queries(classes, masks, PseudoLabelFilter(nms_iou_threshold=0.7))
    assert kept.labels.tolist() == [1, 0]
    assert torch.equal(kept.logits, masks[1:])
    assert kept.scores.tolist() == pytest.approx([0.9, 0.85])


def test_likely_queries_that_are_not_sure_enough_are_unsure():
    classes = class_logits(
        [0.8, 0.1, 0.1],  # a label
        [0.4, 0.05, 0.55],  # on the same place: see what a student makes of it
        [0.45, 0.05, 0.5],  # likely, though nothing is likelier
        [0.3, 0.3, 0.4],  # its likeliest class is not above the threshold
        [0.05, 0.6, 0.35],  # likely, but too small
        [0.05, 0.65, 0.3],
    )
    spans = (0, 10), (0, 7), (10, 20), (20, 30), (30, 32), (30, 40)
    masks = torch.where(stripes(*spans, width=40), 5.0, -9.0).double()
    assert filter_queries(classes, masks, PseudoLabelFilter()).unsure is None
    kept = filter_queries(classes, masks, PseudoLabelFilter(unsure_threshold=0.3))
    assert kept.labels.tolist() == [0]
    assert torch.equal(kept.unsure, masks[[1, 2, 5]] > 0)
    all_likely = filter_queries(classes, masks, PseudoLabelFilter(unsure_threshold=0.0))
    assert torch.equal(all_likely.unsure, masks[[1, 2, 3, 5]] > 0)


def test_what_is_suppressed_as_another_mask_of_a_label_is_not_unsure():
    classes = class_logits([0.9, 0.05, 0.05], [0.8, 0.1, 0.1])
    masks = torch.where(stripes((0, 10), (4, 14), width=40), 5.0, -9.0).double()  # IoU 6/14
    kept = filter_queries(classes, masks, PseudoLabelFilter(nms_iou_threshold=0.3, unsure_threshold=0.3))
    assert kept.labels.tolist() == [0]
    assert len(kept.unsure) == 0


def test_masks_lie_on_others_that_they_overlap_by_half():
    others = stripes((0, 8), (12, 12))
    masks = stripes((0, 4), (0, 3), (4, 10), (2, 10), (12, 12))
    assert lie_on(masks, others).tolist() == [True, False, False, True, False]  # IoU 4/8, 3/8, 4/10, 6/10; empty
    assert lie_on(masks, others[:0]).tolist() == [False] * 5
    assert lie_on(masks[:0], others).tolist() == []


@pytest.mark.parametrize("threshold", [-0.1, 0.71])
def test_an_unsure_threshold_above_that_of_labels_is_refused(threshold):
    with pytest.raises(ConfigError, match="unsure_threshold"):
        PseudoLabelFilter(unsure_threshold=threshold)


@pytest.mark.parametrize("threshold", [0.0, -0.5, 1.01])
def test_a_threshold_that_is_no_iou_is_refused(threshold):
    with pytest.raises(ConfigError, match="not an IoU"):
        PseudoLabelFilter(nms_iou_threshold=threshold)


def canonical_blocks(count=3):
    rng = np.random.default_rng(4)
    masks = np.zeros((count, *CANONICAL), bool)
    for mask in masks:
        top, left = rng.integers(0, CANONICAL[0] - 12), rng.integers(0, CANONICAL[1] - 12)
        mask[top : top + 12, left : left + 12] = True
    return masks


def queries_showing(masks, view):
    """A teacher that sees these canonical masks in a view, without error: logits at every view pixel."""
    shown = to_view(refined(masks), np.arange(len(masks)), view, min_pixels=0).masks
    logits = torch.from_numpy(np.where(shown, np.float32(9), np.float32(-9)))
    return TeacherQueries(logits, torch.arange(len(masks)), torch.full((len(masks),), 0.9))


def visible_by_loop(view):
    seen = np.zeros(CANONICAL, bool)
    for row in range(CANONICAL[0]):
        for column in range(CANONICAL[1]):
            x, y, _ = view.homography.double().numpy() @ [column + 0.5, row + 0.5, 1]
            seen[row, column] = 0 <= x < view.valid_hw[1] and 0 <= y < view.valid_hw[0]
    return seen


@pytest.mark.parametrize("name", [name for name in VIEWS if name != "reduced"])
def test_canonical_to_view_to_canonical_is_the_visible_part(name):
    masks = canonical_blocks()
    back = to_canonical(queries_showing(masks, VIEWS[name]), VIEWS[name])
    seen = visible_by_loop(VIEWS[name])
    assert np.array_equal(back.visible, seen)
    inner = seen & np.pad(seen, 1)[2:, 1:-1] & np.pad(seen, 1)[:-2, 1:-1]
    inner &= np.pad(seen, 1)[1:-1, 2:] & np.pad(seen, 1)[1:-1, :-2]
    assert np.array_equal(back.masks & inner, masks & inner)  # bilinear reading may be off at the border of the crop
    assert not (back.probabilities[:, ~seen]).any()


@pytest.mark.parametrize("name", VIEWS)
def test_a_view_takes_the_canonical_pixel_under_each_centre_and_nothing_in_the_padding(name):
    masks, view = canonical_blocks(), VIEWS[name]
    inverse = np.linalg.inv(view.homography.double().numpy())
    expected = np.zeros((len(masks), *view.canvas_hw), bool)
    for row in range(view.valid_hw[0]):
        for column in range(view.valid_hw[1]):
            x, y, _ = inverse @ [column + 0.5, row + 0.5, 1]
            if 0 <= x < CANONICAL[1] and 0 <= y < CANONICAL[0]:
                expected[:, row, column] = masks[:, int(y), int(x)]
    found = to_view(refined(masks), np.arange(3), view, min_pixels=1)
    assert np.array_equal(found.masks, expected[expected.any(axis=(1, 2))])


def test_padding_stays_empty_where_a_large_pixel_reaches_into_it():
    crop = VIEWS["enlarged by 3, odd crop"]
    everywhere = to_view(refined(np.ones((1, *CANONICAL), bool)), np.zeros(1, np.int64), crop, min_pixels=1)
    assert everywhere.masks[0, : crop.valid_hw[0], : crop.valid_hw[1]].all()
    assert everywhere.masks.sum() == crop.valid_hw[0] * crop.valid_hw[1]


def test_masks_with_too_few_pixels_in_the_view_go_with_label_and_weight():
    masks = np.zeros((3, *CANONICAL), bool)
    masks[0, 0, 0] = masks[1, 4:6, 4:6] = True
    masks[2, 2, 2:5] = True
    weights = [np.full(CANONICAL, value, np.float32) for value in (0.1, 0.2, 0.3)]
    found = to_view(refined(masks, weights), np.array([5, 6, 7]), VIEWS["whole"], min_pixels=12)
    assert found.labels.tolist() == [6, 7]  # 4, 16 and 12 view pixels
    inside = found.weights[1][: VIEWS["whole"].valid_hw[0]]
    assert np.allclose(inside, 0.3)
    assert np.all(found.weights[1][48:] == 1)  # padding weighs what every pixel weighs


def test_padding_weighs_one_beside_a_crop_too():
    crop = VIEWS["enlarged by 3, odd crop"]
    height, width = crop.valid_hw
    assert crop.canvas_hw > crop.valid_hw
    everything, weight = np.ones((1, *CANONICAL), bool), np.full(CANONICAL, 0.25, np.float32)
    (found,) = to_view(refined(everything, [weight]), np.zeros(1, np.int64), crop, min_pixels=1).weights
    assert found.shape == crop.canvas_hw
    assert (found[:height, :width] == 0.25).all()
    assert found.sum() == 0.25 * height * width + crop.canvas_hw[0] * crop.canvas_hw[1] - height * width


def test_no_instance_is_legal_both_ways():
    empty = TeacherQueries(torch.zeros(0, 16, 16), torch.zeros(0, dtype=torch.int64), torch.zeros(0))
    masks = to_canonical(empty, VIEWS["flipped"])
    assert masks.probabilities.shape == (0, *CANONICAL)
    found = to_view(refined(masks.masks), masks.labels, VIEWS["flipped"], min_pixels=16)
    assert found.masks.shape == (0, 64, 64)
    assert found.weights == []


def test_the_half_contour_is_the_contour_of_the_logits():
    """Interpolated logits 8 and -8 meet half-way: the same pixels are in with any positive factor."""
    logits = torch.full((1, 16, 16), -8.0)
    logits[:, 4:9, 3:10] = 8.0
    masks = [
        to_canonical(
            TeacherQueries(logits * factor, torch.zeros(1, dtype=torch.int64), torch.ones(1)), VIEWS["whole"]
        ).masks
        for factor in (1.0, 0.05)
    ]
    assert np.array_equal(*masks)
    assert masks[0].any()


class Library:
    """Proposals: the blocks, one of them with its neighbourhood."""

    def __init__(self):
        self.masks = canonical_blocks()
        self.masks[1, 2:20, 3:30] = True

    def read_masks(self, image_id):
        return MaskLibrary.from_rles([encode(mask) for mask in self.masks], size_hw=CANONICAL)


@pytest.mark.parametrize("name", ["iom", "cpi", "cpi_u", "cpi_o"])
def test_two_views_of_one_image_are_refined_alike(name):
    """The same objects seen whole and flipped, at twice the size: the same answer in the canonical frame."""
    refiner = build_refiner(name, proposals=Library())
    answers = []
    for seen in (VIEWS["whole"], VIEWS["flipped"]):
        masks = to_canonical(queries_showing(canonical_blocks(), seen), seen)
        answers.append(refiner.refine(1, None, masks, np.random.default_rng(0)))
    assert np.array_equal(answers[0].masks, answers[1].masks)
    assert answers[0].outcomes == answers[1].outcomes
    assert "matched" in answers[0].outcomes
    in_views = [to_view(answers[0], np.arange(3), seen, min_pixels=1).masks for seen in list(VIEWS.values())[:2]]
    assert np.array_equal(in_views[0][:, :48], in_views[1][:, :48, ::-1])
