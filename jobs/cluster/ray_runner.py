"""Where stages run: in this process, on a Ray started here, or on a cluster. The only importer of Ray for batch work.

Ray schedules; it does not commit and it does not judge images. A stage publishes its own shards, and an image that
kills its worker is dealt with by ``jobs/cluster/isolation.py`` inside the actor, so a retry of Ray's means only that
the actor itself was lost (a node, an out-of-memory kill), and those are bounded.
"""

import logging
import math
import os
import pickle
import socket
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from jobs.cluster.isolation import IsolatedStage
from pipeline.errors import ConfigError, EnvironmentProblemError, PipelineError

LOCAL, START = "local", "start"
ACTOR_RESTARTS = 3
"""For actors and their tasks; Ray's own default is for ever."""

MakeStage = Callable[[], Callable[..., Any]]


@dataclass(frozen=True)
class WorkerSettings:
    """The actor pool, where a Ray address is given."""

    count: int | None = None
    """Workers; None: as many as the cluster has room for."""
    cpus: float = 1.0
    """CPUs that each one takes, and threads that its libraries get."""
    gpus: float = 0.0
    """GPUs that each one takes, 0.5 for two on one."""
    seconds_per_image: float = 600.0
    """An image that takes longer is set aside."""

    def __post_init__(self) -> None:
        """Refuse what cannot be scheduled."""
        if (
            (self.count is not None and self.count < 1)
            or self.cpus <= 0
            or self.gpus < 0
            or self.seconds_per_image <= 0
        ):
            raise ConfigError("workers need count >= 1, cpus > 0, gpus >= 0 and seconds_per_image > 0", got=self)


def run_sharded(
    make_stage: MakeStage,
    jobs: Sequence[Any],
    *,
    address: str,
    workers: WorkerSettings,
    retries: int = 2,
    tell: Callable[[int | None], None] = lambda _: None,
) -> Iterator[Any]:
    """Give every job to a stage and yield the results as they come, in any order.

    Args:
        make_stage: Picklable; makes a stage, ``stage(job, tell) -> result``, once for each worker.
        jobs: Picklable, each with ``without`` and ``one_at_a_time``; see ``jobs/cluster/isolation.py``.
        address: ``local`` runs in this process, one job after the other; ``start`` starts a Ray of its own on this
            machine; anything else is the address of a running one (``auto``, ``host:6379``, ``ray://host:10001``).
        workers: Size of the actor pool; not for ``local``.
        retries: How often an image that killed its worker is tried again before it is set aside.
        tell: With ``local``, called with each image's id as its turn comes.

    Raises:
        EnvironmentProblemError: No such cluster, no room for a worker on it, or actors keep dying.
        PipelineError: Whatever a stage raised.
    """
    if not jobs:
        return
    if address == LOCAL:
        stage = make_stage()
        for job in jobs:
            yield stage(job, tell)
        return
    with connected(address, workers):
        yield from _run_pool(make_stage, jobs, workers=workers, retries=retries)


def pool_size(resources: Mapping[str, float], workers: WorkerSettings, num_jobs: int) -> int:
    """How many workers to start: as many as wanted, as fit, and as there are jobs.

    Args:
        resources: ``CPU`` and ``GPU`` of the cluster.
        workers: What each one takes.
        num_jobs: Shards to do.

    Raises:
        EnvironmentProblemError: Not even one fits: Ray would wait for ever.
    """
    cpus, gpus = resources.get("CPU", 0.0), resources.get("GPU", 0.0)
    room = int(cpus / workers.cpus + 1e-6)
    if workers.gpus:
        room = min(room, int(gpus / workers.gpus + 1e-6))
    if room < 1:
        raise EnvironmentProblemError(
            "the Ray cluster has no room for a worker",
            where="workers.cpus, workers.gpus",
            expected=f"{workers.cpus:g} CPU and {workers.gpus:g} GPU for each worker",
            got=f"{cpus:g} CPU and {gpus:g} GPU in all",
            fix="lower workers.cpus or workers.gpus, or add nodes",
        )
    return min(room, workers.count or room, num_jobs)


