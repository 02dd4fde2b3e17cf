"""From a config file to a finished training run; what train-teacher and train-student share.

A run directory holds ``resolved_config.py`` (what was meant), ``provenance.json`` (what it ran with), the checkpoints
and, once finished, ``done.json``. The same command again is then a no-op.
"""

import logging
import re
import uuid
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jobs.config_files import PlainConfig, load_config, parse_options, write_resolved
from jobs.provenance import provenance
from jobs.training.backbone_weights import check_backbone_weights, told_if_not_had, without_unwanted_weights
from jobs.training.devices import device_of, refuse_missing_gpu, use_device
from jobs.training.placeholders import expand
from jobs.training.run_directory import (
    DONE,
    PROVENANCE,
    RESOLVED,
    last_checkpoint,
    refuse_foreign_files,
    refuse_other_settings,
    refuse_other_workers,
    remove_run,
    run_dir,
)
from jobs.training.starting_weights import initialise, newest_of, starting_files, teacher_start
from pipeline.data.coco import write_json
from pipeline.errors import ConfigError, InputError
from pipeline.full_disk import told_if_full

STUDENT_PARTS = ("detector", "segmentor")
"""Keys of ``model`` under which a student's config holds its network: of instances, of referring expressions."""
_FIGURE = re.compile(r"val/\w+/(.+)")
"""How mmengine logs what a metric measured, after the metric's prefix."""
_GO_ON = "make room on that disk, then go on with --resume, from the last checkpoint that was written whole"


@dataclass(frozen=True)
class TrainingRun:
    """What a training process needs to know."""

    config_path: Path
    """The resolved config in the run directory."""
    work_dir: Path
    resume_from: Path | None
    """Checkpoint to go on from."""


def prepare(
    config_path: Path,
    *,
    cfg_options: list[str],
    work_dir: Path | None,
    resume: bool,
    overwrite: bool,
    workers: int = 1,
    here: bool = True,
) -> TrainingRun | None:
    """Check the request and what it needs, then write the resolved config; nothing is touched before all is checked.

    Args:
        config_path: A file of configs/teacher or configs/student, or a copy.
        cfg_options: key=value overrides.
        work_dir: The run directory; work_dirs/<folder>_<name> by default.
        resume: Go on from the last checkpoint.
        overwrite: Delete the run directory first.
        workers: Training processes.
        here: They are of this machine, and not of a cluster's.

    Returns:
        What to run; None where it is finished already.

    Raises:
        ConfigError: a wrong config.
        InputError: the run directory holds another or an unfinished run and neither --resume nor --overwrite is given.
        PipelineError: see :func:`check`.
    """
    config = read_training_config(config_path, cfg_options)
    folder = run_dir(config_path, work_dir)
    config.work_dir = str(folder)
    resolved = folder / RESOLVED
    is_begun = (folder / DONE).exists() or last_checkpoint(folder) is not None
    if overwrite or not is_begun:
        refuse_foreign_files(folder)
    if not overwrite and resolved.exists() and is_begun:
        refuse_other_settings(config, resolved)
        if (folder / DONE).exists():
            return None
        if not resume:
            raise InputError(
                "the run directory holds an unfinished run",
                where=folder,
                fix="--resume goes on from its last checkpoint, --overwrite starts again",
            )
        refuse_other_workers(folder, workers)
    elif not overwrite and resume and not resolved.exists():
        raise InputError("nothing to resume", where=folder, expected=RESOLVED, fix="leave --resume out")
    check(config, where=config_path, is_new=overwrite or not is_begun, here=here)
    if overwrite and folder.exists():
        remove_run(folder)
    folder.mkdir(parents=True, exist_ok=True)
    write_resolved(config, resolved)
    begun = {"starts_from": starting_files(config), "workers": workers}
    write_json(provenance() | begun, folder / PROVENANCE)
    return TrainingRun(resolved, folder, last_checkpoint(folder))


def read_training_config(config_path: Path, cfg_options: list[str]) -> Any:
    """A training config, overrides applied and placeholders filled.

    Raises:
        ConfigError: no such file, an unknown key, an override without effect, or no config of a training.
    """
    from jobs.training.checks import KNOWN_KEYS, refuse_dead_overrides

    config = load_config(config_path, cfg_options, also_known=KNOWN_KEYS)
    refuse_dead_overrides(parse_options(cfg_options), config, file=config_path)
    missing = [name for name in ("model", "train_dataloader", "train_cfg") if name not in config._cfg_dict]
    if missing:
        raise ConfigError(
            "this config describes no training",
            where=config_path,
            expected="a file of configs/teacher or configs/student, or a copy",
            got=f"no key `{missing[0]}`",
        )
    expand(config)
    return config


