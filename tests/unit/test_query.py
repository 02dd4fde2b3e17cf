"""A dense query mask against counting pixels; its code against pycocotools'."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

from pipeline.masks import rle
from pipeline.masks.query import QueryMask, bounding_box

shapes = array_shapes(min_dims=2, max_dims=2, min_side=1, max_side=12)
bools = arrays(bool, shapes, elements=st.booleans(), fill=st.booleans())


@settings(max_examples=300, deadline=None)
@given(bools)
def test_box_area_and_code(mask):
    query, (ys, xs) = QueryMask.of(mask), np.nonzero(mask)
    assert query.area == len(ys)
    assert query.box == ((xs.min(), ys.min(), xs.max() + 1, ys.max() + 1) if len(ys) else (0, 0, 0, 0))
    assert query.code == rle.encode(mask)


@settings(max_examples=100, deadline=None)
@given(st.data())
def test_shared_pixels(data):
    shape = data.draw(shapes)
    mask = data.draw(arrays(bool, shape))
    others = data.draw(arrays(bool, (data.draw(st.integers(0, 5)), *shape)))
    codes = [code["counts"].encode() for code in rle.encode_many(others)]
    mask[0, 0] = True  # a query is never empty
    shared = QueryMask.of(mask).shared_with(codes)
    assert shared.dtype == np.int64
    np.testing.assert_array_equal(shared, (others & mask).sum(axis=(1, 2)))


@pytest.mark.parametrize("height", [100, 128, 129, 300, 511])
def test_boxes_in_tall_images(height):
    """Taller than the blocks that are skipped from below; one pixel, two, and a block's edge."""
    rng = np.random.default_rng(height)
    for _ in range(60):
        mask = np.zeros((height, 20), bool)
        ys, xs = rng.integers(0, height, 2), rng.integers(0, 20, 2)
        mask[ys, xs] = True
        assert bounding_box(mask) == (xs.min(), ys.min(), xs.max() + 1, ys.max() + 1)
        assert QueryMask.of(mask).code == rle.encode(mask)


def test_views_that_are_not_contiguous():
    mask = (np.random.default_rng(0).random((30, 40)) < 0.1)[::-2, 3:33:3]
    assert QueryMask.of(mask).code == rle.encode(mask)


def test_a_mask_without_pixels():
    for shape in [(0, 0), (0, 5), (4, 0)]:
        assert bounding_box(np.zeros(shape, bool)) == (0, 0, 0, 0)


def test_counts_of_many_megapixels_are_exact():
    """Shares come back from a ratio by rounding: one pixel of a whole large image must not get lost."""
    whole = rle.from_runs(np.array([[0, 10_000 * 12_000]]), height=10_000, width=12_000)
    less = rle.from_runs(np.array([[1, 10_000 * 12_000 - 1]]), height=10_000, width=12_000)
    one = rle.from_runs(np.array([[77, 78]]), height=10_000, width=12_000)
    codes = [code["counts"].encode() for code in (whole, less, one)]
    assert rle.shared_pixels(whole, 120_000_000, codes).tolist() == [120_000_000, 119_999_998, 1]
    assert rle.shared_pixels(less, 119_999_998, codes).tolist() == [119_999_998, 119_999_998, 1]
