"""The values printed in the specification, to four digits."""

import numpy as np
import pytest

from pipeline.refine.pixel_weight import instance_weights, pixel_weights


@pytest.mark.parametrize(
    ("probability", "weight"),
    [
        (0.5, 0.0384),
        (0.4, 0.1),
        (0.6, 0.1),
        (0.25, 0.377),
        (0.75, 0.377),
        (0.1, 0.7331),
        (0.9, 0.7331),
        (0.0, 0.9386),
        (1.0, 0.9386),
    ],
)
def test_published_values(probability, weight):
    assert pixel_weights(np.float32(probability)) == pytest.approx(weight, abs=5e-5)


def test_shape_dtype_and_range():
    weights = pixel_weights(np.linspace(0, 1, 60, dtype=np.float32).reshape(3, 4, 5))
    assert weights.shape == (3, 4, 5)
    assert weights.dtype == np.float32
    assert weights.min() > 0
    assert weights.max() < 1
    np.testing.assert_allclose(weights, weights[::-1, ::-1, ::-1], atol=1e-6)  # symmetric about one half


def test_loss_is_the_mean_of_weight_times_cross_entropy():
    """The acceptance vector of the term for unmatched masks: hard target, no class weights, plain mean."""
    teacher = np.array([[0.9, 0.2], [0.6, 0.5]], dtype=np.float32)
    student = np.array([[0.7, 0.4], [0.5, 0.1]], dtype=np.float32)
    target = teacher > 0.5
    cross_entropy = -np.log(np.where(target, student, 1 - student))
    by_hand = (0.733131 * -np.log(0.7) + 0.495588 * -np.log(0.6) + 0.1 * -np.log(0.5) + 0.038434 * -np.log(0.9)) / 4
    assert (pixel_weights(teacher) * cross_entropy).mean() == pytest.approx(by_hand, abs=2e-5)


def test_scope_decides_who_gets_weights():
    probabilities = np.random.default_rng(0).random((3, 2, 2), dtype=np.float32)
    outcomes = ["matched", "kept", "empty"]
    given = {
        scope: [weights is not None for weights in instance_weights(probabilities, outcomes, scope=scope)]
        for scope in ("off", "unmatched", "all")
    }
    assert given == {"off": [False] * 3, "unmatched": [False, True, True], "all": [True] * 3}
    np.testing.assert_array_equal(
        instance_weights(probabilities, outcomes, scope="all")[1], pixel_weights(probabilities[1])
    )
