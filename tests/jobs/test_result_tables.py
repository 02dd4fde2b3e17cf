import json

import pytest

from jobs.ablation.results import markdown_over_shares, rows_of
from jobs.ablation.tables import Cell, Part, Table
from jobs.measurements import result_tables
from jobs.measurements.result_tables import ROOT, fill, main, page, read_measured
from pipeline.errors import InputError

TOY = Table(
    "toy",
    "A toy",
    (Cell("I", "alone", Part("a")), Cell("II", "with labels", Part("b"))),
    figures=("mask_AP", "class_accuracy", "segmentation_quality"),
    headlines=("mask_AP", "segmentation_quality"),
)


def result(percent, cells, table=TOY):
    """What ``write_table`` writes of the cells (name, seed) -> (AP, SQ)."""
    found = {
        key: {"metrics": {"mask_AP": ap, "class_accuracy": 0.5, "segmentation_quality": sq}}
        for key, (ap, sq) in cells.items()
    }
    return {
        "table": table.name,
        "budget": "short",
        "size": {"percent": percent, "num_train": 260, "num_val": 100, "teacher_steps": 220, "student_steps": 380},
        "seeds": sorted({seed for _, seed in cells}),
        "rows": rows_of(table, found),
        "missing": [],
    }


TEN = result(10, {("I", 1): (0.1, 0.5), ("I", 2): (0.3, 0.5), ("II", 1): (0.2, 0.75), ("II", 2): (0.2, 0.5)})
FIVE = result(5, {("I", 1): (0.4, None), ("II", 1): (0.3, 0.25)})


def test_shares_stand_side_by_side_smallest_first_with_differences_within_seeds():
    assert markdown_over_shares(TOY, [TEN, FIVE]).splitlines() == [
        "| row | mask AP, 5 % (1 seed) | mask AP, 10 % (2 seeds)"
        " | mean IoU (SQ), 5 % (1 seed) | mean IoU (SQ), 10 % (2 seeds) |",
        "|---|---|---|---|---|",
        "| alone | 40.0 | 20.0 ± 14.1 | - | 50.0 ± 0.0 |",
        "| with labels | 30.0 (-10.0) | 20.0 ± 0.0 (+0.0 ± 14.1) | 25.0 | 62.5 ± 17.7 (+12.5 ± 17.7) |",
    ]


def test_a_table_without_headlines_shows_its_first_figure():
    bare = Table("toy", "A toy", TOY.cells, figures=("class_accuracy", "mask_AP"))
    head = markdown_over_shares(bare, [result(5, {("I", 1): (0.4, None), ("II", 1): (0.3, 0.25)}, bare)]).splitlines()
    assert head[0] == "| row | right class (CA), 5 % (1 seed) |"
    assert len(head) == 4


def measured_tables():
    return read_measured(ROOT / "docs/results")


def test_the_readme_shows_every_table_as_it_was_measured():
    text = (ROOT / "README.md").read_text()
    assert fill(text, measured_tables()) == text, "python -m jobs.measurements.result_tables"


def test_the_page_of_all_figures_is_of_these_results():
    assert page(measured_tables()) == (ROOT / "docs/tables.md").read_text(), "python -m jobs.measurements.result_tables"


def test_a_mark_is_filled_and_the_rest_stays():
    measured = {"3": [result(5, {("I", 1): (0.4, None), ("II", 1): (0.3, 0.25)})]}
    text = fill("before\n<!-- measured: 3 -->\nold\n<!-- end -->\nafter", measured)
    assert text.startswith("before\n<!-- measured: 3 -->\n| row | mask AP, 5 % (1 seed) |\n")
    assert text.endswith("|\n<!-- end -->\nafter")
    assert "old" not in text
    assert fill(text, measured) == text


@pytest.mark.parametrize("text", ["no mark", "<!-- measured: 3 -->\n<!-- end -->\n<!-- measured: 4 -->\n<!-- end -->"])
def test_shown_and_measured_tables_are_the_same_ones(text):
    with pytest.raises(InputError, match="not those that were measured"):
        fill(text, {"3": [FIVE]})


