"""Training on several workers: Ray Train starts the processes and their group, MMEngine runs inside."""

from dataclasses import asdict
from pathlib import Path
from typing import Any

from jobs.training import TrainingRun, train
from pipeline.errors import EnvironmentProblemError, PipelineError


def train_on_ray(run: TrainingRun, *, workers: int, ray_address: str, use_gpu: bool = False) -> None:
    """Train with ``workers`` processes in data parallel (gloo on CPU, nccl where ``use_gpu``).

    Args:
        run: What to train; its directory must be visible to every worker.
        workers: Number of processes.
        ray_address: ``local`` starts Ray on this machine; else a cluster's address.
        use_gpu: One GPU per worker.

    Raises:
        EnvironmentProblemError: the cluster cannot be reached or has too few CPUs or GPUs.
        PipelineError: what a worker raised.
    """
    import ray
    from ray.train import RunConfig, ScalingConfig
    from ray.train.torch import TorchConfig, TorchTrainer

    try:
        ray.init(
            address=None if ray_address == "local" else ray_address,
            ignore_reinit_error=True,
            log_to_driver=True,
            include_dashboard=False,
        )
    except (ConnectionError, ValueError, RuntimeError) as error:
        raise EnvironmentProblemError(
            "no Ray cluster", where=ray_address, got=error, fix="start one, or --ray-address local"
        ) from error
    values: dict[str, Any] = {k: str(v) if isinstance(v, Path) else v for k, v in asdict(run).items()}
    trainer = TorchTrainer(
        _train_worker,
        train_loop_config=values,
        scaling_config=ScalingConfig(num_workers=workers, use_gpu=use_gpu, resources_per_worker={"CPU": 1}),
        torch_config=TorchConfig(backend="nccl" if use_gpu else "gloo"),
        run_config=RunConfig(storage_path=str(run.work_dir.resolve() / "ray"), name="train"),
    )
    try:
        trainer.fit()
    except Exception as error:
        raise _cause(error) from error


def _train_worker(values: dict[str, Any]) -> None:
    resume = values["resume_from"]
    run = TrainingRun(Path(values["config_path"]), Path(values["work_dir"]), Path(resume) if resume else None)
    train(run, launcher="pytorch")


def _cause(error: BaseException) -> BaseException:
    """Our own error inside Ray's wrappers, or the wrapper."""
    inner: BaseException | None = error
    while inner is not None:
        if isinstance(inner, PipelineError):
            return inner
        inner = getattr(inner, "cause", None) or inner.__cause__
    return error
