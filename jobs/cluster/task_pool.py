"""Calls of this program that wait for each other, side by side here or on Ray; one that fails costs only what needs it.

Unlike ``side_by_side.py``, which stops everything at the first failure, this goes on with whatever does not depend on
what failed. What a call prints goes into a log of its own; how long it took is kept beside the log, over all its
attempts.
"""

import json
import signal
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from jobs.cluster.ray_runner import WorkerSettings, run_sharded
from jobs.cluster.side_by_side import PROGRAM, piped, wait_or_kill
from jobs.training.run_directory import is_interrupted
from pipeline.data.coco import write_json

NOT_RUN = 125
"""Code of a task that waits for one that failed."""
_DAYS = 7 * 24 * 3600.0
_NUM_TOLD = 12


@dataclass(frozen=True)
class Task:
    """One call of ``s4m-pipeline``."""

    name: str
    words: tuple[str, ...]
    log: Path
    """What it prints; ``<log>.json`` beside it holds the seconds of all attempts."""
    after: tuple[str, ...] = ()
    """Names of tasks that must have succeeded."""
    run_dir: Path | None = None
    """Of a training: ``--resume`` is added where it holds a begun one."""


@dataclass(frozen=True)
class Ended:
    """How a task ended."""

    name: str
    code: int
    """0 done; an exit code; minus a signal's number; :data:`NOT_RUN`."""
    last_lines: tuple[str, ...] = ()


Tell = Callable[[str, str], None]
"""Gets the task's name and a line that it printed."""


def run_tasks(
    tasks: Sequence[Task], *, at_once: int, program: Sequence[str] = PROGRAM, tell: Tell = lambda *_: None
) -> Iterator[Ended]:
    """Run all that can be run on this machine; yields each task's end as it comes.

    Closing the iterator, or an exception in it (an interruption), stops what runs.

    Args:
        tasks: Names are distinct; what a task waits for is among them.
        at_once: Child processes at a time.
        program: What the words are given to.
        tell: Called in threads.

    Raises:
        ValueError: a task waits for one that is not there.
    """
    _refuse_unknown(tasks)
    waiting, codes = list(tasks), dict[str, int]()
    running: dict[str, _Child] = {}
    try:
        while waiting or running:
            for task in _hopeless(waiting, codes):
                waiting.remove(task)
                codes[task.name] = NOT_RUN
                yield Ended(task.name, NOT_RUN)
            for task in _ready(waiting, codes)[: max(at_once, 1) - len(running)]:
                waiting.remove(task)
                running[task.name] = _Child(task, program, tell)
            time.sleep(0.05)
            for name, child in list(running.items()):
                if child.has_ended():
                    del running[name]
                    ended = child.finish()
                    codes[name] = ended.code
                    yield ended
    finally:
        for child in running.values():
            child.tell_to_stop()
        for child in running.values():
            child.finish()


def run_tasks_on_ray(
    tasks: Sequence[Task], *, address: str, workers: WorkerSettings, program: Sequence[str] | None = None
) -> Iterator[Ended]:
    """As :func:`run_tasks`, each task by a worker of a Ray cluster that sees the same disk; in waves.

    Args:
        tasks: As there; all paths are absolute.
        address: ``start``, ``auto`` or that of a cluster.
        workers: How many, and what each one takes.
        program: None: this program, as the worker has it.

    Raises:
        EnvironmentProblemError: no cluster, or no room on it.
        ValueError: a task waits for one that is not there.
    """
    _refuse_unknown(tasks)
    waiting, codes = list(tasks), dict[str, int]()
    while waiting:
        for task in _hopeless(waiting, codes):
            waiting.remove(task)
            codes[task.name] = NOT_RUN
            yield Ended(task.name, NOT_RUN)
        ready = _ready(waiting, codes)
        waiting = [task for task in waiting if task not in ready]
        jobs = [TaskJob(task, tuple(program) if program else None) for task in ready]
        # A task is "an image" to the runner, and may take days.
        patient = replace(workers, seconds_per_image=_DAYS)
        for ended in run_sharded(TaskStage, jobs, address=address, workers=patient, retries=0):
            assert isinstance(ended, Ended)
            codes[ended.name] = ended.code
            yield ended


@dataclass(frozen=True)
class TaskJob:
    """A task for a worker of Ray; see ``jobs/cluster/isolation.py`` for the methods."""

    task: Task
    program: tuple[str, ...] | None = None
    reason: str | None = None

    def one_at_a_time(self) -> None:
        """It is already."""

    def without(self, image_id: int, reason: str) -> "TaskJob":
        """The task killed its worker: it counts as failed."""
        return replace(self, reason=reason)


class TaskStage:
    """Runs a task in a child process of the worker."""

    def __call__(self, job: TaskJob, tell: Callable[[int | None], None] = lambda _: None) -> Ended:
        """Run it to its end."""
        if job.reason is not None:
            return Ended(job.task.name, -signal.SIGKILL, (job.reason,))
        tell(0)
        alone = replace(job.task, after=())
        return next(run_tasks([alone], at_once=1, program=job.program or PROGRAM))


def seconds_of(log: Path) -> float | None:
    """Wall seconds of a task over its attempts, less those that were cut off together with this program."""
    path = _times(log)
    return float(json.loads(path.read_bytes())["seconds"]) if path.exists() else None


def describe(ended: Ended) -> str:
    """A code in words."""
    if ended.code < 0:
        return f"killed by {signal.Signals(-ended.code).name}"
    return "not run: it needs one that failed" if ended.code == NOT_RUN else f"exit code {ended.code}"


def _refuse_unknown(tasks: Sequence[Task]) -> None:
    unknown = {name for task in tasks for name in task.after} - {task.name for task in tasks}
    if unknown:
        raise ValueError(f"tasks wait for {sorted(unknown)}, which are not there")


def _ready(waiting: Sequence[Task], codes: dict[str, int]) -> list[Task]:
    return [task for task in waiting if all(codes.get(name) == 0 for name in task.after)]


def _hopeless(waiting: Sequence[Task], codes: dict[str, int]) -> list[Task]:
    return [task for task in waiting if any(codes.get(name, 0) != 0 for name in task.after)]


def _times(log: Path) -> Path:
    return log.with_name(f"{log.name}.json")


class _Child:
    """A running task and the thread that hands its lines on."""

    def __init__(self, task: Task, program: Sequence[str], tell: Tell) -> None:
        self._task, self._start = task, time.monotonic()
        self._last: deque[str] = deque(maxlen=_NUM_TOLD)
        task.log.parent.mkdir(parents=True, exist_ok=True)
        resume = ("--resume",) if task.run_dir is not None and is_interrupted(task.run_dir) else ()
        self._process = piped([*program, *task.words, *resume])
        self._reader = threading.Thread(target=self._hand_on, args=(tell,), daemon=True)
        self._reader.start()

    def _hand_on(self, tell: Tell) -> None:
        with self._task.log.open("a") as log:
            for line in self._process.stdout or ():
                log.write(line)
                log.flush()
                self._last.append(line.rstrip())
                tell(self._task.name, line.rstrip())

    def has_ended(self) -> bool:
        return self._process.poll() is not None

    def tell_to_stop(self) -> None:
        self._process.terminate()

    def finish(self) -> Ended:
        """Wait for its end, and note its seconds."""
        wait_or_kill(self._process)
        self._reader.join()
        seconds = (seconds_of(self._task.log) or 0.0) + time.monotonic() - self._start
        write_json({"seconds": round(seconds, 3)}, _times(self._task.log))
        return Ended(self._task.name, self._process.returncode, tuple(self._last))
