"""Tasks run at once where they may, wait where they must, and one that fails costs only those that need it."""

import json
import os
import sys

import pytest

from jobs.cluster import task_pool
from jobs.cluster.task_pool import NOT_RUN, Task, TaskJob, TaskStage, describe, run_tasks, run_tasks_on_ray, seconds_of
from tests.jobs.test_side_by_side import meet

PYTHON = (sys.executable, "-u", "-c")


def task(folder, name, code, *after, run_dir=None):
    return Task(name, (code,), folder / "logs" / f"{name}.log", after, run_dir)


def run(*tasks, at_once=2, tell=lambda *_: None):
    return {ended.name: ended for ended in run_tasks(tasks, at_once=at_once, program=PYTHON, tell=tell)}


def test_two_run_at_once(tmp_path):
    pair = [task(tmp_path, mine, meet(tmp_path, mine, theirs)) for mine, theirs in (("a", "b"), ("b", "a"))]
    assert [ended.code for ended in run(*pair).values()] == [0, 0]


def test_no_more_than_asked_for_run_at_once(tmp_path):
    alone = "import os, time; os.mkdir({0!r}); time.sleep(0.2); os.rmdir({0!r})".format(str(tmp_path / "x"))
    ended = run(*[task(tmp_path, str(i), alone) for i in range(3)], at_once=1)
    assert [e.code for e in ended.values()] == [0, 0, 0]


def test_a_failure_costs_only_what_needs_it(tmp_path):
    ended = run(
        task(tmp_path, "bad", "print('error: no such file'); raise SystemExit(3)"),
        task(tmp_path, "needs_bad", "", "bad"),
        task(tmp_path, "needs_that", "", "needs_bad"),
        task(tmp_path, "good", ""),
        task(tmp_path, "needs_good", "", "good"),
    )
    codes = {name: e.code for name, e in ended.items()}
    assert codes == {"bad": 3, "needs_bad": NOT_RUN, "needs_that": NOT_RUN, "good": 0, "needs_good": 0}
    assert ended["bad"].last_lines == ("error: no such file",)
    assert not (tmp_path / "logs/needs_bad.log").exists()
    assert describe(ended["bad"]) == "exit code 3"


def test_a_killed_task_costs_no_other(tmp_path):
    ended = run(
        task(tmp_path, "killed", "import os, signal; os.kill(os.getpid(), signal.SIGKILL)"),
        task(tmp_path, "good", "import time; time.sleep(0.5)"),
    )
    assert ended["good"].code == 0
    assert describe(ended["killed"]) == "killed by SIGKILL"


def test_what_is_printed_goes_into_a_log_and_is_told(tmp_path):
    told = []
    run(
        task(tmp_path, "row", "import sys; print('one'); print('two', file=sys.stderr)"), tell=lambda *x: told.append(x)
    )
    assert sorted(told) == [("row", "one"), ("row", "two")]
    assert sorted((tmp_path / "logs/row.log").read_text().split()) == ["one", "two"]


def test_seconds_are_those_of_all_attempts(tmp_path):
    first = task(tmp_path, "row", "import time; time.sleep(0.3); raise SystemExit(1)")
    run(first)
    once = seconds_of(first.log)
    run(task(tmp_path, "row", "import time; time.sleep(0.3)"))
    assert once >= 0.3
    assert seconds_of(first.log) >= once + 0.3
    assert seconds_of(tmp_path / "logs/other.log") is None


def test_a_begun_training_is_resumed(tmp_path):
    folder = tmp_path / "run"
    show = "import sys; print(sys.argv[1:])"
    assert run(task(tmp_path, "row", show, run_dir=folder))["row"].last_lines == ("[]",)
    folder.mkdir()
    (folder / "resolved_config.py").touch()
    assert run(task(tmp_path, "row", show, run_dir=folder))["row"].last_lines == ("['--resume']",)


def test_an_interruption_stops_what_runs(tmp_path):
    pid = tmp_path / "pid"
    long = f"import os, pathlib, time; pathlib.Path({str(pid)!r}).write_text(str(os.getpid())); time.sleep(600)"
    waits = meet(tmp_path, "waits", "pid")
    tasks = run_tasks([task(tmp_path, "long", long), task(tmp_path, "short", waits)], at_once=2, program=PYTHON)
    assert next(tasks).name == "short"
    tasks.close()
    with pytest.raises(ProcessLookupError):
        os.kill(int(pid.read_text()), 0)
    assert json.loads((tmp_path / "logs/long.log.json").read_text())["seconds"] > 0


def test_nothing_waits_for_what_is_not_there(tmp_path):
    with pytest.raises(ValueError, match="teacher"):
        run(task(tmp_path, "student", "", "teacher"))


def test_on_ray_tasks_come_in_waves_each_after_what_it_needs(tmp_path, monkeypatch):
    waves = []

    def inline(make_stage, jobs, *, address, workers, retries):
        assert (address, retries) == ("auto", 0)
        waves.append([job.task.name for job in jobs])
        return [make_stage()(job) for job in jobs]

    monkeypatch.setattr(task_pool, "run_sharded", inline)
    tasks = [
        task(tmp_path, "student", "", "teacher"),
        task(tmp_path, "teacher", ""),
        task(tmp_path, "bad", "raise SystemExit(3)"),
        task(tmp_path, "needs_bad", "", "bad"),
    ]
    workers = task_pool.WorkerSettings()
    ended = run_tasks_on_ray(tasks, address="auto", workers=workers, program=PYTHON)
    assert {e.name: e.code for e in ended} == {"teacher": 0, "bad": 3, "student": 0, "needs_bad": NOT_RUN}
    assert waves == [["teacher", "bad"], ["student"]]


def test_a_task_that_killed_its_worker_has_failed(tmp_path):
    job = TaskJob(task(tmp_path, "row", ""), PYTHON).without(0, "its worker died (SIGKILL)")
    ended = TaskStage()(job)
    assert ended.code == -9
    assert ended.last_lines == ("its worker died (SIGKILL)",)
