"""``s4m-pipeline ablate``: the cells of one of the papers' tables on the embedded scenes, as tasks beside each other.

Every cell with every seed ends in one file; what has ended is not run again, what was begun is gone on with, and a
cell that fails costs no other.
"""

import os
import re
import sys
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Sequence
from pathlib import Path
from typing import Any

from jobs.ablation import data as ablation_data
from jobs.ablation.plan import BUDGETS, Job, Planner, Study, missing_configs, refuse_missing, tasks_of
from jobs.ablation.results import markdown_table, read_cell, rows_of, write_cell, write_table
from jobs.ablation.tables import TITLES, find_table
from jobs.cluster.ray_runner import LOCAL, WorkerSettings
from jobs.cluster.side_by_side import PROGRAM
from jobs.cluster.task_pool import NOT_RUN, Ended, Task, describe, run_tasks, run_tasks_on_ray
from jobs.demo import MAX_AT_ONCE
from jobs.progress import Progress, say
from pipeline.data.splits import labelled_count
from pipeline.errors import ConfigError, InputError

_STEP = re.compile(r"^step (\d+)/(\d+) ")
_SHOWN_PARTS = 200
"""The progress is told at most so many times where there is no terminal."""


def run(
    table: str,
    *,
    seeds: int = 3,
    work_dir: Path | None = None,
    ray_address: str = LOCAL,
    budget: str = "short",
    percent: float | None = None,
    at_once: int | None = None,
    dry_run: bool = False,
) -> None:
    """Do the command; see ``s4m-pipeline ablate --help``.

    Args:
        table: Name of a table of ``jobs/ablation/tables.py``.
        seeds: How many; they are 1, 2, ...
        work_dir: Everything is written here; work_dirs/ablation_<budget> by default.
        ray_address: See ``jobs/cluster/ray_runner.py``.
        budget: tiny | short | full: the demo's sizes --tiny, its default, --long.
        percent: Of the scenes that are labelled; the budget's own where None.
        at_once: Tasks beside each other on this machine; as many as cores, eight at most, where None.
        dry_run: Say what would be run and which configs are missing.

    Raises:
        InputError: no such table, or results of other settings in the folder.
        ConfigError: a missing config, or one that cannot be used.
        SystemExit: some cells failed: the first one's exit code.
    """
    chosen = find_table(table)
    budgets = BUDGETS[chosen.paper]
    if budget not in budgets:
        raise ConfigError("unknown budget", where="--budget", expected=" | ".join(budgets), got=budget)
    folder = (work_dir or Path("work_dirs") / f"ablation_{budget}").resolve()
    study = Study(chosen, budget, seeds, folder, percent=percent)
    if dry_run:
        print_plan(study)
    else:
        run_study(study, ray_address=ray_address, at_once=at_once)


def run_study(
    study: Study,
    *,
    ray_address: str = LOCAL,
    at_once: int | None = None,
    program: Sequence[str] = PROGRAM,
    prepare: Callable[[Study], None] = ablation_data.prepare,
) -> None:
    """Run what is missing of a table and print it.

    Args:
        study: The table and its circumstances.
        ray_address: ``local`` runs child processes here.
        at_once: So many of them beside each other.
        program: What tasks are given to.
        prepare: Makes the data.

    Raises:
        PipelineError, SystemExit: as :func:`run`.
    """
    say(f"table {study.table.name}: {study.table.title}")
    jobs = Planner(study).jobs()
    found = {(job.cell.name, job.seed): content for job in jobs if (content := read_cell(job)) is not None}
    left = [job for job in jobs if (job.cell.name, job.seed) not in found]
    tasks = tasks_of(left)
    say(f"{len(jobs)} cells with seeds 1 to {study.num_seeds}: {len(found)} done; {len(tasks)} tasks to run")
    if tasks:
        prepare(study)
    failures: list[Ended] = []
    pending = {task.name for task in tasks}
    _write_finished(left, pending, study, found)
    with _Work(left, tasks) as work:
        for ended in _run(tasks, ray_address, at_once, program, work):
            work.end(ended)
            if ended.code:
                failures.append(ended)
                _tell_failure(ended, tasks)
                continue
            pending.remove(ended.name)
            _write_finished(left, pending, study, found)
    _report(study, jobs, found, failures)


def _run(
    tasks: Sequence[Task], ray_address: str, at_once: int | None, program: Sequence[str], work: "_Work"
) -> Iterator[Ended]:
    if ray_address == LOCAL:
        at_once = at_once or min(os.cpu_count() or 1, MAX_AT_ONCE)
        return run_tasks(tasks, at_once=at_once, program=program, tell=work.heard)
    theirs = None if tuple(program) == PROGRAM else program
    return run_tasks_on_ray(tasks, address=ray_address, workers=WorkerSettings(), program=theirs)


def _write_finished(
    jobs: Sequence[Job], pending: Collection[str], study: Study, found: dict[tuple[str, int], dict[str, Any]]
) -> None:
    """Write the cells of whose tasks none is still to end: a result is there a little before its process has ended."""
    for job in jobs:
        key = (job.cell.name, job.seed)
        if key in found or not all(step.task.name not in pending and step.is_done for step in job.steps):
            continue
        try:
            found[key] = write_cell(job, study)
        except InputError as error:  # of this cell alone: the others go on
            say(f"\n{job.cell.label}, seed {job.seed}: {error}")
        else:
            _tell_cell(job, found[key])


