"""Codes are compared with pycocotools and with a decoder written digit by digit from the format's definition."""

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pycocotools import mask as coco_mask

from pipeline.errors import AnnotationError
from pipeline.masks import rle
from pipeline.masks.overlap import pairwise_iou as dense_iou

# pycocotools' own array type does not know numpy 2's `copy` keyword; only its decoder, which is the oracle here, warns.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy:DeprecationWarning")

SHARED = Path(__file__).parents[2].parent / "shared"


def random_masks(count, seed=0):
    rng = np.random.default_rng(seed)
    for index in range(count):
        height, width = rng.integers(1, 40, size=2)
        mask = rng.random((height, width)) < rng.random()
        if index % 7 == 0:
            mask[:] = index % 2
        if index % 7 == 1:
            mask[0, 0] = mask[-1, -1] = True
        yield mask


def slow_decode(counts, height, width):
    """Fill the columns one pixel at a time from alternating counts."""
    flat = [bit for index, count in enumerate(counts) for bit in [index % 2] * count]
    return np.array(flat, dtype=bool).reshape(width, height).T


def test_encode_equals_pycocotools_and_decodes_back():
    for mask in random_masks(200):
        code = rle.encode(mask)
        theirs = coco_mask.encode(np.asfortranarray(mask.astype(np.uint8)))
        assert code == {"size": list(mask.shape), "counts": theirs["counts"].decode()}
        decoded = rle.decode(code)
        assert decoded.dtype == bool
        np.testing.assert_array_equal(decoded, mask)


def test_encode_many_keeps_order_and_accepts_none():
    masks = np.random.default_rng(1).random((5, 9, 13)) < 0.4
    assert rle.encode_many(masks) == [rle.encode(mask) for mask in masks]
    assert rle.encode_many(masks[:0]) == []


def test_encode_many_of_transposed_views():
    masks = np.random.default_rng(1).random((9, 13, 4)) < 0.4
    views = masks.transpose(2, 1, 0)
    np.testing.assert_array_equal(np.stack([rle.decode(code) for code in rle.encode_many(views)]), views)


def test_area_and_box_equal_dense():
    for mask in random_masks(100, seed=2):
        code = rle.encode(mask)
        assert rle.area(code) == mask.sum()
        if not mask.any():
            assert rle.bbox_xywh(code) == (0, 0, 0, 0)
            continue
        rows, columns = np.nonzero(mask)
        expected = (columns.min(), rows.min(), np.ptp(columns) + 1, np.ptp(rows) + 1)
        assert rle.bbox_xywh(code) == expected


def test_runs_are_the_foreground_in_column_order():
    for mask in random_masks(100, seed=3):
        spans = rle.runs(rle.encode(mask))
        flat = np.zeros(mask.size, dtype=bool)
        for start, end in spans:
            assert not flat[start:end].any()
            flat[start:end] = True
        np.testing.assert_array_equal(flat, mask.ravel(order="F"))
        assert (spans[1:, 0] > spans[:-1, 1]).all()


def test_worked_example_of_the_released_format():
    mask = np.array([[1, 1, 0], [1, 1, 0]], dtype=bool)
    code = rle.parse({"size": [2, 3], "counts": [0, 4, 2]}, height=2, width=3, where="test")
    np.testing.assert_array_equal(rle.decode(code), mask)
    np.testing.assert_array_equal(rle.runs(code), [[0, 4]])


def test_runs_of_many_concatenates_and_allows_empty_masks():
    masks = np.random.default_rng(4).random((6, 11, 7)) < 0.3
    masks[0] = masks[3] = masks[5] = False
    masks[4] = True
    codes = rle.encode_many(masks)
    spans, offsets = rle.runs_of_many(codes)
    for index, code in enumerate(codes):
        np.testing.assert_array_equal(spans[offsets[index] : offsets[index + 1]], rle.runs(code))
    assert offsets[0] == 0
    assert offsets[-1] == len(spans)
    assert [len(part) for part in rle.runs_of_many([])] == [0, 1]


def test_from_runs_is_the_union_in_any_order():
    rng = np.random.default_rng(5)
    for mask in random_masks(100, seed=5):
        spans = rle.runs(rle.encode(mask))
        shuffled = rng.permutation(np.concatenate([spans, spans[::2], np.zeros((1, 2), dtype=np.int64)]))
        height, width = mask.shape
        assert rle.from_runs(shuffled, height=height, width=width) == rle.encode(mask)
        np.testing.assert_array_equal(rle.dense(shuffled, height=height, width=width), mask)


