"""Mutual learning on sentences: interrupted, on libraries with gaps, and in two processes."""

import json
import sys
from pathlib import Path

import pytest
import torch

from jobs import train_student
from jobs.measurements import step_times
from jobs.training.run_directory import read_done
from pipeline.data.coco import load_coco, subset
from pipeline.data.splits import load_split
from pipeline.errors import InputError, StoreMismatchError
from pipeline.models.weights import read_checkpoint
from tests.jobs import toy_networks as toys
from tests.jobs.test_training import content, interrupted, run_training, same

TEACHER = toys.CONFIGS / "teacher/refer_scenes_lavt.py"
STUDENT = toys.CONFIGS / "student/refer_scenes_cpi_u.py"
SMALL = ("init_checkpoint=None", "side=64", "log_interval=1", "batch_size=2", "device=cpu")


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def scenes(tmp_path_factory):
    root = tmp_path_factory.mktemp("data") / "scenes"
    toys.write_data(root, num_train=4, num_val=1)
    return root


@pytest.fixture(scope="module")
def train(scenes):
    return load_coco(scenes / "annotations/train.json", scenes / "images")


@pytest.fixture(scope="module")
def unlabelled(scenes, train):
    return load_split(scenes / "split.json", train).unlabelled


@pytest.fixture(scope="module")
def library(tmp_path_factory, train):
    return toys.write_library(tmp_path_factory.mktemp("stores") / "whole", train)


@pytest.fixture(scope="module")
def teacher(scenes, tmp_path_factory):
    options = [f"data_root={scenes}", *SMALL, "max_iters=1"]
    return run_training(TEACHER, options, tmp_path_factory.mktemp("runs") / "teacher")


def student_options(scenes, library, teacher, *more):
    inputs = (f"data_root={scenes}", f"store={library}", f"teacher_checkpoint={teacher}")
    return [*SMALL, *inputs, "init_checkpoint={teacher_checkpoint}", *more]


def test_the_parts_of_a_students_step(scenes, library, teacher, tmp_path, monkeypatch):
    options = [word for each in student_options(scenes, library, teacher) for word in ("--cfg-options", each)]
    arguments = [str(STUDENT), "--steps", "2", "--warm-up", "1", "--out", str(tmp_path / "steps.json"), *options]
    monkeypatch.setattr(sys, "argv", ["step_times", *arguments])
    step_times.main()
    (result,) = json.loads((tmp_path / "steps.json").read_text())
    parts = result["configs"][STUDENT.stem]["parts"]
    there = {
        *("read images", "labels to masks", "teacher: forward, filter", "library read", "match, or draw points"),
        *("masks to the image and back", "strong view", "student: forward, losses", "optimizer", "EMA"),
    }
    assert there < set(parts) <= {*step_times.PARTS}
    assert all(parts[name]["ms"] > 0 for name in there)
    assert parts["rest"]["percent"] < 30


def logged(folder, name):
    lines = next(folder.glob("*/vis_data/scalars.json")).read_text().splitlines()
    return [values[name] for values in map(json.loads, lines) if name in values]


def test_an_interrupted_student_ends_as_an_uninterrupted_one(scenes, library, teacher, tmp_path, monkeypatch):
    # What is drawn: sentences, flips, blur, jitter, dropout; what is remembered: the last confidences.
    drawn = ("flip=0.5", "model.settings.drop_share=0.3", "model.settings.confidence_window=4")
    options = student_options(scenes, library, teacher, "max_iters=4", "checkpoint_interval=2", *drawn)
    whole = run_training(STUDENT, options, tmp_path / "whole")
    resumed = interrupted(STUDENT, options, tmp_path / "resumed", monkeypatch)
    expected = content(whole)
    same(content(resumed), expected)
    assert int(expected["state_dict"]["confidence.num_seen"]) > 4
    assert read_done(resumed) == read_done(whole)


@pytest.mark.parametrize("gap", ["not planned", "not computed"])
def test_a_library_without_an_unlabelled_image_is_refused_before_the_training(
    scenes, train, unlabelled, teacher, tmp_path, gap
):
    if gap == "not planned":
        some = subset(train, [image_id for image_id in train.by_id if image_id != unlabelled[-1]])
        store, error, told = toys.write_library(tmp_path / "store", some), StoreMismatchError, "no such image"
    else:
        store = toys.write_library(tmp_path / "store", train, left=unlabelled[-1:])
        error, told = InputError, f"not computed yet, such as image {unlabelled[-1]}"
    options = student_options(scenes, store, teacher, "max_iters=1")
    with pytest.raises(error, match=told):
        train_student.run(STUDENT, cfg_options=options, work_dir=tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_an_image_that_sam_could_not_do_has_no_proposals(scenes, train, unlabelled, teacher, tmp_path):
    store = toys.write_library(tmp_path / "store", train, quarantined=unlabelled)
    options = student_options(scenes, store, teacher, "max_iters=2")
    train_student.run(STUDENT, cfg_options=options, work_dir=tmp_path / "run")
    assert logged(tmp_path / "run", "refiner/matched") == [0, 0]
    kept, empty = (logged(tmp_path / "run", f"refiner/{name}") for name in ("kept", "empty"))
    assert [sum(pair) for pair in zip(kept, empty, strict=True)] == [2, 2]


@pytest.mark.slow
def test_two_workers_train_one_student(scenes, library, teacher, tmp_path):
    folder = tmp_path / "student"
    options = student_options(scenes, library, teacher, "max_iters=3")
    student = Path(__file__).with_name("toy_refer_student.py")
    train_student.run(student, cfg_options=options, work_dir=folder, workers=2)
    assert read_done(folder)["iterations"] == 3
    assert {"oIoU", "mIoU"} <= set(read_done(folder)["validation"])
    ends = [(folder / f"rank_{rank}_of_2.txt").read_text() for rank in (0, 1)]
    assert ends[0] == ends[1]
    state = read_checkpoint(folder / "iter_3.pth")["state_dict"]
    assert all(torch.isfinite(value).all() for value in state.values() if value.is_floating_point())
    assert len(logged(folder, "loss")) == 3
