"""Matching with bounds gives what the rules give on decoded masks, for every rule, guard and view."""

import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.errors import ConfigError
from pipeline.masks import rle
from pipeline.masks.library import MaskLibrary
from pipeline.masks.resample import resampled_mask
from pipeline.refine.build import build_refiner
from pipeline.refine.cpi import accept_cpi
from pipeline.refine.interface import TeacherMasks
from pipeline.refine.iom import accept_iom
from pipeline.refine.matching import Overlaps

RULES = ("iom", "cpi", "cpi_u", "cpi_o")
THRESHOLDS = {
    "iom": ("iou_threshold",),
    "cpi": ("under_threshold", "over_threshold"),
    "cpi_u": ("under_threshold",),
    "cpi_o": ("over_threshold",),
}


@dataclasses.dataclass
class Held:
    """A library in memory, the same for every image."""

    library: MaskLibrary

    def read_masks(self, image_id):
        return self.library


def dense_accept(name, mask, proposals, thresholds, max_area_ratio):
    """The printed rules on decoded, clipped masks [K, H, W]; indices."""
    shared, area = (proposals & mask).sum(axis=(1, 2)), proposals.sum(axis=(1, 2))
    fits = np.ones(len(area), bool) if max_area_ratio is None else area <= max_area_ratio * mask.sum()
    if name == "iom":
        iou = np.where(fits, shared / (proposals | mask).sum(axis=(1, 2)), -1)
        best = [int(np.argmax(iou))] if len(iou) else []
        return [k for k in best if iou[k] > thresholds["iou_threshold"]]
    accepted = np.zeros(len(area), bool)
    if "under_threshold" in thresholds:
        accepted |= shared / (mask.sum() + 1e-9) > thresholds["under_threshold"]
    if "over_threshold" in thresholds:
        accepted |= np.where(area > 0, shared / np.maximum(area, 1), 0) > thresholds["over_threshold"]
    return np.flatnonzero(accepted & fits).tolist()


def dense_refine(name, proposals, teacher, thresholds, guards):
    """Masks [N, H, W] and outcomes."""
    masks, outcomes, clipped = teacher.masks, [], proposals & teacher.visible
    for mask in masks:
        chosen = dense_accept(name, mask, clipped, thresholds, guards["max_area_ratio"]) if mask.any() else []
        union = clipped[chosen].any(axis=0) | (mask if guards["union_with_teacher"] else False)
        least = guards["min_iou_with_teacher"]
        if chosen and (least is None or (union & mask).sum() / (union | mask).sum() >= least):
            mask[:] = union
            outcomes.append("matched")
        elif mask.any() and guards["unmatched"] == "drop":
            mask[:] = False
            outcomes.append("dropped")
        else:
            outcomes.append("kept" if mask.any() else "empty")
    return masks, outcomes


@st.composite
def masks_of(draw, height, width, count):
    """[count, height, width]: few rectangles on few places, so that they touch, tie and nest; some with holes."""
    masks = np.zeros((count, height, width), bool)
    for mask in masks:
        for _ in range(draw(st.integers(0, 2))):
            top, bottom = sorted(draw(st.tuples(st.integers(0, height), st.integers(0, height))))
            left, right = sorted(draw(st.tuples(st.integers(0, width), st.integers(0, width))))
            mask[top:bottom, left:right] = True
        if draw(st.booleans()):
            mask[draw(st.integers(0, height - 1)), draw(st.integers(0, width - 1))] ^= True
    return masks


@st.composite
def views_of(draw, height, width):
    """[height, width] visible pixels: all, none, a rectangle, or anything."""
    kind = draw(st.sampled_from(["all", "rectangle", "rectangle", "odd", "none"]))
    visible = np.full((height, width), kind == "all")
    if kind in ("rectangle", "odd"):
        top, left = draw(st.integers(0, height - 1)), draw(st.integers(0, width - 1))
        visible[top : draw(st.integers(top + 1, height)), left : draw(st.integers(left + 1, width))] = True
    if kind == "odd":
        visible[draw(st.integers(0, height - 1)), :] ^= True
    return visible


def library_of(masks, *, slack=0.0):
    """As the store would give it; ``slack`` makes the boxes wider than need be."""
    library = MaskLibrary.from_rles(rle.encode_many(masks), size_hw=masks.shape[1:])
    boxes = library.boxes_xywh + np.array([-slack, -slack, 2 * slack, 2 * slack], np.float32)
    return dataclasses.replace(library, boxes_xywh=boxes)


