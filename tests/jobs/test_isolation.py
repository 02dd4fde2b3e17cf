"""A stage in a child process: deaths and stand-stills cost one image, and never more than the set tries."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from jobs.cluster.isolation import THREAD_VARIABLES, IsolatedStage
from pipeline.errors import EnvironmentProblemError, StoreDamagedError
from tests.jobs.toys import DAMAGE, CountsThreads, HastyJob, HastyStage, MakeToyStage, ToyJob, ToyStage, attempts

ROOT = Path(__file__).parents[2]


@pytest.fixture
def isolated(tmp_path):
    made = []

    def make(*, retries=1, seconds_per_image=60.0, dies=False, **behaviour):
        stage = ToyStage(tmp_path / "log", **behaviour)
        made.append(IsolatedStage(MakeToyStage(stage, dies), retries=retries, seconds_per_image=seconds_per_image))
        return made[-1]

    yield make
    for stage in made:
        stage.close()


def test_a_healthy_stage_answers_from_one_other_process(isolated, tmp_path):
    stage, told = isolated(), []
    assert stage(ToyJob((1, 2)), told.append) == {1: 1, 2: 4}
    assert stage(ToyJob((3,))) == {3: 9}
    assert told == [1, 2, None]
    pids = {line.split()[1] for line in (tmp_path / "log").read_text().splitlines()}
    assert len(pids) == 1
    assert pids != {str(os.getpid())}


def test_an_image_that_kills_once_is_tried_again_and_done(isolated, tmp_path):
    assert isolated(kills={2: 1})(ToyJob((1, 2, 3))) == {1: 1, 2: 4, 3: 9}
    assert attempts(tmp_path / "log", 2) == 2


def test_an_image_that_always_kills_is_set_aside_and_the_others_are_done(isolated, tmp_path):
    answer = isolated(kills={2: 99}, retries=2)(ToyJob((1, 2, 3)))
    assert answer == {1: 1, 2: "its worker died (SIGKILL)", 3: 9}
    assert attempts(tmp_path / "log", 2) == 3  # one try and two more, not for ever


def test_two_bad_images_in_one_shard_are_told_apart(isolated):
    answer = isolated(kills={1: 99, 3: 99}, retries=0)(ToyJob((1, 2, 3)))
    assert answer == {1: "its worker died (SIGKILL)", 2: 4, 3: "its worker died (SIGKILL)"}


@pytest.mark.parametrize("deadly", [1, 2, 3])
def test_an_image_that_kills_while_it_is_read_ahead_is_the_one_that_is_set_aside(deadly):
    stage = IsolatedStage(MakeToyStage(HastyStage(deadly)), retries=0, seconds_per_image=60)
    try:
        answer = stage(HastyJob((1, 2, 3)))
    finally:
        stage.close()
    assert answer == {i: "its worker died (SIGKILL)" if i == deadly else i**2 for i in (1, 2, 3)}


def test_the_child_has_the_threads_that_it_is_given(monkeypatch):
    for name in THREAD_VARIABLES:
        monkeypatch.setenv(name, "7")
    stage = IsolatedStage(MakeToyStage(CountsThreads()), retries=0, seconds_per_image=60, threads=1)
    try:
        assert stage(ToyJob((5,))) == {5: (1, 1)}
    finally:
        stage.close()


def test_an_image_that_never_ends_is_set_aside(isolated):
    started = time.monotonic()
    answer = isolated(sleeps={2: 600.0}, retries=0, seconds_per_image=0.5)(ToyJob((1, 2, 3)))
    assert answer == {1: 1, 2: "took longer than 0.5 s", 3: 9}
    assert time.monotonic() - started < 60


def test_a_worker_that_dies_while_loading_is_the_machines_fault(isolated):
    with pytest.raises(EnvironmentProblemError, match="outside of any image") as caught:
        isolated(dies=True)(ToyJob((1,)))
    assert "exit code 7" in str(caught.value)


def test_errors_keep_their_kind(isolated):
    with pytest.raises(StoreDamagedError) as caught:
        isolated(raises={1: DAMAGE})(ToyJob((1,)))
    assert (caught.value.exit_code, str(caught.value)) == (5, str(DAMAGE))
    with pytest.raises(RuntimeError, match="ZeroDivisionError: over"):
        isolated(raises={1: ZeroDivisionError("over")})(ToyJob((1,)))


def test_a_child_whose_machine_failed_is_ended_and_the_next_job_gets_another(isolated, tmp_path):
    stage = isolated(raises={2: EnvironmentProblemError("the device failed")})
    with pytest.raises(EnvironmentProblemError, match="the device failed"):
        stage(ToyJob((1, 2)))
    child = int((tmp_path / "log").read_text().split()[1])
    wait_for(lambda: not is_alive(child), 20)
    assert stage(ToyJob((3,))) == {3: 9}


def test_a_child_does_not_outlive_its_killed_parent(tmp_path):
    code = (
        "import sys; from pathlib import Path; from jobs.cluster.isolation import THREAD_VARIABLES, IsolatedStage\n"
        "from tests.jobs.toys import *\n"
        "if __name__ == '__main__':\n"
        "    stage = ToyStage(Path(sys.argv[1]), sleeps={i: 0.2 for i in range(500)})\n"
        "    IsolatedStage(MakeToyStage(stage), retries=0, seconds_per_image=60)(ToyJob(tuple(range(500))))\n"
    )
    script = tmp_path / "parent.py"
    script.write_text(code)
    parent = subprocess.Popen(
        [sys.executable, script, tmp_path / "log"], env={**os.environ, "PYTHONPATH": str(ROOT)}, cwd=ROOT
    )
    try:
        wait_for(lambda: (tmp_path / "log").exists(), 60)
        child = int((tmp_path / "log").read_text().split()[1])
        os.kill(child, 0)
    finally:
        parent.kill()
        parent.wait()
    wait_for(lambda: not is_alive(child), 20)


def is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().split()[2] != "Z"
    except FileNotFoundError:
        return False


def wait_for(condition, seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.05)