def test_union_runs_of_any_spans_equals_painting_them():
    rng = np.random.default_rng(6)
    for _ in range(100):
        spans = np.sort(rng.integers(0, 41, size=(rng.integers(0, 9), 2)), axis=1)
        flat = np.zeros(42, dtype=int)
        for start, end in spans:
            flat[1 + start : 1 + end] = 1
        edges = np.flatnonzero(np.diff(np.append(flat, 0))).reshape(-1, 2)
        np.testing.assert_array_equal(rle.union_runs(spans), edges)
    np.testing.assert_array_equal(rle.union_runs(np.array([[0, 10], [2, 4], [8, 12], [12, 13]])), [[0, 13]])


def test_large_counts_use_several_characters():
    mask = np.zeros((3000, 4000), dtype=bool)
    mask[:, 3998] = True
    code = rle.encode(mask)
    np.testing.assert_array_equal(rle.runs(code), [[3998 * 3000, 3999 * 3000]])
    assert rle.from_runs(rle.runs(code), height=3000, width=4000) == code


@settings(max_examples=80, deadline=None)
@given(st.data())
def test_parse_uncompressed_counts_in_every_spelling(data):
    height, width = data.draw(st.integers(1, 8)), data.draw(st.integers(1, 8))
    cuts = data.draw(st.lists(st.integers(0, height * width), max_size=12).map(sorted))
    counts = np.diff([0, *cuts, height * width]).tolist()  # zeros in the middle are legal spellings
    mask = slow_decode(counts, height, width)
    code = rle.parse({"size": [height, width], "counts": counts}, height=height, width=width, where="test")
    assert code == rle.encode(mask)
    again = rle.parse(
        {"size": [height, width], "counts": code["counts"].encode()}, height=height, width=width, where=""
    )
    assert again == code


def test_parse_compressed_with_zero_counts_becomes_canonical():
    loose = coco_mask.frPyObjects({"size": [2, 3], "counts": [0, 2, 0, 2, 2]}, 2, 3)
    code = rle.parse({"size": [2, 3], "counts": loose["counts"].decode()}, height=2, width=3, where="test")
    assert code == rle.encode(np.array([[1, 1, 0], [1, 1, 0]], dtype=bool))
    np.testing.assert_array_equal(rle.runs(rle.Rle(size=[2, 3], counts=loose["counts"].decode())), [[0, 4]])


def test_polygons_of_one_object_are_united():
    left, right = [0, 0, 6, 0, 6, 4, 0, 4], [4, 0, 9, 0, 9, 4, 4, 4]
    mask = rle.decode(rle.parse([left, right], height=6, width=10, where="test"))
    expected = np.zeros((6, 10), dtype=bool)
    expected[:4, :9] = True  # the overlap of the two stays foreground
    np.testing.assert_array_equal(mask, expected)


def test_polygon_a_little_outside_is_clipped():
    mask = rle.decode(rle.parse([[-2.5, -1, 3, -1, 3, 9, -2.5, 9]], height=6, width=10, where="test"))
    assert mask[:, :3].all()
    assert not mask[:, 3:].any()


SQUARE = [0.0, 0.0, 4.0, 0.0, 4.0, 4.0, 0.0, 4.0]
BAD = {
    "nothing": None,
    "a number": 3,
    "no polygon": [],
    "flat polygon": SQUARE,
    "two points": [[0, 0, 4, 4]],
    "odd count": [[0, 0, 4, 0, 4, 4, 0]],
    "text": [["0", "0", "4", "0", "4", "4"]],
    "none inside": [[0, 0, 4, 0, 4, None]],
    "nested": [[[0, 0], [4, 0], [4, 4]]],
    "not a number": [[0, 0, 4, 0, 4, float("nan")]],
    "infinite": [[0, 0, 4, 0, 4, float("inf")]],
    "far away": [[0, 0, 4e9, 0, 4, 4]],
    "second polygon bad": [SQUARE, [1, 2]],
    "no size": {"counts": [36]},
    "no counts": {"size": [6, 6]},
    "other size": {"size": [6, 7], "counts": [42]},
    "size swapped": {"size": [7, 6], "counts": [42]},
    "size of text": {"size": ["6", "6"], "counts": [36]},
    "size of floats": {"size": [6.0, 6.0], "counts": [36]},
    "size of three": {"size": [6, 6, 1], "counts": [36]},
    "huge size": {"size": [200_000, 200_000], "counts": [40_000_000_000]},
    "sum too small": {"size": [6, 6], "counts": [10, 5]},
    "sum too large": {"size": [6, 6], "counts": [30, 7]},
    "negative": {"size": [6, 6], "counts": [40, -4]},
    "empty counts": {"size": [6, 6], "counts": []},
    "float counts": {"size": [6, 6], "counts": [30.0, 6.0]},
    "boolean counts": {"size": [6, 6], "counts": [True]},
    "nested counts": {"size": [6, 6], "counts": [[30, 6]]},
    "ragged counts": {"size": [6, 6], "counts": [[30], 6]},
    "wrapping counts": {"size": [6, 6], "counts": [2**64 - 1, 37]},
    "enormous counts": {"size": [6, 6], "counts": [2**80, 36]},
    "counts of none": {"size": [6, 6], "counts": None},
    "empty string": {"size": [6, 6], "counts": ""},
    "cut off": {"size": [6, 6], "counts": "T"},
    "bad characters": {"size": [6, 6], "counts": "\x00~"},
    "surrogate": {"size": [6, 6], "counts": "\udc80"},
    "endless count": {"size": [6, 6], "counts": "PPPPPPPPPPPPPPPPPP0"},
    "count in too many characters": {"size": [6, 6], "counts": "TQ" + "P" * 6 + "0"},
    "string sum": {"size": [6, 6], "counts": rle.encode(np.ones((5, 6), dtype=bool))["counts"]},
    "bytes sum": {"size": [6, 6], "counts": rle.encode(np.ones((5, 6), dtype=bool))["counts"].encode()},
}


