"""Recall of a proposal library, on masks whose overlaps can be counted by hand."""

import numpy as np
import pytest

from pipeline.evaluation.library_recall import LibraryRecall, library_recall
from pipeline.masks import rle


def bar(start, end):
    """Columns start to end - 1 of a 4 x 10 image."""
    mask = np.zeros((4, 10), bool)
    mask[:, start:end] = True
    return rle.encode(mask)


def test_best_overlaps_both_ways():
    recall = library_recall([bar(0, 4), bar(5, 10)], [bar(0, 3), bar(0, 5), bar(5, 7)])
    assert recall.best_of_instances == pytest.approx((0.8, 0.4))
    assert recall.best_of_proposals == pytest.approx((0.75, 0.8, 0.4))
    assert recall.at(0.5) == 0.5
    assert recall.at(0.39) == 1.0
    assert recall.at(0.8) == 0.0
    assert recall.proposals_on_objects == pytest.approx(2 / 3)


def test_nothing_proposed_is_nothing_found_and_nothing_there_is_no_figure():
    assert library_recall([bar(0, 4)], []) == LibraryRecall((0.0,), ())
    assert library_recall([], [bar(0, 4)]) == LibraryRecall((), (0.0,))
    assert library_recall([], []).at(0.5) is None
    assert library_recall([], []).proposals_on_objects is None


def test_images_add_up():
    both = library_recall([bar(0, 4)], [bar(0, 4)]) + library_recall([bar(0, 4)], [])
    assert both.at(0.5) == 0.5
    assert both.best_of_proposals == (1.0,)
