"""Trainings a step at a time: the parts of a step add up to it, and the bench compares what begins alike."""

import json
import sys

import pytest

from jobs.bench import steps as bench_steps
from jobs.bench.run import BENCHES
from jobs.bench.stepping import demo_config
from jobs.measurements import step_times
from jobs.measurements.step_times import PARTS, PartClock, step_ratio, summary, table
from pipeline.models import mask2former, semi_student
from pipeline.sam.sam2_backend import build_backend
from tests.jobs.toy_demo import CONFIGS

pytestmark = pytest.mark.usefixtures("one_thread")


def small(*streams):
    data = [f"train_dataloader.dataset.{stream}dataset.pipeline" for stream in streams]
    return ["device=cpu", "batch_size=2"] + [
        option for each in data for option in (f"{each}.0.scale=(64,64)", f"{each}.1.crop_size=(64,64)")
    ]


def test_parts_nest_and_each_second_counts_once():
    now = iter([0.0, 1.0, 3.0, 7.0, 8.0, 10.0])
    clock = PartClock(lambda: next(now))
    with clock.part("outer"):
        with clock.part("inner"):  # from 1 to 3
            pass
        with clock.part("outer"):  # from 7 to 8, the same part again
            pass
    assert clock.seconds == {"outer": 1.0 + 4.0 + 1.0 + 2.0, "inner": 2.0}


def test_an_error_closes_its_parts():
    clock = PartClock()
    with pytest.raises(ValueError, match="bad"), clock.part("outer"), clock.part("inner"):
        raise ValueError("bad")
    with clock.part("next"):
        pass
    assert list(clock.seconds) == ["outer", "inner", "next"]


def test_shares_are_of_each_step_and_ratios_of_each_round():
    fast, slow = [{"ARP": 0.1, "rest": 0.3}] * 3, [{"ARP": 0.2, "rest": 0.4}, {"rest": 0.5}, {"rest": 0.6}]
    found = summary(fast)
    assert found["step"] == {"ms": 400.0, "ms_quartiles": [400.0, 400.0], "percent": 100.0}
    assert found["parts"]["ARP"] == {"ms": 100.0, "ms_quartiles": [100.0, 100.0], "percent": 25.0}
    assert found["sums"]["data"]["ms"] == 0
    assert step_ratio(slow, fast) == {"percent": 50.0, "quartiles": [37.5, 50.0]}
    text = table({"one": found, "two": summary(slow)})
    assert "| ARP | 100.0 ms (100.0 to 100.0), 25.0 % | 0.0 ms (0.0 to 100.0), 0.0 % |" in text
    assert "EMA" not in text


def test_the_parts_of_real_steps(demo, tmp_path, monkeypatch, capsys):
    out = tmp_path / "deep/steps.json"
    watched = semi_student.to_view, mask2former.DistilledMask2Former._distil
    for config, streams in (
        ("teacher/scenes_structural", [""]),
        ("student/scenes_cpi_u", ["labelled.", "unlabelled."]),
    ):
        options = [word for option in small(*streams) for word in ("--cfg-options", option)]
        arguments = [str(CONFIGS / f"{config}.py"), "--demo", str(demo.root), "--out", str(out), *options]
        monkeypatch.setattr(sys, "argv", ["step_times", *arguments, "--steps", "2", "--warm-up", "1"])
        step_times.main()
    assert (semi_student.to_view, mask2former.DistilledMask2Former._distil) == watched
    teacher, student = (entry["configs"] for entry in json.loads(out.read_text()))
    parts = teacher["scenes_structural"]["parts"]
    there = {"similarity rows read", "structural loss", "structural loss, backward", "optimizer", "student: matching"}
    assert there < set(parts)
    assert all(parts[name]["ms"] > 0 for name in there)
    assert not {"EMA", "ARP", "library read"} & set(parts)
    found = student["scenes_cpi_u"]
    assert {"EMA", "ARP", "library read", "teacher: forward, filter", "strong view"} < set(found["parts"]) <= {*PARTS}
    assert found["parts"]["rest"]["percent"] < 30
    assert "| **step** |" in capsys.readouterr().out


def test_a_demos_config_reads_the_demo(demo):
    student = demo_config(CONFIGS / "student/scenes_points.py", demo.root)
    assert (student.store, student.burn_in) == (str(demo.root / "store"), 0)
    teacher = demo_config(CONFIGS / "teacher/scenes_supervised.py", demo.root, further=("seed=3",))
    assert (teacher.teacher_checkpoint, teacher.seed) == (None, 3)


def test_the_bench_takes_steps_that_begin_alike(demo, monkeypatch):
    further = small("labelled.", "unlabelled.")
    read = bench_steps.read_training_config
    monkeypatch.setattr(bench_steps, "read_training_config", lambda path, options: read(path, [*options, *further]))
    case = bench_steps.step_case(demo.root, demo.scenes, refiner="points", backend=build_backend("scenes-nano"), sam="")
    ours, online = case.ours(), case.other()
    case.check(ours, online)
    assert ours["unsup/loss_mask"] != online["unsup/loss_mask"]  # SAM saw another image
    with pytest.raises(AssertionError, match="sup/loss_mask"):
        case.check(ours, {**online, "sup/loss_mask": 0.0})
    with pytest.raises(AssertionError, match="teacher masks"):
        case.check(ours, {**online, "refiner/kept": 999.0})
    assert "student_step" in BENCHES
