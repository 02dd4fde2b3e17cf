"""Which files a training starts from, and how its networks get their weights."""

import contextlib
import re
from pathlib import Path
from typing import Any

from jobs.training.run_directory import DONE, is_interrupted, last_checkpoint
from pipeline.errors import CheckpointError, ConfigError

_TRAIN_A_TEACHER = "train a teacher (s4m-pipeline train-teacher), then set teacher_checkpoint to its run directory"


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
