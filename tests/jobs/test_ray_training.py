"""Training on Ray: two processes end with the same networks, errors arrive as they are, small clusters are refused."""

import json
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from jobs import train_student, train_teacher
from jobs.training.ray_workers import _cause, followed, gpu_for_each
from jobs.training.run_directory import read_done
from pipeline.errors import CheckpointError, EnvironmentProblemError
from pipeline.models.weights import read_checkpoint
from tests.toy_scenes import small_scenes

CONFIGS = Path(__file__).parents[2] / "configs"
SIZE = 64


def cluster(monkeypatch, **resources):
    ray = pytest.importorskip("ray")
    monkeypatch.setattr(ray, "cluster_resources", lambda: {name: float(n) for name, n in resources.items()})


@pytest.mark.parametrize(
    ("device", "gpus", "expected"),
    [("auto", 0, False), ("auto", 1, False), ("auto", 2, True), ("cpu", 4, False), ("cuda", 2, True)],
)
def test_gpus_are_taken_where_there_is_one_for_each_worker(monkeypatch, device, gpus, expected):
    cluster(monkeypatch, CPU=4, GPU=gpus)
    assert gpu_for_each(device, 2) is expected


@pytest.mark.parametrize(("device", "cpus", "gpus"), [("cpu", 1, 0), ("cuda", 4, 1), ("auto", 1, 2)])
def test_a_cluster_without_room_is_refused_instead_of_waited_for(monkeypatch, device, cpus, gpus):
    cluster(monkeypatch, CPU=cpus, GPU=gpus)
    with pytest.raises(EnvironmentProblemError, match="no room"):
        gpu_for_each(device, 2)


def test_our_own_error_is_found_inside_rays():
    own = CheckpointError("wrong", where="here")
    wrapped, outer = RuntimeError("task"), RuntimeError("trainer")
    wrapped.cause = own
    outer.__cause__ = wrapped
    assert _cause(outer) is own
    assert _cause(RuntimeError("other")).args == ("other",)
    failed = RuntimeError("workers failed")
    failed.worker_failures = {0: RuntimeError("lost"), 1: wrapped}
    assert _cause(failed) is own


def small_student(scenes, teacher):
    values = {
        "data_root": scenes.root,
        "init_checkpoint": None,
        "teacher_checkpoint": teacher,
        "device": "cpu",
        "max_iters": 3,
        "burn_in": 1,
        "batch_size": 2,
        "log_interval": 1,
        "checkpoint_interval": 3,
        "model.refiner.sam": "scenes-nano",
        "model.pseudo_labels.score_threshold": 0.0,
        "model.pseudo_labels.min_soft_area": 0.0,
    }
    for stream in ("labelled", "unlabelled"):
        data = f"train_dataloader.dataset.{stream}.dataset.pipeline"
        values |= {f"{data}.0.scale": f"({SIZE},{SIZE})", f"{data}.1.crop_size": f"({SIZE},{SIZE})"}
    return [f"{key}={value}" for key, value in values.items()]


@pytest.fixture(scope="module")
def scenes(tmp_path_factory):
    return small_scenes(tmp_path_factory.mktemp("data") / "scenes", size=SIZE)


def small_teacher(scenes):
    kept = [o for o in small_student(scenes, None) if not o.startswith(("burn_in", "teacher_", "model."))]
    return [o.replace(".labelled.", ".") for o in kept if ".unlabelled." not in o]


def test_lines_that_others_append_are_printed_once_and_whole(tmp_path, capsys):
    file = tmp_path / "progress.log"
    file.write_text("of an earlier run\n")
    with followed(file, seconds=0.01), file.open("a") as lines:
        lines.write("one\ntw")
        lines.flush()
        wait_for(lambda: "one" in capsys.readouterr().out)
        lines.write("o\n")
    assert capsys.readouterr().out == "two\n"


def test_what_is_written_before_an_error_is_printed_too(tmp_path, capsys):
    def train():
        with followed(tmp_path / "progress.log", seconds=60):
            (tmp_path / "progress.log").write_text("step 1\nstep 2\n")
            raise ValueError("worker died")

    with pytest.raises(ValueError, match="worker"):
        train()
    assert capsys.readouterr().out == "step 1\nstep 2\n"