def check(config: Any, *, where: str | Path, is_new: bool = True, here: bool = True) -> None:
    """Refuse what cannot be trained: settings, device, first teacher, starting weights, data, stores.

    Args:
        config: From :func:`read_training_config`.
        where: For messages.
        is_new: The run starts from its starting weights, not from a checkpoint of its own.
        here: It trains on this machine: what it needs of devices has to be here.

    Raises:
        PipelineError: the first that does not fit.
    """
    quieten()
    import pipeline.models.mmcv_ops  # noqa: F401  (before mmdet, which the config's classes import)
    from jobs.training.checks import check_inputs, check_settings
    from jobs.training.refer_checks import refuse_missing_weights
    from pipeline.models.weights import read_weights

    check_settings(config, where=where)
    if here:
        refuse_missing_gpu(config)
    else:
        device_of(config)
    if is_new:
        # A run that goes on holds both networks in its own checkpoints.
        if has_teacher(config):
            read_weights(teacher_start(config.get("teacher_checkpoint")), prefix="teacher")
        if config.get("init_checkpoint"):
            read_weights(newest_of(config.init_checkpoint, setting="init_checkpoint"), prefix="student")
        else:
            refuse_missing_weights(config)
        check_backbone_weights(config)
    check_inputs(config)


def has_teacher(config: Any) -> bool:
    """Whether a training config is a student's, with a teacher beside the network that learns."""
    return any(name in config.model for name in STUDENT_PARTS)


def quieten() -> None:
    """Keep libraries from writing pages that nobody reads."""
    warnings.filterwarnings("ignore")
    logging.getLogger("mmengine").setLevel(logging.WARNING)


def train(run: TrainingRun, *, launcher: str = "none", device: str | None = None) -> dict[str, Any]:
    """Run the training in this process.

    Args:
        run: From :func:`prepare`.
        launcher: none, or pytorch inside a process group.
        device: auto | cpu | cuda instead of the config's.

    Returns:
        The last validation's figures.

    Raises:
        PipelineError: see the loaders of data, stores and checkpoints.
    """
    quieten()
    from mmengine.config import Config
    from mmengine.dist import broadcast, get_rank

    import pipeline.models.mmcv_ops  # noqa: F401  (before mmdet)
    from jobs.training.refer_checks import without_overwritten_weights
    from pipeline.models.training_hooks import TrainingRunner
    from pipeline.models.weights import read_checkpoint

    config = PlainConfig.of(Config.fromfile(run.config_path))
    config.launcher = launcher
    # mmengine keeps hubs and visualizers by name for the life of the process: a second run would log into the first.
    config.experiment_name = config.visualizer.name = f"{run.work_dir.name}_{uuid.uuid4().hex[:8]}"
    config.device = device or config.get("device", "auto")
    use_device(config)
    # Both before minutes go into building the rest.
    if run.resume_from is not None:
        read_checkpoint(run.resume_from)  # refuses what mmengine's own loader would unpickle
    elif has_teacher(config):
        teacher_start(config.get("teacher_checkpoint"))

    without_overwritten_weights(config)
    without_unwanted_weights(config)
    runner = TrainingRunner.from_cfg(config)
    model = _unwrapped(runner.model)
    if run.resume_from is not None:
        runner._load_from, runner._resume = str(run.resume_from), True
    else:
        with told_if_not_had(config):
            model.init_weights()
        initialise(model, config)
        for value in model.state_dict().values():
            broadcast(value)  # the wrapper did so before these weights were there
    model.init_weights = lambda: None  # the runner would start from random values again
    with told_if_full(run.work_dir, fix=_GO_ON):
        runner.train()
    figures = {
        match[1]: value.current()
        for name, value in runner.message_hub.log_scalars.items()
        if (match := _FIGURE.match(name))
    }
    if get_rank() == 0:
        write_json({"iterations": runner.iter, "validation": figures}, run.work_dir / DONE)
    return figures


def _unwrapped(model: Any) -> Any:
    return getattr(model, "module", model)


def finished_line(run: TrainingRun, figures: Mapping[str, Any]) -> str:
    """What a finished run says."""
    shown = ", ".join(f"{name} {value:.4f}" for name, value in figures.items())
    return f"finished: {shown or 'no validation'}; {run.work_dir}"