class _Work:
    """Progress in training steps, with the time left: from what the trainings print, or at their ends."""

    def __init__(self, jobs: Sequence[Job], tasks: Sequence[Task]) -> None:
        sizes = {step.task.name: step.num_steps for job in jobs for step in job.steps}
        self._sizes = {task.name: sizes[task.name] for task in tasks}
        self._done: Counter[str] = Counter()
        self._bar = Progress("tasks", sum(self._sizes.values()), unit="steps")
        self._ended = 0

    def __enter__(self) -> "_Work":
        self._bar.__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        if self._sizes:
            self._bar.__exit__(*error)

    def heard(self, name: str, line: str) -> None:
        """A line of a training; called in threads."""
        match = _STEP.match(line)
        if match:
            self._done[name] = self._sizes[name] * int(match[1]) // max(int(match[2]), 1)
            self._show()

    def end(self, ended: Ended) -> None:
        """A task has ended; one that failed leaves nothing to wait for either."""
        self._done[ended.name] = self._sizes[ended.name]
        self._ended += 1
        self._show(always=True)

    def _show(self, *, always: bool = False) -> None:
        new = sum(self._done.values()) - self._bar.done
        if always or sys.stderr.isatty() or new * _SHOWN_PARTS >= self._bar.total:
            self._bar.advance(new, note=f"{self._ended} of {len(self._sizes)} tasks ended")


def _tell_failure(ended: Ended, tasks: Sequence[Task]) -> None:
    log = next(task.log for task in tasks if task.name == ended.name)
    say(f"\nfailed: {ended.name}: {describe(ended)}")
    if ended.code != NOT_RUN:
        say("".join(f"    {line}\n" for line in ended.last_lines) + f"    log: {log}")


def _tell_cell(job: Job, content: dict[str, Any]) -> None:
    figures = [
        f"{TITLES[name]} {100 * value:.1f}"
        for name, value in content["metrics"].items()
        if name in TITLES and value is not None
    ]
    say(f"\n{job.cell.label}, seed {job.seed}: {', '.join(figures)}")


def _report(
    study: Study, jobs: Sequence[Job], found: dict[tuple[str, int], dict[str, Any]], failures: Sequence[Ended]
) -> None:
    """The table, where everything is, and what failed.

    Raises:
        SystemExit: cells are missing: the exit code of what failed first, 6 where it was killed.
    """
    missing = [f"{job.cell.name}, seed {job.seed}" for job in jobs if (job.cell.name, job.seed) not in found]
    rows = rows_of(study.table, found)
    path = write_table(study, rows, missing)
    say(f"\n{markdown_table({'rows': rows})}\n")
    _say_runs(jobs, found)
    say(f"results: {path}; cells: {study.cell_file(jobs[0].cell, 1).parent}; logs: {study.work_dir / 'logs'}")
    sources = {source for row in rows for source in row["sources"]}
    if len(sources) > 1:
        say(f"the rows were trained with {len(sources)} versions of this project ({', '.join(sorted(sources))})")
    if missing:
        say(f"{len(missing)} of {len(jobs)} cells are missing: {'; '.join(missing)}")
        say("the same command runs what is missing, and goes on with what was begun")
        first = next((ended.code for ended in failures if ended.code != NOT_RUN), 1)
        raise SystemExit(first if first > 0 else 6)


def _say_runs(jobs: Sequence[Job], found: Collection[tuple[str, int]]) -> None:
    """The run directory that each figure is of, for the programs that draw or compare networks."""
    say("run directories, whose networks were evaluated:")
    for job in jobs:
        trained = [step.folder for step in job.steps if step.stage != "labels"]
        if (job.cell.name, job.seed) in found and trained[-1].is_dir():
            say(f"  {job.cell.label}, seed {job.seed}: {trained[-1]}")


def print_plan(study: Study) -> None:
    """What would be run.

    Raises:
        ConfigError: configs are missing; what there is to say without them is said first.
    """
    size, missing = study.size, missing_configs(study)
    say(f"table {study.table.name}: {study.table.title}")
    say(f"{len(study.table.cells)} cells, seeds 1 to {study.num_seeds}, budget {study.budget}:")
    labelled = labelled_count(size.num_train, size.percent)
    say(f"  {size.num_train} scenes, {size.percent:g} % of them ({labelled}) labelled; evaluated on {size.num_val}")
    say(f"  teachers {size.teacher_steps} steps; students {size.student_steps} steps, burn-in {size.burn_in}")
    for cell in study.table.cells:
        parts = {"teacher": cell.teacher, "student": cell.student, "labels": cell.labels}
        named = [
            f"{stage} {' '.join([part.config, *part.options])}" for stage, part in parts.items() if part is not None
        ]
        say(f"  {cell.label}: {'; '.join(named)}")
    if missing:
        refuse_missing(study)
    jobs = Planner(study).jobs()
    done = [job for job in jobs if read_cell(job) is not None]
    tasks = tasks_of([job for job in jobs if job not in done])
    kinds = Counter(task.words[0] for task in tasks)
    say(
        f"{len(done)} of {len(jobs)} cells done; to run: "
        + (", ".join(f"{n} x {kind}" for kind, n in kinds.items()) or "nothing")
    )
    say("dry run: nothing was written")
