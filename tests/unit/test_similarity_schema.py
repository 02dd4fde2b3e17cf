import numpy as np
import pytest

from data_schemas.similarity import (
    MAX_QUANTISATION_ERROR,
    SimilarityLayout,
    SimilarityTargets,
    dequantise,
    quantise,
)


def test_the_quantisation_error_is_at_most_one_in_255():
    values = np.linspace(-1, 1, 100_001, dtype=np.float32)
    error = np.abs(dequantise(quantise(values)).astype(np.float64) - values)
    assert error.max() <= MAX_QUANTISATION_ERROR + 1e-6
    assert error.max() > 0.99 * MAX_QUANTISATION_ERROR  # the stated bound is tight, not generous


def test_levels_by_hand():
    assert quantise(np.array([-1, 0, 1, 1 / 127.5, -1 + 2 / 255], np.float32)).tolist() == [0, 128, 255, 128, 1]
    assert dequantise(np.array([0, 255, 51], np.uint8)).tolist() == pytest.approx([-1, 1, -0.6])
    assert dequantise(np.array([0], np.uint8)).dtype == np.float32


def test_every_level_survives_a_round_trip():
    levels = np.arange(256, dtype=np.uint8)
    assert (quantise(dequantise(levels)) == levels).all()


def test_rounding_beyond_one_is_clipped_and_worse_is_refused():
    assert quantise(np.array([1.0001, -1.0001], np.float32)).tolist() == [255, 0]
    for value in (1.1, -1.1, np.nan, np.inf):
        with pytest.raises(ValueError, match="outside"):
            quantise(np.array([0.0, value], np.float32))
    assert quantise(np.zeros((0, 3, 4), np.float32)).shape == (0, 3, 4)


def test_targets_must_speak_of_the_same_points():
    SimilarityTargets(np.zeros((3, 2), np.float32), np.zeros(3, np.uint8), np.zeros((3, 4, 4), np.float32))
    for points, kind, rows in [
        ((3, 3), 3, (3, 4, 4)),
        ((3, 2), 2, (3, 4, 4)),
        ((3, 2), 3, (2, 4, 4)),
        ((3, 2), 3, (3, 4)),
    ]:
        with pytest.raises(ValueError, match="shapes"):
            SimilarityTargets(np.zeros(points, np.float32), np.zeros(kind, np.uint8), np.zeros(rows, np.float32))


def test_a_layout_fills_its_chunks_and_survives_json():
    layout = SimilarityLayout(256, (64, 64))
    assert SimilarityLayout.from_json(layout.to_json()) == layout
    for wrong in [(100, (64, 64), 64), (0, (64, 64), 64), (64, (0, 64), 64), (64, (64, 64), 0)]:
        with pytest.raises(ValueError, match="num_points"):
            SimilarityLayout(*wrong)
