"""A run directory: what lies in it, who holds it, and whether it holds the run that is asked for.

It holds ``resolved_config.py`` (what was meant), ``provenance.json`` (what it ran with), the checkpoints and, once
finished, ``done.json``.
"""

import contextlib
import json
import os
import re
import shutil
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from jobs.config_files import leaves, load_config, write_resolved
from pipeline.errors import InputError

RESOLVED, PROVENANCE, DONE = "resolved_config.py", "provenance.json", "done.json"
_NUM_NAMED = 5
"""Settings, or files, that a message names."""
_OF_READING = ("num_workers", "persistent_workers", "pin_memory", "prefetch_factor")
"""Settings of data loaders that change no batch."""
_WRITTEN = re.compile(
    r"resolved_config\.py(\.new\.py)?|provenance\.json|done\.json|progress\.log|last_checkpoint"
    r"|(iter_\d+|best_.*)\.pth|ray|\d{8}_\d{6}|\..*"
)
"""Names of what a training writes into its run directory, and of hidden files."""


def run_dir(config_path: Path, work_dir: Path | None) -> Path:
    """Where a run is written: what was asked for, or work_dirs/<folder>_<name of the config>."""
    return work_dir or Path("work_dirs") / f"{config_path.resolve().parent.name}_{config_path.stem}"


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


def is_interrupted(folder: Path) -> bool:
    """Whether a run was begun there, wrote a checkpoint, and did not finish."""
    return (folder / RESOLVED).exists() and not (folder / DONE).exists()


def read_done(folder: Path) -> dict[str, Any]:
    """The figures of a finished run."""
    figures: dict[str, Any] = json.loads((folder / DONE).read_text())
    return figures


def refuse_foreign_files(folder: Path) -> None:
    """A run directory holds a run and nothing else, so that ``--overwrite`` deletes nothing else.

    Raises:
        InputError: something is there that no training writes; it is named.
    """
    names = sorted(path.name for path in folder.iterdir()) if folder.is_dir() else []
    foreign = [name for name in names if not _WRITTEN.fullmatch(name)]
    if foreign:
        more = f" and {len(foreign) - _NUM_NAMED} more" if len(foreign) > _NUM_NAMED else ""
        raise InputError(
            "the folder holds other things than a training's run",
            where=folder,
            expected="an empty or a new folder, or one with a run alone: --overwrite deletes all that is in it",
            got=", ".join(foreign[:_NUM_NAMED]) + more,
            fix="choose another --work-dir, or move these elsewhere",
        )


def remove_run(folder: Path) -> None:
    """Delete a run directory.

    Raises:
        InputError: see :func:`refuse_foreign_files`.
    """
    refuse_foreign_files(folder)
    shutil.rmtree(folder)


def refuse_other_settings(config: Any, resolved: Path) -> None:
    """A run directory holds one run.

    Where it lies, how a path is written, and in how many processes images are read make no other of it.

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
    if name == "work_dir" or name.rpartition(".")[2] in _OF_READING:
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
