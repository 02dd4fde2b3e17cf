"""Settings of precompute-sam: every mistake of a configuration is told, at once, by its dotted name."""

from dataclasses import asdict, replace
from pathlib import Path

import pytest

from jobs.config_files import load_config
from jobs.settings import PrecomputeSettings, SamSettings, hydrate, known_keys, load_settings
from pipeline.errors import ConfigError

ROOT = Path(__file__).parents[2]
GOOD = {"images": "a.json", "store": "s", "sam": {"name": "scenes-nano"}}


def test_defaults_are_filled_in_and_nested_values_taken():
    made = load_settings(
        GOOD
        | {"proposals": {"points_per_side": 8, "max_proposals": 5}, "targets": ["proposals"], "max_broken_share": 0},
        where="here",
    )
    assert made.sam == SamSettings("scenes-nano", device="cpu")
    assert (made.proposals.points_per_side, made.proposals.max_proposals) == (8, 5)
    assert made.proposals.box_nms_threshold == 0.7
    assert made.targets == ("proposals",)
    assert made.max_broken_share == 0.0
    assert isinstance(made.max_broken_share, float)


def test_all_mistakes_are_told_at_once():
    wrong = {
        "imagse": "a.json",
        "store": 3,
        "sam": {"name": "x", "precision": "fp16", "devise": "cpu"},
        "retries": True,
        "proposals": {"box_nms_threshold": 2.0},
        "similarity": "none",
    }
    with pytest.raises(ConfigError) as caught:
        load_settings(wrong, where="bad.py")
    lines = [line.strip(" -") for line in caught.value.got.strip().splitlines()]
    assert set(lines) == {
        "imagse: no such key (nearest: images)",
        "images: missing",
        "store: expected str, got 3",
        "sam.devise: no such key (nearest: device)",
        "sam.precision: expected 'fp32' or 'bf16', got 'fp16'",
        "retries: expected int, got True",
        "proposals: proposal settings out of range: box_nms_threshold = 2.0",
        "similarity: expected a dict, got 'none'",
    }
    assert caught.value.where == "bad.py"
    assert caught.value.what == "8 mistakes in the configuration"


@pytest.mark.parametrize(
    "change",
    [
        {"images_per_shard": 0},
        {"max_broken_share": 1.5},
        {"max_alike_failures": 0},
        {"max_broken_share": float("nan")},
        {"retries": -1},
        {"targets": ()},
        {"targets": ("proposals", "masks")},
        {"similarity": {"num_inside": 0, "num_uniform": 0}},
        {"similarity": {"num_inside": -64, "num_uniform": 128}},
        {"similarity": {"num_inside": 1, "num_uniform": 1}},
        {"workers": {"count": 0}},
    ],
)
def test_values_out_of_range_are_refused(change):
    with pytest.raises(ConfigError):
        load_settings(GOOD | change, where="here")


def test_hydrated_settings_survive_the_round_trip():
    made = load_settings(GOOD, where="here")
    assert hydrate(PrecomputeSettings, asdict(made), where="here") == made


def test_known_keys_are_dotted_at_every_depth():
    assert {"images", "sam", "sam.device", "proposals.points_per_side", "workers.gpus"} <= set(known_keys())


def test_only_what_decides_the_content_is_part_of_a_stores_identity():
    made = load_settings(GOOD, where="here")
    batched = replace(made, proposals=replace(made.proposals, points_per_batch=1), retries=7)
    assert batched.identity_settings("proposals") == made.identity_settings("proposals")
    denser = replace(made, proposals=replace(made.proposals, points_per_side=33))
    assert denser.identity_settings("proposals") != made.identity_settings("proposals")
    assert denser.identity_settings("similarity") == made.identity_settings("similarity")
    half = replace(made, sam=replace(made.sam, precision="bf16"))
    assert half.identity_settings("similarity") != made.identity_settings("similarity")


WITHOUT_SPLIT = {
    "cityscapes": "one store serves every share of labels",
    "refcoco": "proposals only",
    "refcocoplus": "proposals only",
    "refcocog": "proposals only",
    "grefcoco": "proposals only",
}
"""Config -> why its store is of no split."""


@pytest.mark.parametrize("path", sorted((ROOT / "configs/sam").glob("*.py")), ids=lambda path: path.name)
def test_shipped_configs_are_right(path):
    made = load_settings(load_config(path).to_dict(), where=path)
    assert (made.split is None) == (path.stem in WITHOUT_SPLIT)
    if WITHOUT_SPLIT.get(path.stem) == "proposals only":
        assert made.targets == ("proposals",)
