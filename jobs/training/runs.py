"""From a config file to a finished training run; what train-teacher and train-student share.

A run directory holds ``resolved_config.py`` (what was meant), ``provenance.json`` (what it ran with), the checkpoints
and, once finished, ``done.json``. The same command again is then a no-op.
"""

import contextlib
import json
import logging
import os
import platform
import re
import shutil
import sys
import uuid
import warnings
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from jobs.config_files import PlainConfig, leaves, load_config, parse_options, write_resolved
from pipeline.data.coco import write_json
from pipeline.errors import CheckpointError, ConfigError, EnvironmentProblemError, InputError
from pipeline.full_disk import told_if_full

RESOLVED, PROVENANCE, DONE = "resolved_config.py", "provenance.json", "done.json"
STUDENT_PARTS = ("detector", "segmentor")
"""Keys of ``model`` under which a student's config holds its network: of instances, of referring expressions."""
_PLACEHOLDER = re.compile(r"\{(\w+)\}")
_NUMBER = re.compile(r"\d+\.\d+")
_FIGURE = re.compile(r"val/\w+/(.+)")
"""How mmengine logs what a metric measured, after the metric's prefix."""
_NUM_NAMED = 5
"""Settings that a message names."""
_GO_ON = "make room on that disk, then go on with --resume, from the last checkpoint that was written whole"
_TRAIN_A_TEACHER = "train a teacher (s4m-pipeline train-teacher), then set teacher_checkpoint to its run directory"


@dataclass(frozen=True)
class TrainingRun:
    """What a training process needs to know."""

    config_path: Path
    """The resolved config in the run directory."""
    work_dir: Path
    resume_from: Path | None
    """Checkpoint to go on from."""


def expand(config: Any) -> None:
    """Fill ``{name}`` in strings of a config with its top-level settings, in place.

    A string that is nothing but ``{name}`` becomes the setting's value, of any type. An item ``{name} x 1.0`` of a
    list becomes as many numbers 1.0 as the setting says.

    Raises:
        ConfigError: a name that is no top-level setting, or that is to be a count and is none.
    """
    tree = config._cfg_dict  # raw items: mmengine's own look-up would import every class that is named
    settings = {k: v for k, v in dict.items(tree) if v is None or isinstance(v, str | int | float)}

    def fill(value: Any) -> Any:
        if isinstance(value, str):
            return _fill_text(value, settings)
        if isinstance(value, list | tuple):
            return type(value)(filled for item in value for filled in _repeated(fill(item)))
        if isinstance(value, dict):
            for key, item in list(dict.items(value)):
                dict.__setitem__(value, key, fill(item))
        return value

    fill(tree)


def _repeated(item: Any) -> list[Any]:
    """An item of a list, its placeholders filled: ``3 x 1.0`` is three of them."""
    count, times, value = item.partition(" x ") if isinstance(item, str) else ("", "", "")
    if not (times and _NUMBER.fullmatch(value)):
        return [item]
    if not count.isdecimal():
        raise ConfigError(
            "a placeholder cannot be filled",
            where=item,
            expected="a count, a whole number from 0",
            got=count,
            fix="correct the setting that says how many, such as num_classes",
        )
    return [float(value)] * int(count)


def _fill_text(text: str, settings: Mapping[str, Any], depth: int = 0) -> Any:
    names = _PLACEHOLDER.findall(text)
    unknown = [name for name in names if name not in settings]
    if unknown or depth > 8:
        raise ConfigError(
            "a placeholder cannot be filled",
            where=text,
            expected=f"one of {sorted(settings)}",
            got=unknown or "a circle of placeholders",
        )
    if not names:
        return text
    if text == f"{{{names[0]}}}" and not isinstance(settings[names[0]], str):
        return settings[names[0]]
    return _fill_text(_PLACEHOLDER.sub(lambda match: str(settings[match[1]]), text), settings, depth + 1)


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
    if overwrite:
        if folder.exists() and any(folder.iterdir()) and not resolved.exists():
            raise InputError(
                "--overwrite deletes run directories only",
                where=folder,
                expected=f"an empty folder, or one with {RESOLVED}",
                fix="choose another --work-dir, or empty it yourself",
            )
    elif resolved.exists() and is_begun:
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
    elif resume and not resolved.exists():
        raise InputError("nothing to resume", where=folder, expected=RESOLVED, fix="leave --resume out")
    check(config, where=config_path, is_new=overwrite or not is_begun, here=here)
    if overwrite and folder.exists():
        remove_run(folder)
    folder.mkdir(parents=True, exist_ok=True)
    write_resolved(config, resolved)
    begun = {"starts_from": starting_files(config), "workers": workers}
    write_json(provenance() | begun, folder / PROVENANCE)
    return TrainingRun(resolved, folder, last_checkpoint(folder))


