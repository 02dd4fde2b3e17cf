"""The page of several runs' detections: same images, same truth, counts that hold."""

import shutil
import sys

import numpy as np
import pytest
from PIL import Image

from jobs.measurements import predictions
from jobs.measurements.predictions import Instances, Run, compare
from jobs.training.run_directory import DONE, RESOLVED
from pipeline.errors import CheckpointError, ConfigError


def squares(*corners, labels):
    masks = np.zeros((len(corners), 40, 40), bool)
    for mask, (top, left) in zip(masks, corners, strict=True):
        mask[top : top + 10, left : left + 10] = True
    return Instances(masks, np.array(labels, np.int64))


def teachers(demo):
    return [f"labels={demo.root}/teacher_supervised", f"distilled={demo.root}/teacher_structural"]


def test_an_object_is_found_by_its_class_and_once():
    truth = squares((0, 0), (20, 20), labels=[0, 1])
    assert predictions._score(truth, truth) == "2 of 2 found, 0 wrong"
    assert predictions._score(squares((0, 0), (20, 20), labels=[0, 2]), truth) == "1 of 2 found, 1 wrong"
    assert predictions._score(squares((0, 0), (0, 1), labels=[0, 0]), truth) == "1 of 2 found, 1 wrong"
    assert predictions._score(squares((0, 6), labels=[0]), truth) == "0 of 2 found, 1 wrong"  # an IoU of 0.25
    assert predictions._score(squares(labels=[]), truth) == "0 of 2 found, 0 wrong"
    assert predictions._score(squares((0, 0), labels=[0]), squares(labels=[])) == "0 of 0 found, 1 wrong"


def test_a_column_for_each_run_and_a_row_for_each_image(demo, monkeypatch):
    pages = []
    monkeypatch.setattr(predictions, "page", lambda titles, rows, note: pages.append((titles, rows, note)))
    runs = [Run.parse(argument) for argument in teachers(demo)]
    dataset = runs[0].evaluation_images()
    compare(runs, num_images=2, min_score=0.0)
    compare(runs, num_images=2, min_score=1.1)
    (titles, rows, note), (_, silent, _) = pages
    assert titles == ("ground truth", "labels", "distilled")
    assert "at least 0 at" in note
    counts = [len(dataset.record(index)["gt_bboxes_labels"]) for index in (0, len(dataset) - 1)]
    assert [row[0][1] for row in rows] == [f"{count} objects" for count in counts]
    assert all(row[1][1].split(", ")[1] != "0 wrong" for row in rows)  # random weights, asked for everything
    for row, count in zip(silent, counts, strict=True):
        assert [caption for _, caption in row[1:]] == [f"0 of {count} found, 0 wrong"] * 2
        np.testing.assert_array_equal(row[1][0], row[2][0])  # the bare image


def test_the_command_writes_a_page(demo, tmp_path, monkeypatch):
    monkeypatch.setattr(predictions, "SIDE", 48)
    monkeypatch.setattr(sys, "argv", ["predictions", str(tmp_path / "x.png"), *teachers(demo), "--images", "2"])
    predictions.main()
    assert Image.open(tmp_path / "x.png").width == 3 * (48 + 8) - 8 + 20


def test_a_student_is_shown_by_the_network_that_its_training_validates(demo, monkeypatch):
    asked = []
    monkeypatch.setattr(predictions, "load_network", lambda config, checkpoint, *, which: asked.append(which))
    run = Run.parse(teachers(demo)[0])
    for network in ("student", "teacher"):
        run.config.model.predict_on = network
        predictions._detections(run, [], min_score=0.5)
    assert asked == ["student", "teacher"]


def test_what_cannot_be_compared_is_refused(demo, tmp_path, monkeypatch):
    for argument in ("teacher_supervised", "=runs/x", "S4M="):
        with pytest.raises(ConfigError, match="which run, and its name"):
            Run.parse(argument)
    with pytest.raises(CheckpointError, match="student_points"):
        Run.parse(f"S4M={demo.root}/student_points")
    unfinished = tmp_path / "unfinished"
    shutil.copytree(demo.root / "teacher_supervised", unfinished)
    (unfinished / DONE).unlink()
    with pytest.raises(CheckpointError, match="has not finished"):
        Run.parse(f"x={unfinished}")

    runs = [Run.parse(argument) for argument in teachers(demo)]
    with pytest.raises(ConfigError, match="--images"):
        compare(runs, num_images=10_000, min_score=0.5)
    loader = runs[1].config.val_dataloader
    loader.dataset.annotation_file = runs[1].config.train_dataloader.dataset.dataset.annotation_file
    with pytest.raises(ConfigError, match=r"different evaluation images(?s:.*)distilled"):
        compare(runs, num_images=1, min_score=0.5)
    runs[1].config.val_dataloader = None
    with pytest.raises(ConfigError, match="no evaluation images"):
        compare(runs, num_images=1, min_score=0.5)
    monkeypatch.setattr(sys, "argv", ["predictions", str(tmp_path / "x.png"), f"gone={tmp_path / 'gone'}"])
    with pytest.raises(SystemExit, match=str(tmp_path / "gone" / RESOLVED)):
        predictions.main()
