"""Drawn points are compared with the distribution they must follow."""

import numpy as np
import pytest

from pipeline.masks.points import sample_points, sampling_weights

VISIBLE = np.ones((6, 8), dtype=bool)


def draw(probability, *, visible=VISIBLE, num_points=3, rule="sigmoid_in_mask", seed=0):
    return sample_points(probability, visible, num_points=num_points, rule=rule, rng=np.random.default_rng(seed))


def test_weights_of_equation_3():
    probability = np.array([[0.5, 0.51], [0.9, 0.2]], dtype=np.float32)
    visible = np.array([[True, True], [True, True]])
    weights = sampling_weights(probability, visible, rule="sigmoid_in_mask")
    np.testing.assert_allclose(weights, [[0, 0.51], [0.9, 0]], rtol=1e-6)
    visible[1, 0] = False
    np.testing.assert_allclose(sampling_weights(probability, visible, rule="sigmoid_in_mask"), [[0, 0.51], [0, 0]])


def test_softmax_weights_are_proportional_to_exp_of_the_logits():
    logits = np.random.default_rng(0).normal(size=(6, 8)) * 3
    weights = sampling_weights((1 / (1 + np.exp(-logits))).astype(np.float32), VISIBLE, rule="softmax")
    np.testing.assert_allclose(weights / weights.sum(), np.exp(logits) / np.exp(logits).sum(), rtol=1e-4)


def test_softmax_of_a_saturated_map_stays_finite():
    weights = sampling_weights(np.ones((6, 8), dtype=np.float32), VISIBLE, rule="softmax")
    assert np.isfinite(weights).all()
    assert len(draw(np.ones((6, 8), dtype=np.float32), rule="softmax")) == 3


def test_points_are_distinct_pixel_centres_inside_the_mask():
    probability = np.zeros((6, 8), dtype=np.float32)
    probability[2:5, 3:7] = 0.8
    points = draw(probability, num_points=12)
    assert points.shape == (12, 2)
    assert points.dtype == np.float32
    expected = {(column + 0.5, row + 0.5) for row in range(2, 5) for column in range(3, 7)}
    assert {tuple(point) for point in points.tolist()} == expected


def test_fewer_pixels_than_points_gives_what_there_is():
    probability = np.zeros((6, 8), dtype=np.float32)
    probability[5, 7] = 0.6
    np.testing.assert_array_equal(draw(probability), [[7.5, 5.5]])
    assert draw(np.zeros((6, 8), dtype=np.float32)).shape == (0, 2)
    assert draw(np.zeros((6, 8), dtype=np.float32), rule="softmax").shape == (0, 2)


def test_nothing_is_drawn_outside_the_visible_region():
    visible = np.zeros((6, 8), dtype=bool)
    visible[:, :2] = True
    for rule in ("sigmoid_in_mask", "softmax"):
        points = draw(np.full((6, 8), 0.9, dtype=np.float32), visible=visible, num_points=48, rule=rule)
        assert len(points) == 12
        assert points[:, 0].max() < 2


@pytest.mark.parametrize("rule", ["sigmoid_in_mask", "softmax"])
def test_frequencies_follow_the_weights(rule):
    probability = np.array([[0.95, 0.55], [0.75, 0.3]], dtype=np.float32)
    visible = np.ones((2, 2), dtype=bool)
    rng = np.random.default_rng(1)
    hits = np.zeros((2, 2))
    for _ in range(4000):
        x, y = sample_points(probability, visible, num_points=1, rule=rule, rng=rng)[0]
        hits[int(y), int(x)] += 1
    weights = {
        "sigmoid_in_mask": np.array([[0.95, 0.55], [0.75, 0]]),
        "softmax": np.array([[0.95 / 0.05, 0.55 / 0.45], [0.75 / 0.25, 0.3 / 0.7]]),
    }[rule]
    np.testing.assert_allclose(hits / 4000, weights / weights.sum(), atol=0.03)


def test_same_seed_same_points():
    probability = np.random.default_rng(2).random((6, 8), dtype=np.float32)
    np.testing.assert_array_equal(draw(probability, seed=5), draw(probability, seed=5))
    assert (draw(probability, seed=5) != draw(probability, seed=6)).any()
