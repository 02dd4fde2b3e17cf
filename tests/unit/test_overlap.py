"""Writing beside computing: what is left is the same store, whatever fails and whenever the process is killed."""

import itertools
import signal
import threading
from functools import partial

import pytest
from killing import STEPS, die_at, fork_server, run
from toy_stores import commit, contents, fill, open_writer

from jobs.precompute.overlap import run_overlapped
from pipeline.errors import EnvironmentProblemError
from pipeline.stores.verify import verify

KINDS = ["proposals", "similarity"]
MOMENTS = {"write": 6, "fsync": 17, "replace": 5, "unlink": 5}
"""Calls in the middle of the work."""


class Shards:
    """Numbers to compute; remembers what happened in which order."""

    def __init__(self, *, publish=lambda number: None):
        self.log, self.publish = [], publish

    def compute(self, number):
        self.log.append(("computed", number))

        def write():
            self.publish(number)
            self.log.append(("published", number))
            return number

        return write


def test_a_shard_is_written_while_the_next_is_computed_and_at_most_one_waits():
    """Publishing 0 ends only after 1 was computed; 2 is computed only after 0 was handed out."""
    computed = [threading.Event() for _ in range(3)]
    shards = Shards(publish=lambda number: computed[min(number + 1, 2)].wait(30))

    def compute(number):
        publish = shards.compute(number)
        computed[number].set()
        return publish

    numbers = run_overlapped(compute, range(3))
    assert next(numbers) == 0
    assert ("computed", 2) not in shards.log
    assert list(numbers) == [1, 2]
    assert [number for what, number in shards.log if what == "published"] == [0, 1, 2]
    assert shards.log.index(("computed", 1)) < shards.log.index(("published", 0))


def test_what_publishing_raises_comes_when_the_next_is_computed_or_at_the_end():
    def full(number):
        if number == failing:
            raise EnvironmentProblemError("the disk is full")

    for failing, computed in ((0, [0, 1]), (2, [0, 1, 2])):
        shards, done = Shards(publish=full), []
        with pytest.raises(EnvironmentProblemError, match="full"):
            done.extend(run_overlapped(shards.compute, range(3)))
        assert [number for what, number in shards.log if what == "computed"] == computed
        assert ("published", failing) not in shards.log


def test_a_failed_computation_leaves_the_shard_before_it_published():
    started = threading.Event()
    shards = Shards(publish=lambda number: started.wait(30))

    def compute(number):
        if number == 1:
            started.set()
            raise EnvironmentProblemError("the GPU fell off")
        return shards.compute(number)

    with pytest.raises(EnvironmentProblemError, match="fell off"):
        list(run_overlapped(compute, range(3)))
    assert shards.log == [("computed", 0), ("published", 0)]


def test_closing_lets_the_writing_end():
    closing = threading.Event()
    shards = Shards(publish=lambda number: number == 0 or closing.wait(30))
    reports = run_overlapped(shards.compute, range(5))
    assert next(reports) == 0
    closing.set()
    reports.close()
    assert shards.log[-1] == ("published", 1)
    assert ("computed", 2) not in shards.log
    assert not any(thread.name.startswith("publish") for thread in threading.enumerate())


@pytest.fixture(scope="module")
def spawner():
    return fork_server()


@pytest.fixture(scope="module")
def one_by_one(tmp_path_factory):
    found = {}
    for kind in KINDS:
        root = tmp_path_factory.mktemp(kind)
        fill(root, kind)
        found[kind] = contents(root)
    return found


def fill_overlapped(root, kind):
    """As ``fill``, each shard written in a thread."""
    with open_writer(root, kind) as writer:
        work = writer.missing()
        for _ in run_overlapped(lambda task: partial(commit, task), work.tasks):
            pass
        return work.summary()


@pytest.mark.parametrize("kind", KINDS)
def test_the_store_is_the_same_to_the_byte(tmp_path, one_by_one, kind):
    assert fill_overlapped(tmp_path, kind) == "skipped 0, redo 0, new 3"
    assert contents(tmp_path) == one_by_one[kind]


def kill_and_run_again(root, spawner, whole, kind, step, when):
    """Exit code of a job that is killed before the ``when``-th call of a step."""
    code = run(spawner, die_at, step, when, fill_overlapped, root, kind)
    assert code in (0, -signal.SIGKILL)
    if code:
        if (root / "manifest.json").exists():
            assert verify(root) == []
        fill_overlapped(root, kind)
    assert contents(root) == whole, f"killed before {step} number {when}"
    return code


@pytest.mark.parametrize("step", STEPS)
def test_killed_in_the_middle_it_is_made_good_by_running_again(tmp_path, spawner, one_by_one, step):
    arguments = tmp_path, spawner, one_by_one["proposals"], "proposals", step, MOMENTS[step]
    assert kill_and_run_again(*arguments) == -signal.SIGKILL


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("step", STEPS)
def test_killed_anywhere_it_is_made_good_by_running_again(tmp_path, spawner, one_by_one, kind, step):
    for when in itertools.count():
        if kill_and_run_again(tmp_path / str(when), spawner, one_by_one[kind], kind, step, when) == 0:
            break
    assert when > 8