@pytest.mark.parametrize("segmentation", BAD.values(), ids=BAD.keys())
def test_malformed_segmentation_is_refused_by_name(segmentation):
    with pytest.raises(AnnotationError) as caught:
        rle.parse(segmentation, height=6, width=6, where="instances.json, annotation 17")
    assert "instances.json, annotation 17" in str(caught.value)


@pytest.mark.parametrize(
    ("case", "shown"),
    [
        ("not a number", "got:      nan"),
        ("infinite", "got:      inf"),
        ("none inside", "got:      None"),
        ("text", "got:      '0', '0', '4'"),
        ("bad characters", r"got:      '\x00~'"),
    ],
)
def test_a_wrong_value_is_shown(case, shown):
    with pytest.raises(AnnotationError) as caught:
        rle.parse(BAD[case], height=6, width=6, where="here")
    assert shown in str(caught.value)


def test_of_many_codes_the_wrong_one_is_shown_from_its_first_wrong_character():
    codes = [rle.Rle(size=[6, 6], counts=counts) for counts in ("T1", "00é1", "T1")]
    with pytest.raises(AnnotationError, match="got:      'é1'"):
        rle.runs_of_many(codes)


def test_pycocotools_would_have_decoded_a_bad_sum_silently():
    """The reason for our own check: when this stops failing silently, the check may be reconsidered."""
    loose = coco_mask.frPyObjects({"size": [6, 6], "counts": [10, 5]}, 6, 6)
    with pytest.raises(AnnotationError, match="sum to 36"):
        rle.decode(rle.Rle(size=[6, 6], counts=loose["counts"].decode()))


def test_forged_size_of_an_image_is_refused_before_allocation():
    with pytest.raises(AnnotationError, match="200000 x 200000"):
        rle.parse([SQUARE], height=200_000, width=200_000, where="test")


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=12))
def test_any_bytes_are_either_refused_or_cover_the_mask(garbage):
    try:
        code = rle.parse({"size": [4, 4], "counts": garbage}, height=4, width=4, where="test")
    except AnnotationError:
        return
    theirs = coco_mask.decode({"size": [4, 4], "counts": garbage})
    np.testing.assert_array_equal(rle.decode(code), theirs.astype(bool))


@pytest.mark.skipif(not (SHARED / "data").is_dir(), reason="the shared data folder is not beside the checkout")
@pytest.mark.parametrize("name", ["dsb2018", "coco_photos"])
def test_real_annotations_equal_pycocotools(name):
    content = json.loads((SHARED / "data" / name / "instances.json").read_text())
    sizes = {image["id"]: (image["height"], image["width"]) for image in content["images"]}
    checked = 0
    for annotation in content["annotations"][:300]:
        height, width = sizes[annotation["image_id"]]
        code = rle.parse(annotation["segmentation"], height=height, width=width, where=str(annotation["id"]))
        theirs = annotation["segmentation"]
        if isinstance(theirs, list):
            theirs = coco_mask.merge(coco_mask.frPyObjects(theirs, height, width))
        elif isinstance(theirs["counts"], list):
            theirs = coco_mask.frPyObjects(theirs, height, width)
        np.testing.assert_array_equal(rle.decode(code), coco_mask.decode(theirs).astype(bool))
        checked += 1
    assert checked


def test_pairwise_iou_is_that_of_the_dense_masks():
    random = np.random.default_rng(0)
    masks, others = random.random((5, 9, 13)) < 0.5, random.random((4, 9, 13)) < 0.4
    others[0] = masks[2]
    found = rle.pairwise_iou(rle.encode_many(masks), rle.encode_many(others))
    np.testing.assert_allclose(found, dense_iou(masks, others))
    assert found[2, 0] == 1.0
    assert rle.pairwise_iou([], rle.encode_many(others)).shape == (0, 4)
    assert rle.pairwise_iou(rle.encode_many(masks), []).shape == (5, 0)