@contextmanager
def connected(address: str, workers: WorkerSettings) -> Iterator[None]:
    """Connect to Ray for the time of the block; a Ray that was started here ends with it.

    Raises:
        EnvironmentProblemError: Ray cannot be started, or nothing answers at the address.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    # Otherwise every actor pool begins with a line in red about restarts whose arguments were lost.
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
    import ray

    if ray.is_initialized():
        yield
        return
    arguments: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
    if address == START:
        # As many workers as were asked for, also on a machine with fewer cores.
        cpus = max(os.cpu_count() or 1, math.ceil(workers.cpus * (workers.count or 1)))
        arguments |= {"address": LOCAL, "num_cpus": cpus, "include_dashboard": False}
    else:
        _check_answers(address)
        arguments["address"] = address
    try:
        ray.init(**arguments)
    except Exception as error:  # ConnectionError, ValueError, RuntimeError: whatever the address led to
        raise _not_there(address, str(error)) from error
    try:
        yield
    finally:
        ray.shutdown()


@contextmanager
def room_for_a_worker(address: str, workers: WorkerSettings) -> Iterator[None]:
    """Connect as :func:`connected` for the time of the block, and find at once whether a worker fits.

    Nothing for ``local``. :func:`run_sharded` inside the block uses the same connection.

    Raises:
        EnvironmentProblemError: No such cluster, or no room for a worker on it.
    """
    if address == LOCAL:
        yield
        return
    with connected(address, workers):
        import ray

        pool_size(ray.cluster_resources(), workers, 1)  # type: ignore[no-untyped-call]
        yield


def _check_answers(address: str) -> None:
    """Fail at once where nobody listens; Ray itself would try for minutes."""
    place = os.environ.get("RAY_ADDRESS", address) if address == "auto" else address
    host, _, port = place.removeprefix("ray://").rpartition(":")
    if not (host and port.isdecimal()):
        return
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=10).close()
    except OSError as error:
        raise _not_there(address, f"{place}: {error}") from error


def _not_there(address: str, reason: str) -> EnvironmentProblemError:
    return EnvironmentProblemError(
        "Ray is not there",
        where=f"--ray-address {address}",
        got=" ".join(reason.split())[:300],
        fix="start one (ray start --head), correct the address, or use --ray-address local",
    )


class _Actor:
    """What Ray Data calls; the stage itself lives in a child process of the actor."""

    def __init__(self, make_stage: MakeStage, retries: int, workers: WorkerSettings) -> None:
        self._stage = IsolatedStage(
            make_stage,
            retries=retries,
            seconds_per_image=workers.seconds_per_image,
            threads=max(1, int(workers.cpus)),  # as many workers as fit share the machine
        )

    def __call__(self, row: dict[str, bytes]) -> dict[str, bytes]:
        # An exception would reach the driver wrapped in Ray's own and lose its exit code.
        try:
            answer: tuple[str, Any] = "done", self._stage(pickle.loads(row["job"]))
        except PipelineError as error:
            answer = "error", error
        except Exception as error:
            answer = "error", RuntimeError(f"{type(error).__name__}: {error}")
        return {"answer": pickle.dumps(answer)}


def _run_pool(make_stage: MakeStage, jobs: Sequence[Any], *, workers: WorkerSettings, retries: int) -> Iterator[Any]:
    import ray
    from ray.data import DataContext
    from ray.exceptions import RayError

    resources: dict[str, float] = ray.cluster_resources()  # type: ignore[no-untyped-call]
    size = pool_size(resources, workers, len(jobs))
    context = DataContext.get_current()
    context.enable_progress_bars = False
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    rows = [{"job": pickle.dumps(job)} for job in jobs]
    with warnings.catch_warnings():
        # The bounds on restarts have no other name yet; pyproject.toml holds Ray below the version without them.
        warnings.filterwarnings("ignore", message=".*ray_remote_args.*")
        dataset = ray.data.from_items(rows, override_num_blocks=len(rows)).map(
            _Actor,  # type: ignore[arg-type]  # Ray's hint forgets callable classes
            fn_constructor_args=(make_stage, retries, workers),
            concurrency=size,
            num_cpus=workers.cpus,
            num_gpus=workers.gpus or None,
            max_restarts=ACTOR_RESTARTS,
            max_task_retries=ACTOR_RESTARTS,
        )
    try:
        for row in dataset.iter_rows():
            kind, content = pickle.loads(row["answer"])
            if kind == "error":
                raise content
            yield content
    except RayError as error:
        raise EnvironmentProblemError(
            "Ray gave up",
            got=" ".join(str(error).split())[:300],
            fix="see the logs of Ray; shards that were published stay, the same command goes on from there",
        ) from error
