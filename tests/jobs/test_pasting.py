"""What pasting does, counted: by hand on squares, and by the command on a student of a small demo."""

import json
import shutil

import numpy as np
import pytest
import torch
from mmengine.registry import MODELS, init_default_scope

from jobs.measurements import pasting
from jobs.measurements.pasting import (
    COVERED,
    FOUND,
    LABELS,
    Pasting,
    as_markdown,
    count_batch,
    found_objects,
    right_labels,
    touching,
)
from jobs.measurements.predictions import Instances
from jobs.networks import open_config
from jobs.training.run_directory import DONE, RESOLVED
from pipeline.data.arp import ArpSettings, Sample
from pipeline.errors import ConfigError

pytestmark = pytest.mark.usefixtures("one_thread")


def sample(*squares, side=40):
    """Squares (row, column, side) as labels of one class."""
    masks = np.zeros((len(squares), side, side), bool)
    for mask, (row, column, size) in zip(masks, squares, strict=True):
        mask[row : row + size, column : column + size] = True
    return Sample(np.zeros((side, side, 3), np.uint8), masks, np.zeros(len(squares), np.int64))


def test_pasting_is_counted_label_by_label():
    """The second view's square hides one of the first's and a part of another, which hide a part of it in turn."""
    first, second = sample((0, 0, 10), (20, 20, 4), (5, 30, 10)), sample((14, 18, 20))
    right = [np.array([True, True, False]), np.array([True])]
    counts = count_batch([first, second], right, ArpSettings(), np.random.default_rng(0))
    assert (counts.views, counts.labels, counts.right) == (2, 4, 3)
    # first: (0, 0) whole, (20, 20) gone, (5, 30) covered in part, and the other's; second: its own with two over it.
    assert counts.gone == 1
    assert counts.labels_after == 3 + 4
    assert counts.pasted == 1 + 3
    assert counts.covered == 2
    figures = counts.figures()
    assert figures["labels_per_view"] == 2
    assert figures["right"] == 3 / 4
    assert figures["labels_per_view_after"] == 7 / 2
    assert figures["gone"] == 1 / 4


def test_without_a_label_there_is_no_share():
    counts = count_batch([sample(), sample()], [np.zeros(0, bool)] * 2, ArpSettings(), np.random.default_rng(0))
    assert counts == Pasting(views=2)
    assert counts.figures()["right"] is None
    assert counts.figures()["labels_per_view"] == 0


def test_a_label_that_loses_a_pixel_is_not_covered():
    large, dot = sample((0, 0, 20)), sample((0, 0, 4))
    counts = count_batch([large, dot], [np.ones(1, bool)] * 2, ArpSettings(), np.random.default_rng(0))
    assert COVERED < 1 - 16 / 400
    assert counts.covered == 0  # 4 % of the large one are hidden, in one view


def test_objects_touch_within_a_pixel_corners_too():
    assert touching(sample((0, 0, 5), (5, 5, 5), (20, 0, 5), (20, 6, 5)).masks).tolist() == [True, True, False, False]
    assert touching(sample().masks).shape == (0,)
    assert touching(sample((0, 0, 5)).masks).tolist() == [False]


def test_labels_that_move_are_refused():
    with pytest.raises(ConfigError, match="static"):
        count_batch([sample(), sample()], [np.zeros(0, bool)] * 2, ArpSettings(mode="moved"), np.random.default_rng(0))


def test_a_label_is_right_by_its_class_and_half_of_its_outline():
    view = sample((0, 0, 10), (0, 0, 10), (20, 20, 10), (20, 25, 10))
    view = Sample(view.image, view.masks, np.array([0, 1, 0, 0]))
    truth = sample((0, 0, 10), (20, 20, 10)).masks[:, :36, :35]  # the view is padded below and on the right
    assert right_labels(view, Instances(truth, np.array([0, 0]))).tolist() == [True, False, True, False]
    assert right_labels(view, Instances(truth[:0], np.zeros(0, np.int64))).tolist() == [False] * 4


def test_an_object_is_found_once_by_its_class_and_a_detection_finds_one():
    truth = sample((0, 0, 10), (0, 2, 10), (20, 20, 10))
    seen = sample((0, 0, 10), (20, 20, 10))
    zeros = np.zeros(3, np.int64)
    # The first detection overlaps both first objects by more than half.
    assert found_objects(Instances(seen.masks, zeros[:2]), Instances(truth.masks, zeros)).tolist() == [
        True,
        False,
        True,
    ]
    other = Instances(seen.masks, np.array([0, 1]))
    assert found_objects(other, Instances(truth.masks, zeros)).tolist() == [True, False, False]
    assert found_objects(Instances(seen.masks[:0], zeros[:0]), Instances(truth.masks, zeros)).tolist() == [False] * 3