def teacher_of(masks, visible):
    probabilities = np.where(masks & visible, 0.9, 0.0).astype(np.float32)
    return TeacherMasks(probabilities, visible, np.zeros(len(masks), int), np.ones(len(masks), np.float32))


thresholds = st.sampled_from([0.0, 0.3, 0.5, 0.7, 0.99, 1.0])


@pytest.mark.parametrize("name", RULES)
@settings(max_examples=250, deadline=None)
@given(data=st.data())
def test_matching_equals_the_dense_rule(name, data):
    height, width = data.draw(st.integers(1, 9)), data.draw(st.integers(1, 9))
    proposals = data.draw(masks_of(height, width, data.draw(st.integers(0, 7))))
    teacher = teacher_of(data.draw(masks_of(height, width, 3)), data.draw(views_of(height, width)))
    limits = {key: data.draw(thresholds) for key in THRESHOLDS[name]}
    guards = {
        "max_area_ratio": data.draw(st.sampled_from([None, None, 0.0, 1.0, 1.5, 4.0])),
        "min_iou_with_teacher": data.draw(st.sampled_from([None, None, 0.0, 0.4, 1.0])),
        "union_with_teacher": data.draw(st.booleans()),
        "unmatched": data.draw(st.sampled_from(["keep", "keep", "drop"])),
    }
    library = library_of(proposals, slack=data.draw(st.sampled_from([0.0, 0.0, 0.4, 3.0])))
    refined = build_refiner(name, proposals=Held(library), **limits, **guards).refine(
        1, None, teacher, np.random.default_rng(0)
    )
    expected, outcomes = dense_refine(name, proposals, teacher, limits, guards)
    np.testing.assert_array_equal(refined.masks, expected)
    assert refined.outcomes == outcomes


def wavy(rng, count, height, width):
    """Blobs with an uneven edge, of all sizes."""
    y, x = np.mgrid[:height, :width]
    masks = np.zeros((count, height, width), bool)
    for mask in masks:
        cy, cx, radius = rng.random() * height, rng.random() * width, 3 ** rng.uniform(0.5, 3.8)
        angle = np.arctan2(y - cy, x - cx)
        edge = 1 + 0.3 * np.sin(3 * angle + rng.random() * 6) + 0.2 * np.sin(7 * angle)
        mask[:] = np.hypot(y - cy, x - cx) < radius * edge
    return masks


@pytest.mark.parametrize("name", RULES)
@pytest.mark.parametrize("view", ["whole", "crop", "odd"])
def test_matching_equals_the_dense_rule_on_blobs(name, view):
    rng = np.random.default_rng(5)
    matched = 0
    for _ in range(10):
        proposals, masks = wavy(rng, 60, 150, 170), wavy(rng, 5, 150, 170)
        visible = np.full((150, 170), view == "whole")
        visible[20:140, 30:160] = True
        if view == "odd":
            visible &= wavy(rng, 1, 150, 170)[0] | (rng.random((150, 1)) < 0.5)
        teacher = teacher_of(masks, visible)
        refined = build_refiner(name, proposals=Held(library_of(proposals))).refine(
            1, None, teacher, np.random.default_rng(0)
        )
        limits = dict.fromkeys(THRESHOLDS[name], 0.5 if name == "iom" else 0.7)
        guards = {
            "max_area_ratio": None,
            "min_iou_with_teacher": None,
            "union_with_teacher": False,
            "unmatched": "keep",
        }
        expected, outcomes = dense_refine(name, proposals, teacher, limits, guards)
        np.testing.assert_array_equal(refined.masks, expected)
        assert refined.outcomes == outcomes
        matched += outcomes.count("matched")
    assert matched >= 4


@pytest.mark.parametrize("name", RULES)
def test_only_what_may_be_accepted_is_unpacked(name):
    """Masks that the boxes rule out are never looked at: their codes could be anything."""
    masks = np.zeros((4, 40, 50), bool)
    masks[0, 5:15, 5:15] = True
    masks[1, 20:30, 30:40] = True  # elsewhere
    masks[2, 12:30, 12:40] = True  # shares a corner
    library = library_of(masks)
    codes = (library.codes[0], b"not a code", b"not a code", b"not a code")
    refiner = build_refiner(name, proposals=Held(dataclasses.replace(library, codes=codes)))
    refined = refiner.refine(1, None, teacher_of(masks[:1], np.ones((40, 50), bool)), np.random.default_rng(0))
    assert refined.outcomes == ["matched"]
    np.testing.assert_array_equal(refined.masks[0], masks[0])


