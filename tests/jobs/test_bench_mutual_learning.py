"""The benches of mutual learning in small: both ways label alike, and the released form of runs is what it is."""

import json

import numpy as np
import pytest

from jobs.bench.cases import write_library
from jobs.bench.mutual_learning import labels_against_released, one_based_runs, released_masks, share_of_step
from jobs.bench.run import compare
from pipeline.masks import rle
from pipeline.masks.library import MaskLibrary
from pipeline.stores.proposal_store import ProposalStore


class Held:
    """A store of one image."""

    def __init__(self, masks):
        self.library = MaskLibrary.from_rles(rle.encode_many(masks), size_hw=masks.shape[1:])

    def read_masks(self, image_id):
        return self.library


def test_runs_are_counted_from_one_column_by_column():
    """The specification's vector: rows [1, 1, 0], [1, 1, 0] are one run of 4 from the first pixel."""
    mask = np.array([[[1, 1, 0], [1, 1, 0]]], bool)
    assert one_based_runs(Held(mask), 0) == [{"counts": [1, 4], "size": [2, 3]}]
    assert rle.runs(rle.encode(mask[0])).tolist() == [[0, 4]]
    coco = rle.parse({"size": [2, 3], "counts": [0, 4, 2]}, height=2, width=3, where="test")
    np.testing.assert_array_equal(rle.decode(coco), mask[0])
    assert one_based_runs(Held(np.zeros((1, 2, 3), bool)), 0) == [{"counts": [], "size": [2, 3]}]


def test_the_released_form_loses_nothing(tmp_path):
    masks = np.random.default_rng(0).random((6, 7, 9)) < 0.5
    masks[:, 0, 0] = masks[:, -1, -1] = True
    entries = json.loads(json.dumps(one_based_runs(Held(masks), 0)))
    square = np.random.default_rng(1).random((4, 8, 8)) < 0.5
    np.testing.assert_array_equal(released_masks(one_based_runs(Held(square), 0), 8).numpy(), square)
    found = released_masks(entries, 63).numpy()
    np.testing.assert_array_equal(found[:, ::9, ::7], masks)


def test_a_step_is_labelled_alike(tmp_path):
    cases = list(labels_against_released(tmp_path, num_images=9, proposals=20, side=48))
    assert [case.sizes["rule"] for case in cases] == ["iom", "cpi"]
    matched = {}
    for case in cases:
        labels = []
        for _ in range(3):
            mine = case.ours()
            case.check(mine, case.other())
            labels += [was_matched for _, was_matched in mine]
        matched[case.sizes["rule"]] = sum(labels)
        assert len(labels) == 9
    assert 0 < matched["iom"] <= matched["cpi"]
    assert min(compare(cases[0], rounds=1).ratios) > 0


def test_a_label_that_differs_is_told(tmp_path):
    case = next(labels_against_released(tmp_path, num_images=3, proposals=5, side=32))
    mine = case.ours()
    other = [(mask.copy(), matched) for mask, matched in mine]
    other[1][0][0, 0] ^= True
    with pytest.raises(AssertionError):
        case.check(mine, other)
    with pytest.raises(AssertionError):
        case.check(mine, [(mask, not matched) for mask, matched in mine])


def test_the_share_is_of_real_steps(tmp_path):
    case = next(share_of_step(tmp_path, rounds=1))
    assert len(case.timing.ours) == len(case.timing.other) == 1
    assert 0 < case.timing.ours[0] < case.timing.other[0]


def test_the_library_is_one_for_an_image(tmp_path):
    """What ``labels_against_released`` reads from both forms is the same library."""
    store = ProposalStore.open(write_library(tmp_path / "s", num_images=2, proposals_per_image=4, side=24))
    masks = released_masks(one_based_runs(store, 1), 24).bool().numpy()
    library = store.read_masks(1)
    for place, mask in enumerate(masks):
        np.testing.assert_array_equal(mask, library.union(np.array([place])))