def refuse_other_settings(config: Any, resolved: Path) -> None:
    """A run directory holds one run. Where it lies, and how a path is written, make no other of it.

    Raises:
        InputError: it was begun with other settings; they are named.
    """
    pending = resolved.with_name(f"{RESOLVED}.new.py")
    write_resolved(config, pending)
    try:
        there, asked = (leaves(load_config(path)._cfg_dict) for path in (resolved, pending))
    finally:
        pending.unlink()
    names = [name for name in {**there, **asked} if not _is_same(name, there, asked)]
    if names:
        more = f"; and {len(names) - _NUM_NAMED} more" if len(names) > _NUM_NAMED else ""
        named = names[:_NUM_NAMED]
        raise InputError(
            "the run directory holds a run of another configuration",
            where=resolved.parent,
            expected="; ".join(f"{name} = {there.get(name, 'not set')!r}" for name in named) + more,
            got="; ".join(f"{name} = {asked.get(name, 'not set')!r}" for name in named) + more,
            fix="give these settings, or choose another --work-dir; --overwrite deletes that run",
        )


def _is_same(name: str, there: Mapping[str, Any], asked: Mapping[str, Any]) -> bool:
    if name == "work_dir":
        return True
    if name not in there or name not in asked:
        return False
    first, second = there[name], asked[name]
    if first and second and isinstance(first, str) and isinstance(second, str):
        return os.path.abspath(first) == os.path.abspath(second)
    return bool(first == second)


def refuse_other_workers(folder: Path, workers: int) -> None:
    """A step has ``batch_size`` images of every worker: with others it is another step, and other images are next.

    Raises:
        InputError: the run was begun with another number of workers.
    """
    try:
        begun = json.loads((folder / PROVENANCE).read_bytes()).get("workers", workers)
    except (OSError, ValueError, AttributeError):
        return  # nobody knows
    if begun != workers:
        raise InputError(
            "the run was begun with another number of workers",
            where=folder,
            expected=f"--workers {begun}",
            got=f"--workers {workers}, whose steps would have other numbers of images, and not those that are next",
            fix=f"--resume --workers {begun}; or begin a new run in another --work-dir",
        )


def read_training_config(config_path: Path, cfg_options: list[str]) -> Any:
    """A training config, overrides applied and placeholders filled.

    Raises:
        ConfigError: no such file, an unknown key, an override without effect, or no config of a training.
    """
    from jobs.training.checks import KNOWN_KEYS, refuse_dead_overrides

    config = load_config(config_path, cfg_options, also_known=KNOWN_KEYS)
    refuse_dead_overrides(parse_options(cfg_options), config, where=f"--cfg-options, {config_path}")
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

    check_settings(config, where=where)
    if here:
        refuse_missing_gpu(config)
    else:
        device_of(config)
    if is_new:
        # A run that goes on holds both networks in its own checkpoints.
        if has_teacher(config):
            teacher_start(config.get("teacher_checkpoint"))
        if config.get("init_checkpoint"):
            newest_of(config.init_checkpoint, setting="init_checkpoint")
        else:
            refuse_missing_weights(config)
    check_inputs(config)


def has_teacher(config: Any) -> bool:
    """Whether a training config is a student's, with a teacher beside the network that learns."""
    return any(name in config.model for name in STUDENT_PARTS)