@pytest.fixture
def student(demo, tmp_path):
    run = tmp_path / "student"
    shutil.copytree(demo.root / "student_points", run)
    init_default_scope("mmdet")
    torch.manual_seed(0)
    model = MODELS.build(open_config(run / RESOLVED, []).model)
    torch.save({"state_dict": model.state_dict()}, run / "iter_1.pth")
    (run / DONE).write_text("{}")
    return run


def test_the_command_counts_a_student(student, tmp_path, capsys):
    out = tmp_path / "out.json"
    sizes = ["--views", "4", "--images", "2", "--min-score", "0"]
    pasting.main([str(out), f"a={student}", f"a={student}", f"b={student}", *sizes])
    result = json.loads(out.read_text())
    assert set(result["rows"]) == {"a", "b"}
    assert [len(values) for values in result["rows"]["a"].values()] == [2] * (len(LABELS) + len(FOUND) + 1)
    ours = {name: values[0] for name, values in result["rows"]["b"].items()}
    assert result["rows"]["a"]["labels_per_view"] == [ours["labels_per_view"]] * 2  # the same run, the same draw
    assert ours["labels_per_view"] > 0
    assert 0 < ours["touching"] < 1
    told = capsys.readouterr().out
    assert as_markdown(result["rows"], LABELS) in told
    assert as_markdown(result["rows"], FOUND) in told


def test_what_a_network_finds_is_counted(student, monkeypatch):
    """One that answers with every other object, and once more with each of these."""
    run = pasting.Run.parse(f"a={student}")
    dataset = run.evaluation_images()
    records = iter([dataset.record(index) for index in range(2)])
    touch, seen_touching, objects = [], [], 0

    def half(network, ready, image, *, min_score):
        record = next(records)
        masks, labels = record["gt_masks"].masks.astype(bool), record["gt_bboxes_labels"]
        nonlocal objects
        objects += len(labels)
        touch.extend(touching(masks))
        seen_touching.extend(touching(masks)[::2])
        return Instances(np.repeat(masks[::2], 2, axis=0), np.repeat(labels[::2], 2))

    monkeypatch.setattr(pasting, "detect", half)
    figures = pasting.found_of(run, num_images=2, min_score=0.5)
    touch, seen_touching = np.array(touch), np.array(seen_touching)
    assert 0 < touch.sum() < objects
    assert figures["touching"] == touch.mean()
    assert figures["found_touching"] == seen_touching.sum() / touch.sum()
    assert figures["found_alone"] == (~seen_touching).sum() / (~touch).sum()
    assert figures["wrong_per_image"] == len(seen_touching) / 2


def test_no_more_views_than_asked_for_are_counted(student, monkeypatch):
    seen = []
    monkeypatch.setattr(pasting, "_labelled", lambda model, batch, rng: (seen.extend(batch), ([], []))[1])
    monkeypatch.setattr(pasting, "count_batch", lambda *_: Pasting(views=1))
    run = pasting.Run.parse(f"a={student}")
    assert run.config.batch_size == 4
    pasting.pasting_of(run, num_views=5)
    assert len(seen) == 5


def test_a_teacher_pastes_nothing(demo):
    run = pasting.Run.parse(f"a={demo.root / 'teacher_structural'}")
    assert pasting.pasting_of(run, num_views=4) is None


def test_no_view_and_no_image_are_refused(tmp_path):
    for size in ("--views", "--images"):
        with pytest.raises(SystemExit):
            pasting.main([str(tmp_path / "out.json"), "a=b", size, "0"])


def test_a_run_without_pasting_has_no_figures_of_it(student):
    config = open_config(student / RESOLVED, ["model.arp=None"])
    run = pasting.Run("plain", config, str(student / "iter_1.pth"))
    assert pasting.pasting_of(run, num_views=4) is None
    rows = {"plain": {"found_touching": [0.5], "found_alone": [None], "wrong_per_image": [1.0]}}
    assert as_markdown(rows, LABELS).count("\n") == 1
    assert "| plain | 0.50 | - | 1.00 |" in as_markdown(rows, FOUND)


def test_a_run_is_named(tmp_path):
    with pytest.raises(ConfigError, match="which run"):
        pasting.Run.parse(str(tmp_path))
    with pytest.raises(SystemExit, match="which run"):
        pasting.main([str(tmp_path / "out.json"), str(tmp_path)])
