"""The benches: that the ratio is what it says, that both ways must agree, that every small case runs."""

import json
import sys
import time
from dataclasses import replace

import numpy as np
import pytest
import torch

from jobs.bench import generators as bench_generators
from jobs.bench import run as bench
from jobs.bench import targets as bench_targets
from jobs.bench.cases import Case, Timing, blob, quartiles, write_library
from jobs.bench.ray_overhead import plain_run, ray_run, warm_seconds, write_images
from jobs.bench.run import BENCHES, Line, chosen, compare
from jobs.bench.student_labels import same_to_the_bit, student_labels
from pipeline.errors import ConfigError, EnvironmentProblemError
from pipeline.sam.generator_settings import GeneratorSettings
from pipeline.sam.sam2_backend import build_backend
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
    assert chosen([]) == list(BENCHES)
    with pytest.raises(ConfigError, match="generator_cpu_nano") as caught:
        chosen(["generator"])
    assert "generator" in str(caught.value)


def test_lines_are_appended(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(bench, "BENCHES", {"toy": lambda folder: [case(lambda: 1, lambda: 1)]})
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


def test_what_is_timed_already_is_not_timed_again(tmp_path, monkeypatch):
    timed = replace(case(None, None), timing=Timing([0.5, 0.5], [1.0, 2.0]))
    monkeypatch.setattr(bench, "BENCHES", {"toy": lambda folder: [timed]})
    bench.run("toy", tmp_path, tmp_path / "out.jsonl", rounds=9, machine={})
    assert json.loads((tmp_path / "out.jsonl").read_text())["ratio"] == 3


def test_a_bench_without_its_device_is_an_error_only_where_it_was_asked_for(tmp_path, monkeypatch, capsys):
    def absent(folder):
        raise EnvironmentProblemError("no such device")

    monkeypatch.setattr(bench, "BENCHES", {"gpu": absent})
    monkeypatch.setattr(sys, "argv", ["bench", "--out", str(tmp_path / "bench.jsonl")])
    bench.main()
    assert "gpu: left out: no such device" in capsys.readouterr().out
    monkeypatch.setattr(sys, "argv", ["bench", "gpu", "--out", str(tmp_path / "bench.jsonl")])
    with pytest.raises(SystemExit, match="no such device"):
        bench.main()


def test_the_gpu_bench_needs_a_gpu_and_says_so(tmp_path):
    if torch.cuda.is_available():
        pytest.skip("there is a GPU here")
    with pytest.raises(EnvironmentProblemError, match="CUDA"):
        BENCHES["generator_gpu_large"](tmp_path)


def test_the_generator_benches_compare_equal_masks():
    backend = build_backend("scenes-nano")
    settings = GeneratorSettings(points_per_side=6, pred_iou_threshold=0.4, stability_score_threshold=0.5)
    (one,) = bench_generators.generator_cases(
        backend, bench_generators.scene((100, 140)), settings, points_per_batch=[16]
    )
    assert one.sizes == {"image": "100 x 140", "clicks": 36}
    timing = compare(one, rounds=1)  # raises unless 99 % of the masks are the stock generator's
    assert min(*timing.ours, *timing.other) > 0


def test_lenient_settings_leave_about_as_many_masks_as_asked_for():
    backend = build_backend("scenes-nano")
    image = bench_generators.scene((64, 64))
    few = bench_generators.lenient_settings(backend, image, points_per_side=4, confident=0.1)
    many = bench_generators.lenient_settings(backend, image, points_per_side=4, confident=0.9)
    assert few.pred_iou_threshold > many.pred_iou_threshold


def test_the_target_benches_compare_equal_rows(tmp_path):
    backend = build_backend("scenes-nano")
    compare(bench_targets.similarity_case(backend, bench_generators.scene((96, 96)), 5), rounds=1)
    (read,) = bench_targets.similarity_read(tmp_path, num_images=3, grid=8)
    assert read.sizes["bytes an image"] > 0
    compare(read, rounds=2)


def test_the_student_label_bench_compares_equal_labels(tmp_path):
    cases = list(student_labels(tmp_path, image_hw=(64, 128), view_hw=(32, 64), num_masks=4))
    assert len({each.sizes["part"] for each in cases}) == len(cases) == 6
    for each in cases:
        each.check(each.ours(), each.other())
        assert each.clock is time.process_time
    same_to_the_bit([np.zeros(2), None], [np.zeros(2), None])
    for other in ([np.zeros(2, np.float32)], [np.ones(2)], [None], []):
        with pytest.raises((AssertionError, AttributeError)):
            same_to_the_bit([np.zeros(2)], other)


def test_a_case_brings_its_own_clock():
    ticks = iter(range(100))
    timing = compare(replace(case(int, int), clock=lambda: float(next(ticks))), rounds=2)
    assert timing == Timing([1.0] * 2, [1.0] * 2)


def test_time_runs_from_when_every_worker_is_warm():
    """Two workers, shards of 4: 3 shards after the first two, in 6 seconds."""
    assert warm_seconds([10.0, 11.0, 13.0, 15.0, 17.0], 2) == 6 / 12


@pytest.mark.slow
def test_the_cluster_bench_runs_both_ways(tmp_path):
    write_images(tmp_path / "images", 12)
    assert ray_run(tmp_path / "images", 12, 1) > 0
    assert plain_run(tmp_path / "images", 12, 2) > 0


def test_tables_show_the_newest_line_of_every_case(tmp_path, monkeypatch):
    lines = [
        Line(name, case(int, int), Timing([1.0], [other]), {"date": "d", "machine": "m", "threads": 1, "versions": {}})
        for name, other in (("a", 2.0), ("b", 3.0), ("a", 4.0))
    ]
    (tmp_path / "bench.jsonl").write_text("".join(json.dumps(line.to_json()) + "\n" for line in lines))
    arguments = ["--out", str(tmp_path / "bench.jsonl"), "--tables", str(tmp_path / "tables.md")]
    monkeypatch.setattr(sys, "argv", ["bench", *arguments])
    bench.main()
    text = (tmp_path / "tables.md").read_text()
    assert "| things 3 | 1000 ms | the other way: 4000 ms | 4 (4 to 4) | 1 |" in text
    assert "| things 3 | 1000 ms | the other way: 2000 ms |" not in text
    assert text.index("## a") < text.index("## b")
