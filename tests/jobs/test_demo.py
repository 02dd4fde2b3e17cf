"""The demo's table says what was measured, and README shows the committed one."""

import json
from pathlib import Path

import pytest

from jobs.config_files import load_config
from jobs.demo import FULL, LONG, ROWS, TINY, _command, _sam_options, markdown_table, quality_table
from jobs.training.runs import read_training_config
from pipeline.scenes.dataset import SceneFiles

ROOT = Path(__file__).parents[2]


def test_rows_are_distinct_and_their_configs_and_teachers_exist():
    names = [row.name for row in ROWS]
    assert len(set(names)) == len(names)
    for row in ROWS:
        assert (ROOT / "configs" / f"{row.config}.py").is_file()
        assert row.teacher is None or row.teacher in names[: names.index(row.name)]


def test_rows_of_one_stage_share_their_budget():
    for size in (FULL, LONG, TINY):
        assert 0 < size.burn_in < size.student_steps
    assert {row.stage for row in ROWS} == {"teacher", "student"}


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
def test_a_folder_with_a_blank_and_a_comma_reaches_the_configs(row):
    """Every path lies below the folder that was asked for."""
    folder = Path("de mo, 2")
    words = _command(row, TINY, folder, folder).words
    options = [word for word, before in zip(words[1:], words, strict=False) if before == "--cfg-options"]
    config = read_training_config(Path(words[1]), options)
    assert config.data_root == "de mo, 2/scenes"
    assert config.split_file.startswith("de mo, 2/scenes/split")
    if "supervised" not in row.config:
        assert config.store == "de mo, 2/store"
    if row.teacher:
        assert config.teacher_checkpoint == f"de mo, 2/{row.teacher}"
    sam = load_config(ROOT / "configs/sam/scenes.py", _sam_options(folder, SceneFiles(folder / "scenes")))
    assert sam.images == "de mo, 2/scenes/annotations/train.json"
    assert (sam.split, sam.store) == ("de mo, 2/scenes/split.json", "de mo, 2/store")


def test_long_runs_share_the_scenes_and_the_store_but_no_folder():
    differing = {name for name, value in vars(LONG).items() if value != vars(FULL)[name]}
    assert differing == {"teacher_steps", "student_steps", "burn_in", "folder"}


def test_table_has_a_line_for_each_row_in_percent():
    row = {"label": "teacher", "steps": 7, "figures": {"mask_AP": 0.1234, "mask_AP50": 0.5, "mask_AP75": 0.0}}
    assert markdown_table({"rows": [row, {**row, "label": "student"}]}).splitlines() == [
        "| row | steps | mask AP | AP50 | AP75 |",
        "|---|---|---|---|---|",
        "| teacher | 7 | 12.3 | 50.0 | 0.0 |",
        "| student | 7 | 12.3 | 50.0 | 0.0 |",
    ]


def test_readme_shows_the_committed_results():
    results = json.loads((ROOT / "docs/results/demo.json").read_text())
    assert markdown_table(results) in (ROOT / "README.md").read_text()


def test_quality_table_has_the_teacher_first_and_a_dash_where_nothing_matched():
    quality = {"matched_share": 0.5, "found_share": 0.25, "num_pseudo_labels": 6}
    known = {**quality, "class_accuracy": 1.0, "segmentation_quality": 0.8}
    unknown = {**quality, "class_accuracy": None, "segmentation_quality": None}
    rows = [{"label": "teacher", "quality": known}, {"label": "after points", "quality": unknown}]
    assert quality_table({"size": {"num_labelled": 2}, "pseudo_labels": rows}).splitlines()[2:] == [
        "| teacher | 3.0 | 50.0 | 25.0 | 100.0 | 80.0 |",
        "| after points | 3.0 | 50.0 | 25.0 | - | - |",
    ]


def test_readme_shows_the_committed_quality_of_pseudo_labels():
    assert quality_table(json.loads((ROOT / "docs/results/demo.json").read_text())) in (ROOT / "README.md").read_text()
