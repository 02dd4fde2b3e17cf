import numpy as np
import pytest

from pipeline.masks import rle
from pipeline.masks.run_encoding import encode_runs


def runs_of(masks):
    """Runs within columns, as the generator finds them, and offsets."""
    height = masks.shape[1]
    spans, offsets = [np.zeros((0, 2), np.int64)], [0]
    for mask in masks:
        edges = np.diff(np.pad(mask.T.astype(np.int8), ((0, 0), (1, 1))), axis=1)
        (column, row), (_, end) = np.nonzero(edges == 1), np.nonzero(edges == -1)
        spans.append(np.stack([column * height + row, column * height + end], axis=1))
        offsets.append(offsets[-1] + len(column))
    return np.concatenate(spans), np.array(offsets)


def special(height, width):
    """Empty, full, first pixel, last pixel, one row, one column."""
    masks = np.zeros((6, height, width), bool)
    masks[1] = masks[2, 0, 0] = masks[3, -1, -1] = masks[4, height // 2] = masks[5, :, width // 2] = True
    return masks


def test_bytes_are_those_of_pycocotools_on_ten_thousand_masks():
    rng = np.random.default_rng(0)
    sizes = [(1, 1), (1, 37), (37, 1), (2, 3), (17, 13), (64, 50), (50, 64), (240, 320)]
    checked = 0
    for number in range(160):
        height, width = sizes[number % len(sizes)]
        coarse = rng.random((58, -(-height // 8), -(-width // 8)))
        blocks = np.kron(coarse, np.ones((1, 8, 8)))[:, :height, :width] < rng.random((58, 1, 1))
        masks = np.concatenate([blocks ^ (rng.random(blocks.shape) < 0.02 * (number % 3)), special(height, width)])
        codes = encode_runs(*runs_of(masks), height=height, width=width)
        assert codes == [code["counts"] for code in rle.encode_many(masks)]
        checked += len(codes)
    assert checked >= 10_000


@pytest.mark.parametrize("num", [0, 1, 3])
def test_masks_without_a_run(num):
    codes = encode_runs(np.zeros((0, 2), np.int64), np.zeros(num + 1, np.int64), height=4, width=5)
    assert codes == [rle.encode(np.zeros((4, 5), bool))["counts"]] * num


def test_counts_beyond_31_bits():
    """An image of more than 2 ** 31 pixels, which no array need hold."""
    height, width = 60_000, 50_000
    start, end = 2_500_000_001, 2_600_000_000
    (code,) = encode_runs(np.array([[start, end]]), np.array([0, 1]), height=height, width=width)
    values, shift, value = [], 0, 0
    for char in code.encode():
        value |= ((char - 48) & 0x1F) << shift
        shift += 5
        if not (char - 48) & 0x20:
            values.append(value - (1 << shift if (char - 48) & 0x10 else 0))
            shift = value = 0
    assert values == [start, end - start, height * width - end]
