"""Prompts are compared on the same masks, against the ground truth, with the refiner that training uses."""

import json

import pytest

from jobs import pseudo_label
from jobs.measurements import prompts as compare_prompts
from jobs.measurements.prompts import WAYS, as_table, compare
from pipeline.errors import InputError
from tests.jobs import toy_networks as toys

POINTS = toys.CONFIGS / "student" / "scenes_points.py"


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return tmp_path_factory.mktemp("prompts")


@pytest.fixture(scope="module")
def options(root):
    return [*toys.write_data(root / "scenes", num_train=4, num_val=1), "model.pseudo_labels.score_threshold=0.2"]


@pytest.fixture(scope="module")
def student(root, options):
    return toys.write_student(root / "student.pth", options[:-1], toys.class_list(root / "scenes"))


@pytest.fixture(scope="module")
def found(options, student):
    return compare(POINTS, student, options, limit=2, num_seeds=2, gates=[None, 0.99])


def row_of(found, name):
    (row,) = [row for row in found["rows"] if row["name"] == name]
    return row


def test_every_way_refines_the_same_masks(found):
    names = [row["name"] for row in found["rows"]]
    assert names == ["none", *WAYS, *(f"{name}, IoU >= 0.99" for name in WAYS)]
    assert found["images"] == 2
    (count,) = {row["pseudo_labels"] for row in found["rows"]}
    assert count > 5
    for row in found["rows"]:
        assert sum(row["outcomes"].values()) == count
        assert row["seeds"] == ([0] if row["name"].split(",")[0] in ("none", "box", "mask") else [0, 1])
    assert row_of(found, "none")["outcomes"]["matched"] == 0
    assert all(row_of(found, name)["outcomes"]["matched"] > 0 for name in WAYS)


def test_a_strict_gate_leaves_the_networks_masks(found):
    for name in WAYS:
        gated = row_of(found, f"{name}, IoU >= 0.99")
        assert gated["outcomes"]["matched"] < row_of(found, name)["outcomes"]["matched"]
        assert gated["settings"] == {**WAYS[name], "min_iou_with_teacher": 0.99} | (
            {"num_points": 3} if "num_points" not in WAYS[name] else {}
        )


@pytest.mark.parametrize(("name", "seed"), [("points_5", 0), ("box", 0)])
def test_figures_are_those_of_pseudo_label(root, options, student, name, seed):
    folder = root / name
    refiner = [f"model.refiner.{key}={value}" for key, value in WAYS[name].items()]
    pseudo_label.run(POINTS, student, cfg_options=[*options, *refiner], work_dir=folder, limit=2)
    summary = json.loads((folder / "summary.json").read_text())
    row = row_of(compare(POINTS, student, options, limit=2, num_seeds=1), name)
    assert row["mean"] == {key: summary["quality"]["after"][key] for key in row["mean"]}
    assert row["outcomes"] == summary["outcomes"]


def test_the_table_has_a_line_for_every_way(found):
    lines = as_table(found).splitlines()
    assert [line.split(" | ")[0].strip("| ") for line in lines[2 : 2 + len(found["rows"])]] == [
        row["name"] for row in found["rows"]
    ]


def test_images_without_ground_truth_are_refused(root, options, student):
    images = f"pseudo_label.images={root / 'scenes' / 'images' / 'train'}"
    with pytest.raises(InputError, match="ground truth"):
        compare(POINTS, student, [*options, images], limit=1)


def test_a_config_without_prompts_is_refused(options, student):
    with pytest.raises(InputError, match=r"prompts no SAM[\s\S]*scenes_points"):
        compare(toys.STUDENT, student, options)


def test_the_command_writes_json_and_says_errors_in_one_line(options, student, tmp_path, monkeypatch, capsys):
    out = tmp_path / "prompts.json"
    monkeypatch.setattr(compare_prompts, "WAYS", {"box": WAYS["box"]})

    def call(config):
        words = [str(config), str(student), "--limit", "1", "--out", str(out)]
        words += [word for option in options for word in ("--cfg-options", option)]
        monkeypatch.setattr("sys.argv", ["compare_prompts", *words])
        compare_prompts.main()

    call(POINTS)
    assert [row["name"] for row in json.loads(out.read_text())["rows"]] == ["none", "box"]
    assert "| box |" in capsys.readouterr().out
    with pytest.raises(SystemExit) as caught:
        call(toys.STUDENT)
    assert caught.value.code == 3
    assert "error: " in capsys.readouterr().err
