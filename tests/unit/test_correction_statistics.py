"""Figure 6's classes on hand-made masks, and the oracle against trying every union."""

from itertools import combinations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from pipeline.errors import ConfigError, InputError
from pipeline.evaluation.correction_statistics import (
    CorrectionStatistics,
    OracleStatistics,
    assigned_objects,
    corrections,
    count_corrections,
    oracle,
)
from pipeline.masks import rle
from pipeline.masks.library import MaskLibrary
from pipeline.masks.overlap import mask_iou

SIZE = (10, 20)


def strip(left, right):
    """Columns left to right (exclusive) of the image."""
    mask = np.zeros(SIZE, bool)
    mask[:, left:right] = True
    return mask


def library_of(*masks, size=SIZE):
    return MaskLibrary.from_rles(rle.encode_many(np.array(masks, bool).reshape(-1, *size)), size_hw=size)


OBJECT = strip(4, 10)
CASES = {
    # the teacher's mask, the proposals, and what CPI-U makes of it
    "positive": (strip(5, 9), [strip(4, 10)]),
    "negative": (strip(5, 9), [strip(4, 16)]),
    "equal": (strip(5, 9), [strip(5, 9)]),
    "uncorrected": (strip(5, 9), [strip(12, 20)]),
    "empty": (strip(0, 0), [strip(4, 10)]),
}
CPI_U = {"cpi_u": {"name": "cpi_u"}}


def statistics_of(name):
    teacher, proposals = CASES[name]
    return corrections(teacher[None], OBJECT[None], library_of(*proposals), CPI_U)["cpi_u"]


def test_each_class_is_counted_as_such():
    found = {name: statistics_of(name).as_dict() for name in CASES}
    counted = {
        name: [key for key, value in row.items() if key.startswith("num_") and value] for name, row in found.items()
    }
    assert counted == {
        "positive": ["num_positive"],
        "negative": ["num_negative"],
        "equal": ["num_equal"],
        "uncorrected": ["num_uncorrected"],
        "empty": ["num_uncorrected", "num_empty"],
    }
    assert all(row["total"] == 1 for row in found.values())
    assert found["positive"]["mean_iou_before"] == pytest.approx(4 / 6)
    assert found["positive"]["mean_iou_after"] == 1
    assert found["positive"]["mean_gain"] == pytest.approx(2 / 6)
    assert found["negative"]["mean_iou_after"] == 0.5
    assert found["negative"]["mean_loss"] == pytest.approx(4 / 6 - 0.5)
    assert found["uncorrected"]["mean_iou_after"] == pytest.approx(4 / 6)
    assert found["empty"]["mean_iou_after"] == 0


def test_pooled_shares():
    total = sum((statistics_of(name) for name in CASES), CorrectionStatistics())
    row = total.as_dict()
    assert row["total"] == 5
    assert [row[f"share_{name}"] for name in ("positive", "negative", "equal", "uncorrected", "empty")] == [
        0.2,
        0.2,
        0.2,
        0.4,
        0.2,
    ]
    assert row["mean_iou_before"] == pytest.approx(4 * (4 / 6) / 5)
    assert row["mean_iou_after"] == pytest.approx((1 + 0.5 + 2 * 4 / 6) / 5)


def test_nothing_has_no_shares():
    assert set(CorrectionStatistics().as_dict().values()) == {0, None}
    none = np.zeros((0, *SIZE), bool)
    assert corrections(none, none, library_of(strip(0, 3)), CPI_U)["cpi_u"] == CorrectionStatistics()
    assert OracleStatistics().as_dict() == {"total": 0, "mean_iou_best_proposal": None, "mean_iou_best_union": None}


def test_strategies_share_a_pass_and_differ():
    """The specification's masks: IOM and CPI-O take the part, CPI-U what contains the mask, CPI both."""
    teacher, part, whole = strip(0, 10), strip(0, 6), strip(2, 20)
    strategies = {name: {"name": name} for name in ("none", "iom", "cpi", "cpi_u", "cpi_o")}
    strategies["strict"] = {"name": "cpi", "under_threshold": 0.9, "over_threshold": 1.0}
    found = corrections(teacher[None], part[None], library_of(part, whole), strategies)
    ious = {name: statistics.as_dict()["mean_iou_after"] for name, statistics in found.items()}
    assert ious == pytest.approx(
        {"none": 0.6, "iom": 1, "cpi": 0.3, "cpi_u": 4 / 18 / (20 / 18), "cpi_o": 1, "strict": 0.6}
    )
    assert found["none"].num_uncorrected == found["strict"].num_uncorrected == 1


def test_errors_are_those_of_the_refiners():
    with pytest.raises(ConfigError, match="did you mean cpi_u"):
        corrections(OBJECT[None], OBJECT[None], library_of(), {"x": {"name": "cpy_u"}})
    with pytest.raises(InputError, match="another size"):
        corrections(OBJECT[None], OBJECT[None], library_of(np.ones((3, 3)), size=(3, 3)), CPI_U)


def test_unmatched_ones_are_never_better_or_worse():
    """IoUs that differ without a match cannot be: what is counted is the outcome."""
    found = count_corrections(np.array([0.5, 0.5]), np.array([0.9, 0.9]), ["kept", "matched"])
    assert (found.num_positive, found.num_uncorrected) == (1, 1)
    assert found.after_sum == pytest.approx(1.4)


def test_masks_belong_to_the_object_they_share_most_with():
    objects = np.stack([strip(0, 6), strip(6, 12)])
    teacher = np.stack([strip(15, 20), strip(1, 5), strip(5, 12), strip(2, 6), strip(0, 0)])
    about, which = assigned_objects(teacher, objects)
    assert about.tolist() == [1, 2, 3]
    assert which.tolist() == [0, 1, 0]
    for few in (teacher[:0], teacher):
        about, which = assigned_objects(few, objects[:0])
        assert about.tolist() == which.tolist() == []


class TestOracle:
    """What the proposals could give at best."""

    def test_parts_make_the_whole(self):
        found = oracle(OBJECT[None], library_of(strip(4, 6), strip(6, 9), strip(9, 11), strip(0, 20))).as_dict()
        assert found["mean_iou_best_proposal"] == pytest.approx(3 / 6)
        assert found["mean_iou_best_union"] == pytest.approx(6 / 7)

    def test_nothing_to_choose_from(self):
        for library in (library_of(), library_of(strip(12, 20)), library_of(strip(0, 0))):
            assert oracle(OBJECT[None], library) == OracleStatistics(1, 0.0, 0.0)
        assert oracle(strip(0, 0)[None], library_of(strip(0, 3))) == OracleStatistics(1, 0.0, 0.0)
        assert oracle(np.zeros((0, *SIZE), bool), library_of(strip(0, 3))) == OracleStatistics()

    @settings(max_examples=60, deadline=None)
    @given(arrays.arrays(bool, st.tuples(st.integers(2, 6), st.just(4), st.just(4))))
    def test_between_the_best_proposal_and_the_best_union_there_is(self, masks):
        truth, proposals = masks[0], masks[1:]
        found = oracle(truth[None], library_of(*proposals, size=(4, 4)))
        single = max(mask_iou(proposal, truth) for proposal in proposals)
        unions = [
            mask_iou(np.any(chosen, axis=0), truth)
            for count in range(1, len(proposals) + 1)
            for chosen in combinations(proposals, count)
        ]
        assert found.best_proposal_sum == pytest.approx(single)
        assert single - 1e-9 <= found.best_union_sum <= max(unions) + 1e-9
        assert found.best_union_sum == pytest.approx(min(unions, key=lambda iou: abs(iou - found.best_union_sum)))
