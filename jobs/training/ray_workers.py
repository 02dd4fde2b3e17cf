"""Training on several workers: Ray Train starts the processes and their group, MMEngine runs inside."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from jobs.cluster.ray_runner import LOCAL, START, WorkerSettings, connected
from jobs.progress import say
from jobs.training.runs import TrainingRun, train
from pipeline.errors import EnvironmentProblemError, PipelineError


def train_on_ray(run: TrainingRun, *, workers: int, ray_address: str) -> None:
    """Train with ``workers`` processes in data parallel: a GPU each (nccl), or on CPUs (gloo).

    The config's ``device`` decides: cuda wants a GPU for every worker, auto takes them where there are enough.

    Args:
        run: What to train; its directory must be visible to every worker.
        workers: Number of processes.
        ray_address: ``local`` and ``start`` start Ray on this machine; else a cluster's address.

    Raises:
        EnvironmentProblemError: the cluster cannot be reached or has too few CPUs or GPUs.
        PipelineError: what a worker raised.
    """
    from ray.train import RunConfig, ScalingConfig
    from ray.train.torch import TorchConfig, TorchTrainer

    from pipeline.models.training_hooks import PROGRESS_FILE

    start = START if ray_address == LOCAL else ray_address
    with connected(start, WorkerSettings(count=workers)):
        use_gpu = gpu_for_each(_device_of(run), workers)
        values = {key: str(value) for key, value in vars(run).items() if value is not None}
        trainer = TorchTrainer(
            _train_worker,
            train_loop_config=values | {"device": "cuda" if use_gpu else "cpu"},
            scaling_config=ScalingConfig(num_workers=workers, use_gpu=use_gpu),
            torch_config=TorchConfig(backend="nccl" if use_gpu else "gloo"),
            run_config=RunConfig(storage_path=str(run.work_dir.resolve() / "ray"), name="train"),
        )
        try:
            with followed(run.work_dir / PROGRESS_FILE):
                trainer.fit()
        except Exception as error:
            raise _cause(error) from error


@contextmanager
def followed(file: Path, *, seconds: float = 1.0) -> Iterator[None]:
    """Print the lines that others append to a file, for the time of the block.

    Ray can print what its workers print, but then also what its own watchers have to say, once a second.

    Args:
        file: Need not be there yet.
        seconds: Between two looks.
    """
    position, stop = file.stat().st_size if file.exists() else 0, threading.Event()

    def show() -> None:
        nonlocal position
        if file.exists():
            with file.open("rb") as lines:
                lines.seek(position)
                whole = [line for line in lines if line.endswith(b"\n")]
            position += sum(map(len, whole))
            say(b"".join(whole).decode().rstrip("\n")) if whole else None

    def watch() -> None:
        while not stop.wait(seconds):
            show()

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        yield
    finally:
        stop.set()
        watcher.join()
        show()


def gpu_for_each(device: str, workers: int) -> bool:
    """Whether every worker gets a GPU of the connected cluster.

    Raises:
        EnvironmentProblemError: too few CPUs, or too few GPUs for ``device`` cuda: Ray would wait for ever.
    """
    import ray

    resources = ray.cluster_resources()  # type: ignore[no-untyped-call]
    found = {name: int(resources.get(name, 0)) for name in ("CPU", "GPU")}
    use_gpu = device != "cpu" and found["GPU"] >= workers
    if found["CPU"] < workers or (device == "cuda" and not use_gpu):
        raise EnvironmentProblemError(
            "the Ray cluster has no room for the workers",
            where="--workers",
            expected=f"{workers} CPUs" + (f" and {workers} GPUs" if device == "cuda" else ""),
            got=f"{found['CPU']} CPUs and {found['GPU']} GPUs",
            fix="lower --workers, or add nodes",
        )
    return use_gpu


def _device_of(run: TrainingRun) -> str:
    from mmengine.config import Config

    return str(Config.fromfile(run.config_path).get("device", "auto"))


def _train_worker(values: dict[str, Any]) -> None:
    resume = values.get("resume_from")
    run = TrainingRun(Path(values["config_path"]), Path(values["work_dir"]), Path(resume) if resume else None)
    if values["device"] == "cuda":
        import torch
        from ray.train.torch import get_device

        torch.cuda.set_device(get_device())
    train(run, launcher="pytorch", device=values["device"])


def _cause(error: BaseException) -> BaseException:
    """Our own error inside Ray's wrappers, or the wrapper."""
    waiting, seen = [error], set()
    while waiting:
        inner = waiting.pop(0)
        if isinstance(inner, PipelineError):
            return inner
        if id(inner) in seen:
            continue
        seen.add(id(inner))
        parts = [getattr(inner, "cause", None), getattr(inner, "_base_exc", None), inner.__cause__]
        parts += list(getattr(inner, "worker_failures", {}).values())
        waiting += [part for part in parts if isinstance(part, BaseException)]
    return error