@contextmanager
def held(folder: Path) -> Iterator[None]:
    """Keep a run directory for this process; its lock lies beside it, because --overwrite deletes the directory.

    Raises:
        InputError: another process on this machine trains there.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    if folder.exists() and not folder.is_dir():
        raise InputError("a run directory is wanted", where=folder, got="a file", fix="choose another --work-dir")
    path = folder.with_name(f".{folder.name}.lock")
    path.touch()  # OSError where nothing can be written; the lock would take that for another process
    lock = FileLock(path, fallback_to_soft=False)
    # Some network disks have no locks.
    with contextlib.suppress(NotImplementedError):
        try:
            lock.acquire(timeout=0)
        except Timeout as error:
            raise InputError(
                "another process trains in this run directory",
                where=folder,
                fix="wait for it, or choose another --work-dir",
            ) from error
    try:
        yield
    finally:
        lock.release()


def last_checkpoint(folder: Path) -> Path | None:
    """The newest checkpoint of a run that is complete on disk.

    A run killed while it wrote leaves a file cut short: the archive's directory, at its end, is missing.
    """
    steps = {path: path.stem.removeprefix("iter_") for path in folder.glob("iter_*.pth")}
    found = sorted((path for path in steps if steps[path].isdigit()), key=lambda path: int(steps[path]), reverse=True)
    return next((path for path in found if zipfile.is_zipfile(path)), None)


def refuse_run_directory(checkpoint: str | Path) -> None:
    """Where a file of weights is wanted.

    Raises:
        CheckpointError: it is a folder; names the newest checkpoint in it.
    """
    from pipeline.models.weights import EMBEDDED

    if str(checkpoint) in EMBEDDED or not Path(checkpoint).is_dir():
        return
    newest = last_checkpoint(Path(checkpoint))
    raise CheckpointError(
        "a checkpoint is wanted, not a folder",
        where=checkpoint,
        expected="a file",
        got="a run directory" if newest else "a folder without a checkpoint (iter_*.pth)",
        fix=f"give the newest checkpoint in it: {newest}" if newest else "train it first, or correct the path",
    )


def is_interrupted(folder: Path) -> bool:
    """Whether a run was begun there, wrote a checkpoint, and did not finish."""
    return (folder / RESOLVED).exists() and not (folder / DONE).exists()


def remove_run(folder: Path) -> None:
    """Delete a folder that this pipeline wrote, with all that is in it."""
    shutil.rmtree(folder)


def provenance() -> dict[str, Any]:
    """Versions, machine and command of a run."""
    from importlib.metadata import version

    names = ("torch", "torchvision", "onedl-mmdetection", "onedl-mmengine", "onedl-mmcv", "rf-sam-2", "numpy")
    return {
        "command": sys.argv,
        "python": platform.python_version(),
        "machine": f"{platform.machine()}, {os.cpu_count()} cores",
        "versions": {name: version(name) for name in names},
    }


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
    runner = TrainingRunner.from_cfg(config)
    model = _unwrapped(runner.model)
    if run.resume_from is not None:
        runner._load_from, runner._resume = str(run.resume_from), True
    else:
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


def initialise(model: Any, config: Any) -> None:
    """Give the networks their starting weights, strictly.

    ``init_checkpoint`` starts the network that learns, without the parameters that match ``init_skip`` (the class
    layer by default: another data set has other classes); ``teacher_checkpoint`` starts the teacher of a student.
    """
    from pipeline.models.weights import CLASS_LAYERS, load_network, read_weights

    learner = getattr(model, "student", model)
    if config.get("init_checkpoint"):
        skip = config.get("init_skip") or CLASS_LAYERS
        start = newest_of(config.init_checkpoint, setting="init_checkpoint")
        weights = read_weights(start, prefix="student")
        kept = {name: value for name, value in weights.items() if not re.search(skip, name)}
        load_network(learner, kept, where=start, may_lack=skip)
    if hasattr(model, "teacher"):
        start = teacher_start(config.get("teacher_checkpoint"))
        load_network(model.teacher, read_weights(start, prefix="teacher"), where=start)


def teacher_start(setting: str | None) -> str:
    """The checkpoint that ``teacher_checkpoint`` means; see :func:`newest_of`.

    Raises:
        ConfigError: none is given.
        CheckpointError: see :func:`newest_of`.
    """
    if not setting:
        raise ConfigError("a student needs a teacher", where="teacher_checkpoint", got=setting, fix=_TRAIN_A_TEACHER)
    return newest_of(setting, setting="teacher_checkpoint")


def newest_of(value: str, *, setting: str) -> str:
    """The checkpoint that a setting means: an embedded name, a file, or the newest of a run directory.

    Raises:
        CheckpointError: nothing is there, or a run directory without a checkpoint, or of a run that has not finished.
    """
    from pipeline.models.weights import EMBEDDED

    fix = _TRAIN_A_TEACHER if setting == "teacher_checkpoint" else f"correct {setting}"
    if value in EMBEDDED or Path(value).is_file():
        return value
    if not Path(value).exists():
        expected = f"a run directory, a file, or one of {sorted(EMBEDDED)}"
        raise CheckpointError("no such checkpoint", where=value, expected=expected, fix=fix)
    newest = last_checkpoint(Path(value))
    if newest is None:
        raise CheckpointError("no checkpoint in the run directory", where=value, fix=fix)
    if is_interrupted(Path(value)):
        raise CheckpointError(
            "the run that is to be started from has not finished",
            where=value,
            expected=DONE,
            got=newest.name,
            fix=f"finish it (the command that began it, with --resume), or name the file: {setting}={newest}",
        )
    return str(newest)


def starting_files(config: Any) -> dict[str, str]:
    """The files that ``init_checkpoint`` and ``teacher_checkpoint`` mean now, where they are set and there."""
    found = {}
    for setting in ("init_checkpoint", "teacher_checkpoint"):
        with contextlib.suppress(CheckpointError):
            if config.get(setting):
                found[setting] = newest_of(config[setting], setting=setting)
    return found


def device_of(config: Any) -> str:
    """The config's ``device``: auto (a GPU where there is one) | cpu | cuda.

    Raises:
        ConfigError: another word.
    """
    wants = str(config.get("device", "auto"))
    if wants not in ("auto", "cpu", "cuda"):
        raise ConfigError("unknown device", where="device", expected="auto | cpu | cuda", got=wants)
    return wants


def refuse_missing_device(config: Any) -> None:
    """Check the config's ``device``.

    Raises:
        ConfigError: see :func:`device_of`.
        EnvironmentProblemError: cuda, and there is no GPU.
    """
    import torch

    wants = device_of(config)
    if wants == "cuda" and not torch.cuda.is_available():
        raise EnvironmentProblemError(
            "no GPU", where="device", expected=wants, got="torch sees none", fix="set device=cpu or device=auto"
        )


def refuse_missing_gpu(config: Any) -> None:
    """Check all that a training wants a GPU for: the network, half precision, a SAM beside it.

    Raises:
        ConfigError: see :func:`device_of`.
        EnvironmentProblemError: no GPU, or half precision (mmengine's, fp16 with a scaled loss) without one.
    """
    import torch

    refuse_missing_device(config)
    if not _is_on_gpu(config) and "AmpOptimWrapper" in str(config.get("optim_wrapper", {}).get("type")):
        raise EnvironmentProblemError(
            "half precision needs a GPU",
            where="optim_wrapper.type",
            expected="OptimWrapper on a CPU",
            got="AmpOptimWrapper",
            fix="train on a machine with a GPU, or in float32: --cfg-options optim_wrapper.type=OptimWrapper",
        )
    for key in ("model.refiner", "model.live_sam", "model.detector.live_sam"):
        block = _block(config, key)
        if str(block.get("device", "cpu")).startswith("cuda") and not torch.cuda.is_available():
            raise EnvironmentProblemError(
                "no GPU for SAM",
                where=f"{key}.device",
                expected=block["device"],
                got="torch sees none",
                fix=f"train on a machine with a GPU, or: --cfg-options {key}.device=cpu (slow)",
            )


def _block(config: Any, key: str) -> Mapping[str, Any]:
    """A dict of a config by its dotted key, empty where it is not there."""
    found = config
    for name in key.split("."):
        found = found.get(name) or {}
    return dict(dict.items(found))


def _is_on_gpu(config: Any) -> bool:
    import torch

    return torch.cuda.is_available() and config.get("device", "auto") != "cpu"


def use_device(config: Any) -> None:
    """Make mmengine train on the config's ``device``.

    Raises:
        PipelineError: see :func:`refuse_missing_gpu`.
    """
    import mmengine.device.utils as mmengine_device

    refuse_missing_gpu(config)
    mmengine_device.DEVICE = "cuda" if _is_on_gpu(config) else "cpu"  # the runner asks get_device(), without a setter


def say(text: str) -> None:
    """One line to the user."""
    print(text, flush=True)


def finished_line(run: TrainingRun, figures: Mapping[str, Any]) -> str:
    """What a finished run says."""
    shown = ", ".join(f"{name} {value:.4f}" for name, value in figures.items())
    return f"finished: {shown or 'no validation'}; {run.work_dir}"


def run_dir(config_path: Path, work_dir: Path | None) -> Path:
    """Where a run is written: what was asked for, or work_dirs/<folder>_<name of the config>."""
    return work_dir or Path("work_dirs") / f"{config_path.parent.name}_{config_path.stem}"


def read_done(folder: Path) -> dict[str, Any]:
    """The figures of a finished run."""
    figures: dict[str, Any] = json.loads((folder / DONE).read_text())
    return figures
