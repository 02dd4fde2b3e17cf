"""The filter of the least confident pseudo-labels."""

import numpy as np
import pytest
import torch

from pipeline.models.referring.confidence import ConfidenceFilter, mask_confidence


def test_confidence_is_the_mean_probability_inside_the_mask():
    probability = np.array([[0.9, 0.7], [0.5, 0.1]], np.float32)
    assert mask_confidence(probability) == pytest.approx(0.8)
    assert mask_confidence(np.full((2, 2), 0.5, np.float32)) is None


@pytest.mark.parametrize("share", [0.05, 0.25])
def test_about_the_share_is_dropped_and_it_is_the_lowest(share):
    judge = ConfidenceFilter(share=share, window=500)
    values = np.random.default_rng(0).uniform(0.5, 1, 4000)
    kept = np.array([judge.keeps(value) for value in values])
    assert kept[: round(1 / share)].all()
    assert np.mean(~kept) == pytest.approx(share, abs=0.2 * share)
    assert values[~kept].max() < 0.5 + 0.5 * 2 * share


def test_the_threshold_follows_the_teacher():
    judge = ConfidenceFilter(share=0.5, window=20)
    for value in [0.6] * 40 + [0.9] * 40:
        judge.keeps(value)
    assert not judge.keeps(0.7)  # above all of long ago, below all of late


def test_equal_ones_are_all_kept_and_none_is_dropped_without_a_share():
    assert all(ConfidenceFilter(share=0.3, window=10).keeps(0.7) for _ in range(30))
    judge = ConfidenceFilter(share=0.0, window=10)
    assert all(judge.keeps(value) for value in np.linspace(1, 0.5, 30))


def test_a_resumed_filter_goes_on():
    first, values = ConfidenceFilter(share=0.2, window=16), np.random.default_rng(1).uniform(0.5, 1, 60)
    answers = [first.keeps(value) for value in values[:30]]
    second = ConfidenceFilter(share=0.2, window=16)
    second.load_state_dict({name: value.clone() for name, value in first.state_dict().items()})
    assert [first.keeps(value) for value in values[30:]] == [second.keeps(value) for value in values[30:]]
    assert not all(answers)
    assert second.num_seen.dtype == torch.int64