def test_results_of_a_table_are_found_at_every_share_and_in_the_papers_order(tmp_path):
    for name, file, percent in (
        ("semires-1", "semires_1_2", 2),
        ("A.1", "s4m_a1_10", 10),
        ("3", "s4m_3_10", 10),
        ("3", "s4m_3_5", 5),
    ):
        (tmp_path / f"{file}_percent.json").write_text(json.dumps(TEN | {"table": name, "size": {"percent": percent}}))
    (tmp_path / "demo.json").write_text("{}")
    found = read_measured(tmp_path)
    assert list(found) == ["3", "A.1", "semires-1"]
    assert [one["size"]["percent"] for one in found["3"]] == [5, 10]


def test_an_unfinished_table_is_not_shown(tmp_path):
    (tmp_path / "s4m_3_5_percent.json").write_text(json.dumps(FIVE | {"table": "3", "missing": ["I seed 1"]}))
    with pytest.raises(InputError, match="I seed 1"):
        read_measured(tmp_path)


@pytest.fixture
def project(tmp_path, monkeypatch):
    """Pages and one measured table, at a place of their own."""
    root = tmp_path / "project"
    (root / "docs/results").mkdir(parents=True)
    (root / "docs/results/s4m_3_10_percent.json").write_text(json.dumps(TEN | {"table": "3"}))
    (root / "README.md").write_text("<!-- measured: 3 -->\nold\n<!-- end -->\n")
    monkeypatch.setattr(result_tables, "ROOT", root)
    return root


def test_a_finished_table_is_published_without_places_of_its_machine(project, tmp_path):
    made = FIVE | {"table": "3", "machine": {"command": ["/home/me/ablate"], "python": "3"}}
    made["size"] = {**FIVE["size"], "folder": "/home/me"}
    (tmp_path / "s4m_3_5_percent.json").write_text(json.dumps(made))
    main([str(tmp_path / "s4m_3_5_percent.json")])
    kept = project / "docs/results/s4m_3_5_percent.json"
    assert "/home/me" not in kept.read_text()
    expected = json.loads(json.dumps(made))
    del expected["machine"]["command"]
    expected["size"]["folder"] = ""
    assert json.loads(kept.read_text()) == expected
    for page_of in ("README.md", "docs/tables.md"):
        text = (project / page_of).read_text()
        assert "25.0" in text or "30.0" in text, page_of
        assert "old" not in text
    assert "mask AP, 5 % (1 seed)" in (project / "README.md").read_text()


@pytest.mark.parametrize(
    ("name", "content", "told"),
    [
        ("s4m_3_5_percent", None, "not a table of ablate"),
        ("s4m_3_5_percent", "[]", "not a table of ablate"),
        ("s4m_99_5_percent", json.dumps(FIVE | {"table": "99"}), r"no such table[\s\S]*99"),
        ("s4m_3_5_percent", json.dumps(FIVE | {"table": "3", "missing": ["I, seed 1"]}), "I, seed 1"),
        ("mine", json.dumps(FIVE | {"table": "3"}), "keeps its name"),
        ("s4m_3_10_percent", json.dumps(TEN | {"table": "3", "budget": "full", "machine": {}}), "another budget"),
    ],
)
def test_what_is_no_finished_table_is_not_published_nor_what_comes_with_it(name, content, told, project, tmp_path):
    good, bad = tmp_path / "s4m_3_1_percent.json", tmp_path / f"{name}.json"
    good.write_text(json.dumps(FIVE | {"table": "3", "machine": {}}))
    if content is not None:
        bad.write_text(content)
    before = {path: path.read_bytes() for path in project.rglob("*.*")}
    with pytest.raises(SystemExit, match=told):
        main([str(good), str(bad)])
    assert {path: path.read_bytes() for path in project.rglob("*.*")} == before
