import dataclasses
import math
import random

import numpy as np
import pyarrow as pa
import pytest

from data_schemas.proposals import PROPOSAL_SCHEMA, Proposal, check_proposal, proposal_order

GOOD = Proposal("abc", 4, 6, 10, (0.0, 1.0, 3.0, 2.0), 0.9, 0.96, (2.5, 1.5))


def test_score_then_area_then_bytes_decide_the_order():
    best = dataclasses.replace(GOOD, predicted_iou=0.91, area=1)
    large = dataclasses.replace(GOOD, area=20)
    first_bytes, second_bytes = dataclasses.replace(GOOD, rle_counts="ABC"), dataclasses.replace(GOOD, rle_counts="abd")
    wanted = [best, large, first_bytes, GOOD, second_bytes]
    shuffled = random.Random(0).sample(wanted, len(wanted))
    assert sorted(shuffled, key=proposal_order) == wanted


def test_scores_are_compared_as_they_are_stored():
    # Both are the same float32, so the larger area goes first although its score is smaller as a double.
    low = dataclasses.replace(GOOD, predicted_iou=0.9, area=11)
    high = dataclasses.replace(GOOD, predicted_iou=0.9 + 1e-10, area=10)
    assert np.float32(low.predicted_iou) == np.float32(high.predicted_iou)
    assert sorted([high, low], key=proposal_order) == [low, high]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"height": 5}, "5x6 for an image of 4x6"),
        ({"width": 7}, "4x7"),
        ({"rle_counts": ""}, "empty"),
        ({"rle_counts": "é"}, "ASCII"),
        ({"area": -1}, "area -1"),
        ({"area": 25}, "24 pixels"),
        ({"predicted_iou": math.nan}, "finite"),
        ({"stability_score": math.inf}, "finite"),
        ({"bbox_xywh": (0.0, 1.0, 2.0)}, "8 finite"),
        ({"point_xy": (math.nan, 0.0)}, "finite"),
    ],
)
def test_what_must_not_reach_a_store(change, words):
    check_proposal(GOOD, height=4, width=6)
    with pytest.raises(ValueError, match=words):
        check_proposal(dataclasses.replace(GOOD, **change), height=4, width=6)


def test_the_schema_has_a_column_for_every_field_and_no_nulls():
    names = {name.replace("_xywh", "").replace("_xy", "") for name in (f.name for f in dataclasses.fields(Proposal))}
    columns = {
        name.removesuffix(end)
        for name in PROPOSAL_SCHEMA.names
        for end in ("_x", "_y", "_w", "_h")
        if name.endswith(end)
    }
    columns |= {name for name in PROPOSAL_SCHEMA.names if name[-2:] not in ("_x", "_y", "_w", "_h")}
    assert columns == names | {"image_id", "proposal_id"}
    assert not any(field.nullable for field in PROPOSAL_SCHEMA)
    assert PROPOSAL_SCHEMA.field("image_id").type == pa.int64()
