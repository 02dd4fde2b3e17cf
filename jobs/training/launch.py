"""Start a training run: in this process, or in several that Ray Train starts."""

import os
from pathlib import Path
from typing import Any, Literal

from jobs.cluster.ray_runner import LOCAL, START
from jobs.progress import say
from jobs.training.notes import other_labels, rate_that_never_falls, teacher_that_never_moves
from jobs.training.ray_workers import train_on_ray
from jobs.training.run_directory import held, read_done, refuse_foreign_files, run_dir
from jobs.training.runs import check, finished_line, has_teacher, prepare, read_training_config, train
from pipeline.errors import ConfigError


def launch(
    config_path: Path,
    *,
    stage: Literal["teacher", "student"],
    cfg_options: list[str],
    work_dir: Path | None = None,
    resume: bool = False,
    overwrite: bool = False,
    dry_run: bool = False,
    workers: int = 1,
    ray_address: str = "local",
) -> dict[str, Any]:
    """Train here or in Ray Train workers, or say that it is done.

    Args:
        config_path: A file of configs/teacher or configs/student, or a copy.
        stage: Which of the two the config must describe.
        cfg_options: key=value overrides.
        work_dir: The run directory; work_dirs/<folder>_<name> by default.
        resume: Go on from the last checkpoint.
        overwrite: Delete the run directory first.
        dry_run: Only check everything that can be checked, and print what would be done.
        workers: Training processes; more than one are started by Ray Train, and a single one on a cluster.
        ray_address: Cluster for those; ``local`` and one worker: this process.

    Returns:
        The last validation's figures (empty for a dry run).

    Raises:
        ConfigError: a wrong config, or one of the other stage.
        InputError: another process trains in the run directory.
        PipelineError: see :func:`jobs.training.runs.prepare`, :func:`jobs.training.runs.train` and
            :func:`jobs.training.ray_workers.train_on_ray`.
    """
    config = read_training_config(config_path, cfg_options)
    refuse_other_stage(config, stage, config_path)
    refuse_many_workers(workers, ray_address)
    here = ray_address in (LOCAL, START)
    if dry_run:
        refuse_foreign_files(run_dir(config_path, work_dir))
        check(config, where=config_path, here=here)
        _tell(config)
        say(f"would train {config.max_iters} steps of {config.batch_size} images per worker, {workers} worker(s)")
        return {}
    folder = run_dir(config_path, work_dir)
    with held(folder):
        run = prepare(
            config_path,
            cfg_options=cfg_options,
            work_dir=work_dir,
            resume=resume,
            overwrite=overwrite,
            workers=workers,
            here=here,
        )
        if run is None:
            figures: dict[str, Any] = read_done(folder)["validation"]
            say(f"already finished: {folder} ({figures})")
            return figures
        _tell(config)
        if workers == 1 and ray_address == LOCAL:
            figures = train(run)
        else:
            train_on_ray(run, workers=workers, ray_address=ray_address)
            figures = read_done(run.work_dir)["validation"]
    say(finished_line(run, figures))
    return figures


def _tell(config: Any) -> None:
    """What is no error and may still not be meant."""
    for note in (other_labels(config), teacher_that_never_moves(config), rate_that_never_falls(config)):
        if note is not None:
            say(note)


def refuse_many_workers(workers: int, ray_address: str) -> None:
    """A Ray of our own starts as many processes as it is told to, and the machine stands still.

    Raises:
        ConfigError: more workers on this machine than it has cores.
    """
    cores = max(os.cpu_count() or 1, 2)
    if ray_address in (LOCAL, START) and workers > cores:
        raise ConfigError(
            "more workers than this machine has cores",
            where="--workers",
            expected=f"at most {cores}",
            got=workers,
            fix="ask for fewer, or name a cluster with --ray-address",
        )


def refuse_other_stage(config: Any, stage: str, config_path: Path) -> None:
    """Teachers and students are trained alike, so nothing else would notice the wrong command.

    Raises:
        ConfigError: the config describes the other stage.
    """
    found = "student" if has_teacher(config) else "teacher"
    if found != stage:
        raise ConfigError(
            f"this config does not train a {stage}",
            where=config_path,
            expected=f"a config as in configs/{stage}",
            got=f"one that trains a {found}",
            fix=f"s4m-pipeline train-{found} {config_path}",
        )
