"""The same stage inline and on a Ray; every trap that was measured on Ray stays out of the way."""

import pickle

import pytest

from jobs.cluster.ray_runner import ACTOR_RESTARTS, WorkerSettings, pool_size, run_sharded
from pipeline.errors import ConfigError, EnvironmentProblemError, StoreDamagedError
from tests.jobs.toys import DAMAGE, KillsItsActor, MakeToyStage, ToyJob, ToyStage, attempts

TWO = WorkerSettings(count=2, cpus=1.0)


def by_image(answers):
    return {image_id: value for answer in answers for image_id, value in answer.items()}


def test_local_runs_in_this_process_and_tells_each_image(tmp_path):
    told = []
    make = MakeToyStage(ToyStage(tmp_path / "log"))
    answers = list(run_sharded(make, [ToyJob((1, 2)), ToyJob((3,))], address="local", workers=TWO, tell=told.append))
    assert answers == [{1: 1, 2: 4}, {3: 9}]
    assert told == [1, 2, None, 3, None]


def test_no_job_starts_nothing():
    assert list(run_sharded(lambda: pytest.fail("made"), [], address="nowhere:1", workers=TWO)) == []


def test_a_started_ray_does_the_same_survives_deaths_and_sets_the_killer_aside(tmp_path):
    """Both workers together take every CPU (Ray's reads starved on that), one image kills once, one always."""
    log = tmp_path / "log"
    make = MakeToyStage(ToyStage(log, kills={4: 1, 7: 99}))
    jobs = [ToyJob((i, i + 1)) for i in range(0, 12, 2)]
    answers = by_image(run_sharded(make, jobs, address="start", workers=TWO, retries=1))
    assert answers == {i: "its worker died (SIGKILL)" if i == 7 else i**2 for i in range(12)}
    # 6 comes before 7 in the same shard, so it is done again after each death.
    assert [attempts(log, i) for i in range(12)] == [1, 1, 1, 1, 2, 1, 3, 2, 1, 1, 1, 1]


@pytest.mark.slow
def test_an_error_of_a_stage_reaches_the_driver_with_its_exit_code(tmp_path):
    make = MakeToyStage(ToyStage(tmp_path / "log", raises={3: DAMAGE}))
    with pytest.raises(StoreDamagedError, match="a toy is broken") as caught:
        list(run_sharded(make, [ToyJob((i,)) for i in range(5)], address="start", workers=TWO))
    assert caught.value.exit_code == 5


@pytest.mark.slow
def test_a_running_cluster_of_two_nodes_does_the_same_and_is_left_running(tmp_path):
    import ray
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    try:
        cluster.add_node(num_cpus=1)
        make = MakeToyStage(ToyStage(tmp_path / "log", kills={3: 99}))
        answers = by_image(
            run_sharded(
                make, [ToyJob((i,)) for i in range(6)], address=cluster.address, workers=WorkerSettings(), retries=0
            )
        )
        assert answers == {i: "its worker died (SIGKILL)" if i == 3 else i**2 for i in range(6)}
        assert not ray.is_initialized()
        assert len(cluster.list_all_nodes()) == 2
    finally:
        cluster.shutdown()


@pytest.mark.slow
def test_an_actor_that_is_lost_is_replaced_a_bounded_number_of_times(tmp_path):
    """The actor itself is killed, as by a node that goes: Ray restarts it, and gives up after the set number."""
    make = MakeToyStage(KillsItsActor(tmp_path / "log", deaths=2))
    assert by_image(run_sharded(make, [ToyJob((5,))], address="start", workers=WorkerSettings(count=1))) == {5: 25}
    make = MakeToyStage(KillsItsActor(tmp_path / "other", deaths=99))
    with pytest.raises(EnvironmentProblemError, match="Ray gave up"):
        list(run_sharded(make, [ToyJob((5,))], address="start", workers=WorkerSettings(count=1)))
    assert attempts(tmp_path / "other", 5) == 1 + ACTOR_RESTARTS


@pytest.mark.parametrize("address", ["127.0.0.1:1", "ray://127.0.0.1:1", "auto"])
def test_a_cluster_that_is_not_there_is_said_at_once(address, monkeypatch):
    """Ray itself tries for more than five minutes."""
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:1")
    with pytest.raises(EnvironmentProblemError, match="Ray is not there") as caught:
        list(run_sharded(lambda: None, [ToyJob((1,))], address=address, workers=TWO))
    assert caught.value.exit_code == 6
    assert address in str(caught.value)


@pytest.mark.parametrize(
    ("resources", "workers", "num_jobs", "expected"),
    [
        ({"CPU": 8.0}, WorkerSettings(), 100, 8),
        ({"CPU": 8.0}, WorkerSettings(count=3), 100, 3),
        ({"CPU": 8.0}, WorkerSettings(count=30), 100, 8),
        ({"CPU": 8.0}, WorkerSettings(), 2, 2),
        ({"CPU": 8.0}, WorkerSettings(cpus=3.0), 100, 2),
        ({"CPU": 1.0}, WorkerSettings(cpus=0.1), 100, 10),
        ({"CPU": 64.0, "GPU": 4.0}, WorkerSettings(gpus=1.0), 100, 4),
        ({"CPU": 64.0, "GPU": 4.0}, WorkerSettings(gpus=0.5), 100, 8),
        ({"CPU": 6.0, "GPU": 4.0}, WorkerSettings(cpus=2.0, gpus=1.0), 100, 3),
    ],
)
def test_pool_takes_what_fits(resources, workers, num_jobs, expected):
    assert pool_size(resources, workers, num_jobs) == expected


@pytest.mark.parametrize("resources", [{"CPU": 8.0}, {"CPU": 0.5, "GPU": 2.0}, {}])
def test_no_room_for_a_worker_is_an_error_and_not_an_endless_wait(resources):
    with pytest.raises(EnvironmentProblemError, match="no room") as caught:
        pool_size(resources, WorkerSettings(gpus=1.0), 5)
    assert caught.value.exit_code == 6


@pytest.mark.parametrize("wrong", [{"count": 0}, {"cpus": 0.0}, {"gpus": -1.0}, {"seconds_per_image": 0.0}])
def test_worker_settings_that_cannot_be_scheduled_are_refused(wrong):
    with pytest.raises(ConfigError):
        WorkerSettings(**wrong)


def test_errors_survive_the_way_between_processes():
    copy = pickle.loads(pickle.dumps(DAMAGE))
    assert (type(copy), str(copy), copy.fix) == (StoreDamagedError, str(DAMAGE), DAMAGE.fix)
