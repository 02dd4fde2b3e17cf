"""Tables: declared soundly, run once and to the end, gone on with after a kill, and computed from the cells' files."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from jobs import ablate
from jobs.ablation import data
from jobs.ablation.plan import BUDGETS, CONFIGS, Planner, Study, missing_configs
from jobs.ablation.results import _source_of, markdown_table, metrics_of, rows_of
from jobs.ablation.tables import TABLES, TITLES, Cell, Part, Table, find_table
from jobs.config_files import as_text, load_config
from jobs.settings import known_keys, load_settings
from jobs.training.runs import read_training_config
from pipeline.errors import ConfigError, InputError
from pipeline.refine.build import LIBRARY_REFINERS
from pipeline.stores.lock import StoreBusyError

ROOT = Path(__file__).parents[2]
TEACHER, STUDENT = Part("teacher/scenes_supervised"), Part("student/scenes_none")
TOY = Table(
    "6",
    "A toy",
    (
        Cell("I", "alone", TEACHER, STUDENT),
        Cell("II", "with labels", TEACHER, Part("student/scenes_none", ("model.arp=None",)), labels=STUDENT),
    ),
    figures=("mask_AP", "class_accuracy", "segmentation_quality"),
)


def study_of(folder, *, table=TOY, num_seeds=1, percent=None):
    return Study(table, "tiny", num_seeds, folder / "work", percent=percent)


def run(folder, *, ray_address="local", **changes):
    program = (sys.executable, "-u", str(ROOT / "tests/jobs/toy_trainer.py"), str(folder))
    ablate.run_study(study_of(folder, **changes), ray_address=ray_address, program=program, prepare=lambda _: None)


def calls(folder):
    return [line.split()[0] for line in (folder / "calls").read_text().splitlines()]


def cell_files(folder):
    return {path.name: json.loads(path.read_text()) for path in (folder / "work/results/6/34_percent").iterdir()}


@pytest.mark.parametrize("table", TABLES, ids=lambda table: table.name)
def test_tables_are_sound(table):
    names = [cell.name for cell in table.cells]
    assert len(set(names)) == len(names) > 1
    assert all(re.fullmatch(r"\w+", name) for name in names)
    assert set(table.figures) <= set(TITLES)
    assert missing_configs(Study(table, "short", 1, Path("nowhere"))) == {}


@pytest.mark.parametrize("table", TABLES, ids=lambda table: table.name)
def test_cells_of_a_table_have_one_budget(table, tmp_path):
    study = study_of(tmp_path, table=table)
    jobs = Planner(study).jobs()
    # A row that has fewer steps says so.
    compared = [job for job in jobs if "burn-in" not in job.cell.label]
    assert len({tuple(step.stage for step in job.steps) for job in compared}) == 1
    for stage in ("teacher", "student"):
        words = [" ".join(step.task.words) for job in jobs for step in job.steps if step.stage == stage]
        for option in ("max_iters", "seed", "data_root", "split_file", "burn_in", "checkpoint_interval"):
            values = {tuple(re.findall(rf"{option}=(\S+)", line)) for line in words}
            assert len(values) <= 1 or (option == "burn_in" and table.name == "baselines" and len(values - {()}) == 1)
    assert len({job.digest for job in jobs}) == len(jobs)


OPTIONS = {part for table in TABLES for c in table.cells for part in (c.teacher, c.student) if part and part.options}


@pytest.mark.slow
@pytest.mark.parametrize("part", sorted(OPTIONS, key=str), ids=lambda part: " ".join([part.config, *part.options]))
def test_options_of_tables_have_an_effect(part):
    file = CONFIGS / f"{part.config}.py"
    without, changed = read_training_config(file, []), read_training_config(file, list(part.options))
    assert as_text(without) != as_text(changed)


def test_tables_are_found_by_name_and_others_named():
    assert find_table("a1").name == find_table("A.1").name == "A.1"
    assert find_table("6").name == "6"
    with pytest.raises(InputError, match=r"3 \| 4 \| 5 \| 6 \| A.1 \| A.2[\s\S]*A.3"):
        find_table("A.3")


def test_teachers_are_shared_and_seeds_are_not(tmp_path):
    jobs = Planner(study_of(tmp_path, num_seeds=2)).jobs()
    teachers = [job.steps[0].task.name for job in jobs]
    assert teachers[0] == teachers[1] != teachers[2] == teachers[3]
    assert len({job.steps[1].task.name for job in jobs}) == 4
    elsewhere = Planner(study_of(tmp_path / "elsewhere", num_seeds=2)).jobs()
    assert [job.digest for job in elsewhere] == [job.digest for job in jobs]
    longer = Planner(Study(TOY, "short", 2, tmp_path / "work")).jobs()
    assert {job.digest for job in longer}.isdisjoint(job.digest for job in jobs)


@pytest.mark.parametrize("name", ["A.2", "semires-1"])
def test_a_folder_with_a_blank_and_a_comma_is_the_same_study(name, tmp_path):
    """Every path lies below the folder that was asked for; otherwise the digests would differ."""
    plain, odd = (study_of(tmp_path / folder, table=find_table(name)) for folder in ("plain", "a, b"))
    assert [job.digest for job in Planner(odd).jobs()] == [job.digest for job in Planner(plain).jobs()]


def test_the_data_of_a_folder_with_a_blank_and_a_comma_lie_in_it(tmp_path, monkeypatch):
    found = []

    def look(config_path, *, cfg_options):
        config = load_config(config_path, cfg_options, also_known=known_keys())
        found.append(load_settings(config.to_dict(), where=config_path))

    monkeypatch.setattr(data.precompute_sam, "run", look)
    study = study_of(tmp_path / "a, b")
    data.prepare(study)
    (settings,) = found
    assert (settings.store, settings.split) == (str(study.store(1)), str(study.split(1)))
    assert (Path(settings.images).parents[1], settings.targets) == (study.scenes, ("similarity",))


def test_a_threshold_that_is_the_refiners_own_is_trained_once_for_all_tables(tmp_path):
    def digests(name):
        study = Study(find_table(name), "short", 1, tmp_path, percent=5)
        return {job.cell.name: job.digest for job in Planner(study).jobs()}

    thresholds, matchers = digests("semires-3"), digests("semires-2")
    for row, matcher in (("iom_5", "iom"), ("cpi_7", "cpi"), ("cpi_u_7", "cpi_u")):
        assert thresholds[row] == matchers[matcher]
        refiner, settings = LIBRARY_REFINERS[matcher]
        built = refiner(proposals=None)
        assert {getattr(built, key) for key in settings} == {int(row[-1]) / 10}
    assert len(set(thresholds.values())) == 9


def test_shares_of_labels_lie_beside_each_other(tmp_path):
    ten = Planner(study_of(tmp_path, percent=10)).jobs()
    five = Planner(study_of(tmp_path, percent=5)).jobs()
    assert {job.digest for job in ten}.isdisjoint(job.digest for job in five)
    assert {job.file for job in ten}.isdisjoint(job.file for job in five)
    run(tmp_path, percent=50)
    assert json.loads((tmp_path / "work/s4m_6_50_percent.json").read_text())["size"]["percent"] == 50


def test_a_table_is_run_once(tmp_path, capsys):
    run(tmp_path, num_seeds=2)
    assert sorted(calls(tmp_path)) == ["pseudo-label"] * 2 + ["train-student"] * 4 + ["train-teacher"] * 2
    results = json.loads((tmp_path / "work/s4m_6_34_percent.json").read_text())
    said = capsys.readouterr().out
    assert markdown_table(results) in said
    named = dict(re.findall(r"^  (.*, seed \d): (.*)$", said, re.MULTILINE))
    assert set(named) == {f"{label}, seed {seed}" for label in ("alone", "with labels") for seed in (1, 2)}
    assert len(set(named.values())) == 4
    assert all((Path(folder) / "done.json").is_file() and "student" in folder for folder in named.values())
    assert results["missing"] == []
    before = cell_files(tmp_path)
    run(tmp_path, num_seeds=2)
    assert len(calls(tmp_path)) == 8
    assert cell_files(tmp_path) == before
    run(tmp_path, num_seeds=3)
    assert len(calls(tmp_path)) == 12


@pytest.mark.slow
def test_a_cluster_runs_the_same_table_and_a_failed_cell_costs_no_other(tmp_path):
    failing = tmp_path / "fail_model.arp=None"
    failing.touch()
    with pytest.raises(SystemExit):
        run(tmp_path, ray_address="start")
    assert set(cell_files(tmp_path)) == {"I_seed1.json"}
    failing.unlink()
    run(tmp_path, ray_address="start")
    assert set(cell_files(tmp_path)) == {"I_seed1.json", "II_seed1.json"}
    assert calls(tmp_path).count("train-teacher") == 1


def test_a_cell_file_says_what_was_run(tmp_path):
    run(tmp_path)
    content = cell_files(tmp_path)["II_seed1.json"]
    assert (content["table"], content["cell"], content["seed"], content["budget"]) == ("6", "II", 1, "tiny")
    assert set(content["wall_seconds"]) == set(content["tasks"]) == {"teacher", "student", "labels"}
    assert all(seconds > 0 for seconds in content["wall_seconds"].values())
    assert "model.arp=None" in content["tasks"]["student"]["options"]
    assert content["metrics"]["mask_AP"] == pytest.approx(0.5)
    assert content["metrics"]["class_accuracy"] == 0.9
    assert "torch" in content["provenance"]["versions"]


def test_the_labels_figures_leave_the_network_s_as_they_are(tmp_path):
    study = study_of(tmp_path, table=find_table("semires-F6"))
    job = Planner(study).jobs()[0]
    teacher, labels = (step.folder for step in job.steps)
    for folder in (teacher, labels):
        folder.mkdir(parents=True)
    (teacher / "done.json").write_text(json.dumps({"iterations": 3, "validation": {"oIoU": 0.25, "mIoU": 0.5}}))
    counted = {"share_positive": 0.75, "mean_iou_before": 0.3, "mean_iou_after": 0.6}
    quality = {"before": {"oIoU": 0.3}, "after": {"oIoU": 0.6, "mIoU": 0.7}, "corrections": counted}
    (labels / "summary.json").write_text(json.dumps({"quality": quality}))
    assert metrics_of(job, study) == {"oIoU": 0.25, "mIoU": 0.5, **counted}


def test_a_cell_ends_when_its_processes_have_ended(tmp_path):
    (tmp_path / "linger_student_scenes_none").touch()
    run(tmp_path)
    for content in cell_files(tmp_path).values():
        assert content["wall_seconds"]["student"] > 3


def test_a_task_that_ends_well_without_a_result_is_missing(tmp_path):
    program = (sys.executable, "-c", "print('hello')")
    with pytest.raises(SystemExit) as stop:
        ablate.run_study(study_of(tmp_path), program=program, prepare=lambda _: None)
    assert stop.value.code == 1


def test_a_student_without_figures_does_not_get_its_teachers(tmp_path, capsys):
    run(tmp_path)
    student = tmp_path / "work/runs" / cell_files(tmp_path)["I_seed1.json"]["tasks"]["student"]["run"]
    (student / "done.json").write_text(json.dumps({"iterations": 4, "validation": {}}))
    (tmp_path / "work/results/6/34_percent/I_seed1.json").unlink()
    with pytest.raises(SystemExit):
        run(tmp_path)
    assert re.search(r"alone, seed 1: a finished run has no result[\s\S]*delete", capsys.readouterr().out)
    assert set(cell_files(tmp_path)) == {"II_seed1.json"}


def test_a_failed_cell_costs_no_other_and_is_run_again(tmp_path, capsys):
    (tmp_path / "fail_model.arp=None").touch()
    with pytest.raises(SystemExit) as stop:
        run(tmp_path)
    assert stop.value.code == 3
    assert set(cell_files(tmp_path)) == {"I_seed1.json"}
    assert json.loads((tmp_path / "work/s4m_6_34_percent.json").read_text())["missing"] == ["II, seed 1"]
    out = capsys.readouterr().out
    assert "error: model.arp=None is broken" in out
    assert "1 of 2 cells are missing: II, seed 1" in out
    (tmp_path / "fail_model.arp=None").unlink()
    run(tmp_path)
    assert set(cell_files(tmp_path)) == {"I_seed1.json", "II_seed1.json"}
    last = (tmp_path / "calls").read_text().splitlines()[-1]
    assert last.endswith("--resume")
    assert calls(tmp_path).count("train-teacher") == 1


@pytest.mark.slow
def test_a_killed_table_goes_on_where_it_stopped(tmp_path):
    (tmp_path / "hang_model.arp=None").touch()
    code = "import sys; from pathlib import Path; from tests.jobs import test_ablate;test_ablate.run(Path(sys.argv[1]))"
    process = subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], cwd=ROOT)
    done, until = tmp_path / "work/results/6/34_percent/I_seed1.json", time.monotonic() + 120
    while not (done.exists() and "model.arp" in (tmp_path / "calls").read_text()):
        assert time.monotonic() < until
        assert process.poll() is None
        time.sleep(0.1)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    before = calls(tmp_path)
    (tmp_path / "hang_model.arp=None").unlink()
    run(tmp_path)
    assert calls(tmp_path)[len(before) :] == ["train-student"]
    assert (tmp_path / "calls").read_text().splitlines()[-1].endswith("--resume")
    assert set(cell_files(tmp_path)) == {"I_seed1.json", "II_seed1.json"}


def test_results_of_other_settings_are_not_mixed_in(tmp_path):
    run(tmp_path)
    file = tmp_path / "work/results/6/34_percent/I_seed1.json"
    content = json.loads(file.read_text())
    file.write_text(json.dumps({**content, "digest": "0" * 64}))
    with pytest.raises(InputError, match=r"other settings[\s\S]*I_seed1"):
        run(tmp_path)
    file.write_text("{")
    with pytest.raises(InputError, match="not a cell"):
        run(tmp_path)


def test_missing_configs_are_all_named_with_their_cells(tmp_path):
    cells = (Cell("a", "first", TEACHER, Part("ablation/no_a")), Cell("b", "second", Part("ablation/no_b"), STUDENT))
    study = study_of(tmp_path, table=Table("6", "A toy", cells))
    for call in (lambda: ablate.print_plan(study), lambda: ablate.run_study(study, prepare=lambda _: None)):
        with pytest.raises(ConfigError, match=r"configs/ablation/no_a.py, of: first[\s\S]*no_b.py, of: second"):
            call()
    assert not (tmp_path / "work").exists()


def test_a_config_of_the_other_stage_is_refused(tmp_path):
    table = Table("6", "A toy", (Cell("a", "first", STUDENT),))
    with pytest.raises(ConfigError, match="wants a teacher here"):
        Planner(study_of(tmp_path, table=table)).jobs()


def test_a_dry_run_writes_nothing_and_says_what_is_left(tmp_path, capsys):
    ablate.run("6", seeds=2, work_dir=tmp_path / "work", budget="tiny", dry_run=True)
    out = capsys.readouterr().out
    assert "12 scenes, 34 % of them (4) labelled" in out
    assert "0 of 12 cells done; to run: 4 x train-teacher, 12 x train-student" in out
    assert "III = II + structural distillation: teacher teacher/scenes_structural" in out
    assert not (tmp_path / "work").exists()
    with pytest.raises(ConfigError, match="budget"):
        ablate.run("6", budget="huge", dry_run=True)


def test_the_table_is_the_mean_and_the_sample_deviation_over_seeds():
    def cell(ap, quality=None):
        return {"metrics": {"mask_AP": ap, "class_accuracy": 0.25, "segmentation_quality": quality}}

    found = {("I", 1): cell(0.1), ("I", 2): cell(0.2), ("I", 3): cell(0.6), ("II", 1): cell(0.5, 0.75)}
    rows = rows_of(TOY, found)
    assert rows[0]["mean"]["mask_AP"] == pytest.approx(0.3)
    assert rows[0]["std"]["mask_AP"] == pytest.approx((0.14 / 2) ** 0.5)
    assert list(rows[0]["seeds"]) == ["1", "2", "3"]
    assert markdown_table({"rows": rows}).splitlines() == [
        "| row | seeds | mask AP | right class (CA) | mean IoU (SQ) | against the first row |",
        "|---|---|---|---|---|---|",
        "| alone | 3 | 30.0 ± 26.5 | 25.0 ± 0.0 | - |  |",
        "| with labels | 1 | 50.0 | 25.0 | 75.0 | +40.0 |",
    ]


def test_a_table_names_the_versions_of_the_project_that_trained_its_rows(tmp_path, monkeypatch, capsys):
    one, two = ({"metrics": {"mask_AP": 0.1}, "sources": sources} for sources in (["a1"], ["b2", "a1"]))
    old = {"metrics": {"mask_AP": 0.1}}  # of a cell from before sources were written down
    rows = rows_of(TOY, {("I", 1): one, ("I", 2): two, ("II", 1): old})
    assert [row["sources"] for row in rows] == [["a1", "b2"], []]
    study = study_of(tmp_path)
    jobs = Planner(study).jobs()
    found = {(job.cell.name, job.seed): one for job in jobs}
    study.work_dir.mkdir(exist_ok=True)
    ablate._report(study, jobs, found, [])
    assert "versions of this project" not in capsys.readouterr().out
    ablate._report(study, jobs, {**found, (jobs[0].cell.name, jobs[0].seed): two}, [])
    assert "the rows were trained with 2 versions of this project (a1, b2)" in capsys.readouterr().out


def test_a_cell_knows_the_sources_of_its_trainings(tmp_path):
    for name, content in (("new", '{"source": "a1"}'), ("old", "{}"), ("broken", "[")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "provenance.json").write_text(content)
    assert [_source_of(tmp_path / name) for name in ("new", "old", "broken", "none")] == ["a1", None, None, None]


def test_a_store_that_another_table_is_filling_is_waited_for(monkeypatch, capsys):
    tries = []

    def busy_twice(*_, cfg_options):
        tries.append(cfg_options)
        if len(tries) < 3:
            raise StoreBusyError("another job is writing this store", where="work/store")

    monkeypatch.setattr(data.precompute_sam, "run", busy_twice)
    monkeypatch.setattr(data, "_WAIT_SECONDS", 0)
    data._fill(["store=work/store"])
    assert tries == [["store=work/store"]] * 3
    assert capsys.readouterr().out == "waiting: another job is writing work/store\n"


def test_another_trouble_of_the_store_ends_the_table(monkeypatch):
    def fail(*_, cfg_options):
        raise InputError("no such store")

    monkeypatch.setattr(data.precompute_sam, "run", fail)
    with pytest.raises(InputError, match="no such store"):
        data._fill([])


def test_rows_are_compared_within_seeds():
    def cell(ap):
        return {"metrics": {"mask_AP": ap}}

    found = {("I", 1): cell(0.1), ("I", 2): cell(0.5), ("II", 1): cell(0.11), ("II", 2): cell(0.49), ("II", 3): cell(1)}
    first, second = rows_of(TOY, found)
    assert first["gain"] == {"mean": None, "std": None}
    assert second["gain"]["mean"] == pytest.approx(0.0)  # of seeds that both have
    assert second["gain"]["std"] == pytest.approx(0.02 / 2**0.5)


def test_budgets_grow_and_the_configs_are_those_of_the_project():
    steps = {
        paper: [budgets[name].student_steps for name in ("tiny", "short", "full")] for paper, budgets in BUDGETS.items()
    }
    assert steps == {"s4m": [3, 380, 1500], "semires": [3, 400, 1600]}
    assert CONFIGS == ROOT / "configs"
