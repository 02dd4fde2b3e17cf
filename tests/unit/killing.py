"""Processes that end by SIGKILL at a chosen call of what touches the disk."""

import io
import multiprocessing
import os
import shutil
import signal
import sys
from multiprocessing import forkserver
from pathlib import Path
from unittest import mock

STEPS = ("write", "fsync", "replace", "unlink")
"""A writer touches the disk only through these."""


def fork_server():
    """Context of processes forked from a server without threads that has the heavy imports done."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["toy_stores", "pandas"])  # pyarrow imports pandas when it makes its first table
    # The server of Python 3.11 looks for what it is to import on its own path.
    with mock.patch.dict(os.environ, PYTHONPATH=os.pathsep.join(sys.path)):
        forkserver.ensure_running()
    return context


def run(context, function, *arguments):
    """Exit code of a process that calls ``function``."""
    process = context.Process(target=function, args=arguments)
    process.start()
    process.join(60)
    assert process.exitcode is not None
    return process.exitcode


def die_at(step, when, function, *arguments):
    """Call ``function``; SIGKILL oneself before the ``when``-th call of a step (a write: when half is written)."""
    left = when

    def is_last():
        nonlocal left
        left -= 1
        return left < 0

    def dying(real):
        def call(*arguments, **options):
            if is_last():
                os.kill(os.getpid(), signal.SIGKILL)
            return real(*arguments, **options)

        return call

    class HalfWriter(io.FileIO):
        """A file whose process ends when half of the bytes are there."""

        def write(self, data):
            if is_last():
                super().write(data[: len(data) // 2])
                os.kill(os.getpid(), signal.SIGKILL)
            return super().write(data)

    def open_half(path, mode="r", *arguments, **options):
        return HalfWriter(path, mode) if "w" in mode else real_open(path, mode, *arguments, **options)

    real_open = Path.open
    if step == "write":
        Path.open = open_half
    elif step == "unlink":
        Path.unlink = dying(Path.unlink)
    else:
        setattr(os, step, dying(getattr(os, step)))
    function(*arguments)


def deaths(context, start, folder, step, function):
    """Run ``function(copy of start)``, killed at the first call of ``step``, the second, ... and at last not at all.

    Yields:
        The copies that killed processes leave.
    """
    code, when = -signal.SIGKILL, 0
    while code:
        root = folder / f"{step}-{when}"
        shutil.copytree(start, root)
        code = run(context, die_at, step, when, function, root)
        assert code in (0, -signal.SIGKILL)
        if code:
            yield root
        when += 1
