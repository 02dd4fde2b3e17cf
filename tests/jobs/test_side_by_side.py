"""Commands run at once where they may, wait where they must, and stop together."""

import os
import sys

import pytest

from jobs.cluster.side_by_side import Command, run_side_by_side
from pipeline.errors import EnvironmentProblemError

PYTHON = (sys.executable, "-u", "-c")
MEET = """
import pathlib, sys, time
pathlib.Path({mine!r}).write_text("here")
until = time.monotonic() + 30
while not pathlib.Path({theirs!r}).exists():
    if time.monotonic() > until:
        sys.exit(9)
    time.sleep(0.02)
"""


def run(*commands, at_once=2):
    lines = []
    run_side_by_side(commands, at_once=at_once, program=PYTHON, tell=lines.append)
    return lines


def meet(folder, mine, theirs):
    return MEET.format(mine=str(folder / mine), theirs=str(folder / theirs))


def test_two_run_at_once(tmp_path):
    run(Command("a", (meet(tmp_path, "a", "b"),)), Command("b", (meet(tmp_path, "b", "a"),)))


def test_no_more_than_asked_for_run_at_once(tmp_path):
    alone = "import os, sys; os.mkdir({0!r}); import time; time.sleep(0.3); os.rmdir({0!r})".format(str(tmp_path / "x"))
    run(*[Command(str(i), (alone,)) for i in range(3)], at_once=1)


def test_one_waits_for_what_it_needs_while_another_overtakes_it(tmp_path):
    done = tmp_path / "done"
    first = f"import time, pathlib; time.sleep(0.5); pathlib.Path({str(done)!r}).write_text('')"
    second = f"import pathlib, sys; sys.exit(not pathlib.Path({str(done)!r}).exists())"
    third = f"import pathlib, sys; sys.exit(pathlib.Path({str(done)!r}).exists())"
    run(Command("first", (first,)), Command("second", (second,), ("first",)), Command("third", (third,)))


def test_every_line_of_both_streams_names_its_command():
    code = "import sys; print('one'); print('two', file=sys.stderr); print('three', end='')"
    assert sorted(run(Command("row", (code,)))) == ["row: one", "row: three", "row: two"]


def test_each_has_one_thread():
    assert run(Command("row", ("import torch; print(torch.get_num_threads())",))) == ["row: 1"]


def test_a_failure_stops_the_others_and_keeps_its_exit_code(tmp_path):
    pid = tmp_path / "pid"
    long = f"import os, pathlib, time; pathlib.Path({str(pid)!r}).write_text(str(os.getpid())); time.sleep(600)"
    fails = meet(tmp_path, "fails", "pid") + "print('error: no such file'); sys.exit(3)"
    with pytest.raises(SystemExit) as stop:
        run(Command("long", (long,)), Command("fails", (fails,)))
    assert stop.value.code == 3
    with pytest.raises(ProcessLookupError):
        os.kill(int(pid.read_text()), 0)


def test_a_killed_command_is_an_error_that_names_it():
    with pytest.raises(EnvironmentProblemError, match=r"student(.|\n)*SIGKILL"):
        run(Command("student", ("import os, signal; os.kill(os.getpid(), signal.SIGKILL)",)))


def test_a_command_cannot_wait_for_one_behind_it():
    with pytest.raises(ValueError, match="student waits for"):
        run(Command("student", ("",), ("teacher",)), Command("teacher", ("",)))
