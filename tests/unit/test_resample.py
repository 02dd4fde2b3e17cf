"""Masks at another size: what is done to run lengths is what nearest neighbour does to pixels."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from pipeline.masks import rle
from pipeline.masks.library import MaskLibrary
from pipeline.masks.resample import resampled_library, resampled_mask, sampled_places

SIDES = st.integers(1, 11)


def library_of(masks):
    return MaskLibrary.from_rles(rle.encode_many(masks), size_hw=masks.shape[1:])


@pytest.mark.parametrize(
    ("length", "size", "places"),
    [
        (4, 4, [0, 1, 2, 3]),
        (4, 2, [1, 3]),  # the centre of a new pixel lies on an edge: the pixel after it
        (6, 2, [1, 4]),
        (2, 6, [0, 0, 0, 1, 1, 1]),
        (3, 5, [0, 0, 1, 2, 2]),
        (5, 1, [2]),
    ],
)
def test_the_pixel_under_the_centre_is_taken(length, size, places):
    assert sampled_places(length, size).tolist() == places


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_run_lengths_are_resampled_as_pixels_are(data):
    size, new = (data.draw(st.tuples(SIDES, SIDES)) for _ in range(2))
    masks = data.draw(arrays.arrays(bool, (data.draw(st.integers(0, 4)), *size)))
    if len(masks) > 1:
        masks[0] = True  # one run over all columns
    found = resampled_library(library_of(masks), new)
    expected = np.stack([resampled_mask(mask, new) for mask in masks]) if len(masks) else np.zeros((0, *new), bool)
    again = library_of(expected)
    assert found.size_hw == new
    assert found.codes == again.codes
    np.testing.assert_array_equal(found.areas, again.areas)
    for index, mask in enumerate(expected):  # COCO's own box spans the height where a run turns a column
        x, y, width, height = found.boxes_xywh[index].astype(int)
        assert mask[y : y + height, x : x + width].sum() == mask.sum()
        assert (width > 0) == mask.any()
        if mask.any():
            assert mask[[y, y + height - 1]].any(axis=1).all()
            assert mask[:, [x, x + width - 1]].any(axis=0).all()


def test_the_same_size_changes_nothing():
    masks = np.random.default_rng(0).random((5, 9, 13)) < 0.4
    assert resampled_library(library_of(masks), (9, 13)).codes == library_of(masks).codes


def test_a_mask_may_vanish_and_keeps_its_place():
    masks = np.zeros((2, 8, 8), bool)
    masks[0, 0, 0], masks[1, 5, 5] = True, True
    found = resampled_library(library_of(masks), (4, 4))
    assert found.areas.tolist() == [0, 1]
    assert found.boxes_xywh.tolist() == [[0, 0, 0, 0], [2, 2, 1, 1]]