def prefix_sums(mask, library):
    """Shared pixels from runs alone: sums of the mask up to where each run of a proposal begins and ends."""
    before = np.concatenate([[0], np.cumsum(mask.T.reshape(-1))])
    spans = [rle.runs(code) for code in library.rles(np.arange(len(library)))]
    return np.array([(before[runs[:, 1]] - before[runs[:, 0]]).sum() for runs in spans], np.int64)


@pytest.mark.parametrize("name", RULES)
@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_loop_matrix_and_run_lengths_accept_the_same(name, data):
    """The four ways to count: a loop over masks, one matrix product, sums over runs, and the matcher with bounds."""
    size = data.draw(st.integers(1, 9)), data.draw(st.integers(1, 9))
    proposals = data.draw(masks_of(*size, data.draw(st.integers(1, 7))))
    mask = data.draw(masks_of(*size, 1))[0]
    mask[0, 0] = True
    limits = {key: data.draw(thresholds) for key in THRESHOLDS[name]}
    library = library_of(proposals)
    refiner = build_refiner(name, proposals=Held(library), **limits)
    everywhere = np.ones(size, bool)
    chosen = dense_accept(name, mask, proposals, limits, None)
    for shared in (
        np.array([np.count_nonzero(proposal & mask) for proposal in proposals]),
        proposals.reshape(len(proposals), -1).astype(np.float32) @ mask.reshape(-1).astype(np.float32),
        prefix_sums(mask, library),
    ):
        assert accept_numbers(name, shared, library.areas, int(mask.sum()), limits) == chosen
    refined = refiner.refine(1, None, teacher_of(mask[None], everywhere), np.random.default_rng(0))
    expected = proposals[chosen].any(axis=0) if chosen else mask
    np.testing.assert_array_equal(refined.masks[0], expected)


def accept_numbers(name, shared, areas, mask_area, limits):
    """What the refiner's own rule says of these counts."""
    overlaps = Overlaps(np.asarray(shared, np.int64), areas, mask_area)
    if name == "iom":
        return accept_iom(overlaps, **limits).tolist()
    cases = {"cpi": "both", "cpi_u": "under", "cpi_o": "over"}[name]
    return accept_cpi(overlaps, cases=cases, **limits).tolist()


@pytest.mark.parametrize("name", RULES)
@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_matching_in_a_square_equals_the_dense_rule_there(name, data):
    """Decided on stretched masks, answered with proposals of the image's size."""
    size, side = (data.draw(st.integers(1, 9)), data.draw(st.integers(1, 9))), data.draw(st.integers(1, 12))
    proposals, masks = data.draw(masks_of(*size, data.draw(st.integers(0, 6)))), data.draw(masks_of(*size, 2))
    teacher = teacher_of(masks, data.draw(views_of(*size)))
    limits = {key: data.draw(thresholds) for key in THRESHOLDS[name]}
    refined = build_refiner(name, proposals=Held(library_of(proposals)), match_resolution=side, **limits).refine(
        1, None, teacher, np.random.default_rng(0)
    )
    clipped = proposals & teacher.visible
    small = np.array([resampled_mask(mask, (side, side)) for mask in clipped], bool).reshape(-1, side, side)
    for mask, found, outcome in zip(teacher.masks, refined.masks, refined.outcomes, strict=True):
        query = resampled_mask(mask, (side, side))
        chosen = dense_accept(name, query, small, limits, None) if query.any() else []
        np.testing.assert_array_equal(found, clipped[chosen].any(axis=0) if chosen else mask)
        assert outcome == ("matched" if chosen else "kept" if mask.any() else "empty")


def test_a_square_may_decide_otherwise_than_the_image():
    """A mask of one pixel lies under no centre of a coarser square, so nothing is compared there."""
    mask = np.zeros((1, 8, 8), bool)
    mask[0, 0, 0] = True
    teacher = teacher_of(mask, np.ones((8, 8), bool))
    for side, outcome in (("native", "matched"), (8, "matched"), (4, "kept")):
        refiner = build_refiner("iom", proposals=Held(library_of(mask)), match_resolution=side)
        assert refiner.refine(1, None, teacher, np.random.default_rng(0)).outcomes == [outcome]


@pytest.mark.parametrize("side", [0, -480, 480.0, "full", None, True])
def test_odd_resolutions_are_refused(side):
    with pytest.raises(ConfigError, match="match_resolution"):
        build_refiner("cpi_u", proposals=Held(library_of(np.zeros((1, 4, 4), bool))), match_resolution=side)
