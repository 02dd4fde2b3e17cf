"""Commands of this program as child processes, several at once, one thread each.

A small network's training step is mostly the dispatch of tiny operations, of which threads do little together: cores
are better used by trainings beside each other. One thread each also makes results independent of the number of cores.
"""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from jobs.cluster.isolation import THREAD_VARIABLES
from jobs.progress import say
from pipeline.errors import EnvironmentProblemError

GRACE_SECONDS = 20.0
"""For a child to end by itself once it is told to."""
PROGRAM = (sys.executable, "-u", "-m", "jobs.cli")


@dataclass(frozen=True)
class Command:
    """One call of ``s4m-pipeline``."""

    name: str
    """Put before every line that it prints."""
    words: tuple[str, ...]
    after: tuple[str, ...] = ()
    """Names of commands that must have finished."""


def run_side_by_side(
    commands: Sequence[Command],
    *,
    at_once: int,
    program: Sequence[str] = PROGRAM,
    tell: Callable[[str], None] = say,
) -> None:
    """Run all of them, in order as far as they wait for each other.

    Args:
        commands: Names are distinct; what a command waits for stands before it.
        at_once: Child processes at a time.
        program: What the words are given to.
        tell: Gets every line that they print.

    Raises:
        ValueError: A command waits for one that does not stand before it.
        SystemExit: A command failed: its exit code; the others are stopped first.
        EnvironmentProblemError: A command was killed.
    """
    for number, command in enumerate(commands):
        missing = set(command.after) - {earlier.name for earlier in commands[:number]}
        if missing:
            raise ValueError(f"{command.name} waits for {sorted(missing)}, not before it")
    waiting, finished = list(commands), set[str]()
    running: dict[str, _Child] = {}
    try:
        while waiting or running:
            ready = [command for command in waiting if finished.issuperset(command.after)]
            for command in ready[: max(at_once, 1) - len(running)]:
                waiting.remove(command)
                running[command.name] = _Child(command, program, tell)
            time.sleep(0.05)
            for name, child in list(running.items()):
                if child.has_ended():
                    del running[name]
                    child.refuse_failure()
                    finished.add(name)
    finally:
        for child in running.values():
            child.tell_to_stop()
        for child in running.values():
            child.wait()


def piped(words: Sequence[str]) -> subprocess.Popen[str]:
    """Start a command with one thread and its output as a pipe to here: if this process is killed, that ends it too."""
    return subprocess.Popen(
        words,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        env=os.environ | dict.fromkeys(THREAD_VARIABLES, "1"),
    )


def wait_or_kill(process: subprocess.Popen[str]) -> None:
    """Give a command that was told to stop its time, and no more."""
    try:
        process.wait(GRACE_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


class _Child:
    """A running command and the thread that hands its lines on."""

    def __init__(self, command: Command, program: Sequence[str], tell: Callable[[str], None]) -> None:
        self._name = command.name
        self._process = piped([*program, *command.words])
        self._reader = threading.Thread(target=self._hand_on, args=(tell,), daemon=True)
        self._reader.start()

    def _hand_on(self, tell: Callable[[str], None]) -> None:
        for line in self._process.stdout or ():
            tell(f"{self._name}: {line.rstrip()}")

    def has_ended(self) -> bool:
        return self._process.poll() is not None

    def refuse_failure(self) -> None:
        self._reader.join()
        code = self._process.returncode
        if code < 0:
            raise EnvironmentProblemError(
                "a training process was killed",
                where=self._name,
                got=signal.Signals(-code).name,
                fix="see the memory of the machine; the same command goes on from the last checkpoint",
            )
        if code:
            raise SystemExit(code)

    def tell_to_stop(self) -> None:
        self._process.terminate()

    def wait(self) -> None:
        wait_or_kill(self._process)
        self._reader.join()