def wait_for(happened, seconds=10.0):
    end = time.monotonic() + seconds
    while not happened():
        assert time.monotonic() < end
        time.sleep(0.01)


@pytest.mark.slow
def test_two_workers_train_one_student(scenes, tmp_path, capsys):
    teacher = CONFIGS / "teacher/scenes_supervised.py"
    train_teacher.run(teacher, cfg_options=small_teacher(scenes), work_dir=tmp_path / "teacher")
    folder, options = tmp_path / "student", small_student(scenes, tmp_path / "teacher")
    student = Path(__file__).with_name("toy_student.py")
    train_student.run(student, cfg_options=options, work_dir=folder, workers=2)
    assert [line.split()[1] for line in capsys.readouterr().out.splitlines() if line.startswith("step ")] == [
        *("1/3", "2/3", "3/3"),  # the teacher's, here
        *("1/3", "2/3", "3/3"),
    ]
    done = read_done(folder)
    assert done["iterations"] == 3
    figures = {"mask_AP", "mask_AP50", "mask_AP75", "AR100"}
    assert set(done["validation"]) == {*figures, *(f"teacher_{name}" for name in figures)}
    ends = [(folder / f"rank_{rank}_of_2.txt").read_text() for rank in (0, 1)]
    assert ends[0] == ends[1]
    checkpoint = read_checkpoint(folder / "iter_3.pth")["state_dict"]
    assert all(torch.isfinite(value).all() for value in checkpoint.values() if value.is_floating_point())
    lines = [json.loads(line) for line in next(folder.glob("*/vis_data/scalars.json")).read_text().splitlines()]
    losses = [line["loss"] for line in lines if "loss" in line]
    assert len(losses) == 3
    assert np.isfinite(losses).all()
    # The same command again: the launcher of the workers is no part of what was asked for.
    train_student.run(student, cfg_options=options, work_dir=folder, workers=2)


@pytest.mark.slow
def test_what_a_worker_raises_arrives_as_itself(scenes, tmp_path):
    options = small_student(scenes, tmp_path / "nowhere.pth")
    with pytest.raises(CheckpointError, match=r"nowhere\.pth"):
        train_student.run(CONFIGS / "student/scenes_points.py", cfg_options=options, work_dir=tmp_path / "s", workers=2)


@pytest.mark.slow
def test_one_worker_of_a_cluster_trains_what_this_process_would(scenes, tmp_path, one_thread):
    """On as many threads: a worker has one for its CPU."""
    teacher = CONFIGS / "teacher/scenes_supervised.py"
    for name, where in (("here", {}), ("there", {"workers": 1, "ray_address": "start"})):
        train_teacher.run(teacher, cfg_options=small_teacher(scenes), work_dir=tmp_path / name, **where)
    assert (tmp_path / "there/ray").exists()
    assert not (tmp_path / "here/ray").exists()
    here, there = (read_checkpoint(tmp_path / name / "iter_3.pth")["state_dict"] for name in ("here", "there"))
    assert here.keys() == there.keys()
    assert all(torch.equal(value, there[name]) for name, value in here.items())


@pytest.mark.slow
def test_two_workers_that_are_interrupted_end_as_if_they_had_not_been(scenes, tmp_path):
    options = [*small_teacher(scenes), "checkpoint_interval=1"]
    options = [option for option in options if option != "checkpoint_interval=3"]
    teacher = CONFIGS / "teacher/scenes_supervised.py"
    for name in ("whole", "begun"):
        train_teacher.run(teacher, cfg_options=options, work_dir=tmp_path / name, workers=2)
    # As a kill before the last checkpoint leaves it.
    (tmp_path / "begun/iter_3.pth").unlink()
    (tmp_path / "begun/done.json").unlink()
    train_teacher.run(teacher, cfg_options=options, work_dir=tmp_path / "begun", workers=2, resume=True)
    whole, resumed = (read_checkpoint(tmp_path / name / "iter_3.pth")["state_dict"] for name in ("whole", "begun"))
    assert all(torch.equal(value, resumed[name]) for name, value in whole.items())
