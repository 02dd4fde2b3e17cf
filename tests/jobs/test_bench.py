"""The benches: that the ratio is what it says, that both ways must agree, that every small case runs."""

import json
import sys

import numpy as np
import pytest

from jobs import bench, bench_cases
from jobs.bench import Line, Timing, chosen, compare, quartiles
from jobs.bench_cases import Case, blob, write_library
from pipeline.errors import ConfigError
from pipeline.stores.proposal_store import ProposalStore


def agree(mine, theirs):
    assert mine == theirs


def case(ours, other, *, check=agree, calls=1):
    return Case(ours, other, "the other way", {"things": 3}, check, calls)


def test_the_ways_take_turns_and_the_ratio_is_other_over_ours():
    now, order = [0.0], []

    def way(name, seconds):
        def call():
            order.append(name)
            now[0] += seconds
            return "same"

        return call

    timing = compare(case(way("ours", 2.0), way("other", 6.0), calls=2), rounds=3, clock=lambda: now[0])
    assert timing == Timing([2.0] * 3, [6.0] * 3)
    assert timing.ratios == [3.0] * 3
    assert order[:2] == ["ours", "other"]  # the check, untimed
    assert order[2::2] == order[3::2] == ["ours", "other", "other", "ours", "ours", "other"]  # two calls each


def test_two_ways_that_disagree_are_not_timed():
    with pytest.raises(AssertionError):
        compare(case(lambda: 1, lambda: 2), rounds=1)


def test_quartiles_of_few_values():
    assert quartiles([4.0]) == (4.0, 4.0, 4.0)
    assert quartiles([1.0, 2.0, 3.0, 4.0, 5.0]) == (2.0, 3.0, 4.0)


def test_a_line_holds_medians_sizes_and_machine():
    line = Line("name", case(int, int), Timing([1.0, 2.0, 3.0], [2.0, 4.0, 12.0]), {"threads": 1})
    values = line.to_json()
    assert values["ours_ms"] == 2000
    assert values["other_ms"] == 4000
    assert values["ratio"] == 2
    assert values["ratio_quartiles"] == [2, 3]
    assert values["rounds"] == 3
    assert values["sizes"] == {"things": 3}
    assert values["threads"] == 1
    assert "ratio 2 (2 to 3 over 3 rounds)" in line.text()


def test_an_unknown_bench_is_refused_by_name():
    assert chosen([]) == list(bench_cases.BENCHES)
    with pytest.raises(ConfigError, match="generator_cpu_nano") as caught:
        chosen(["generator"])
    assert "generator" in str(caught.value)


def test_lines_are_appended(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(bench_cases, "BENCHES", {"toy": lambda folder: [case(lambda: 1, lambda: 1)]})
    monkeypatch.setattr(sys, "argv", ["bench", "--rounds", "2", "--out", str(tmp_path / "deep/bench.jsonl")])
    bench.main()
    bench.main()
    lines = [json.loads(line) for line in (tmp_path / "deep/bench.jsonl").read_text().splitlines()]
    assert [line["name"] for line in lines] == ["toy", "toy"]
    assert lines[0]["versions"]["torch"]
    assert lines[0]["date"]
    assert "toy (things 3)" in capsys.readouterr().out


def test_blobs_are_seeded_and_of_many_sizes():
    masks = [blob(np.random.default_rng(k), 90, 160) for k in range(40)]
    assert np.array_equal(masks[3], blob(np.random.default_rng(3), 90, 160))
    shares = np.array([mask.mean() for mask in masks])
    assert 0 < shares[shares > 0].min() < 0.01
    assert 0.03 < shares.max() < 0.3
    centre = blob(np.random.default_rng(11), 500, 500)
    assert not centre[0].any() or not centre[-1].any()


def test_the_synthetic_library_can_be_read(tmp_path):
    store = ProposalStore.open(write_library(tmp_path / "store", num_images=5, proposals_per_image=4, side=32))
    assert store.image_ids() == [0, 1, 2, 3, 4]
    assert {len(store.read(k)) for k in range(5)} == {4}


def test_the_embedded_sam_bench_compares_equal_masks(tmp_path):
    built = bench_cases.BENCHES["generator_cpu_nano"](tmp_path)
    assert [each.sizes["clicks"] for each in built] == [256, 256]
    timing = compare(built[0], rounds=1)  # raises unless 99 % of the masks are the stock generator's
    assert min(*timing.ours, *timing.other) > 0
