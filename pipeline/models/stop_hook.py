"""A training that is told to stop saves the step that it is in."""

import os
import signal
import threading
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

from mmengine.dist import is_distributed
from mmengine.hooks import CheckpointHook, Hook

_SIGNALS = (signal.SIGINT, signal.SIGTERM)
_WATCH_SECONDS = 1.0


def save_step(runner: Any, step: int) -> Path:
    """The checkpoint after ``step`` finished steps; written where it is not there yet."""
    file = Path(runner.work_dir, f"iter_{step}.pth")
    if not file.exists():
        for hook in runner.hooks:
            if isinstance(hook, CheckpointHook):
                hook._save_checkpoint_with_step(runner, step, meta={"epoch": runner.epoch, "iter": step})
    return file


class StopHook(Hook, AbstractContextManager["StopHook"]):
    """Ends the training after the step in which SIGINT or SIGTERM came, with a checkpoint; the same again at once.

    Between two checkpoints lie hundreds of steps, and a cluster that takes a machine back gives notice. As a context
    it hears signals that are not ignored; of several workers, or beside the main thread, it leaves them as they are.
    """

    priority = "LOWEST"

    def __init__(self) -> None:
        self.heard: int | None = None
        self._before: dict[int, Any] = {}

    def __enter__(self) -> "StopHook":
        """Hear signals."""
        if threading.current_thread() is threading.main_thread() and not is_distributed():
            heard = [number for number in _SIGNALS if signal.getsignal(number) is not signal.SIG_IGN]
            self._before = {number: signal.signal(number, self._hear) for number in heard}
        return self

    def __exit__(self, *error: object) -> None:
        """Leave them to who heard them before."""
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before = {}

    def _hear(self, number: int, _frame: FrameType | None) -> None:
        self.heard = number
        signal.signal(number, self._before.pop(number))  # the same again is not waited with

    def after_train_iter(self, runner: Any, batch_idx: int, data_batch: Any = None, outputs: Any = None) -> None:
        """Stop where a signal came in this step."""
        if self.heard is not None:
            self._stop(runner, runner.iter + 1)

    def after_val_iter(self, runner: Any, batch_idx: int, data_batch: Any = None, outputs: Any = None) -> None:
        """Stop in a validation, which a resumed run does again."""
        if self.heard is not None:
            self._stop(runner, runner.iter)

    def _stop(self, runner: Any, step: int) -> NoReturn:
        assert self.heard is not None
        file = save_step(runner, step)
        print(f"{signal.Signals(self.heard).name}: stopped after step {step}; saved {file}", flush=True)
        raise SystemExit(128 + self.heard)


def begin_reading(also: Callable[[int], None] | None, number: int) -> None:
    """Start of a DataLoader's process, which leaves it to its parent what becomes of a signal to both of them.

    Ctrl-C in a terminal and the SIGTERM of a scheduler reach the whole group; the step that the parent saves may need
    a batch of this process, whose end torch would make an error of that step. SIGTERM from the parent ends it, and so
    does the parent's own end: torch's loop can wait for ever then, to write what nobody reads.

    Args:
        also: What begins it besides, called with ``number``.
        number: Of the process.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if hasattr(signal, "sigtimedwait"):  # not on macOS
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
        threading.Thread(target=_end_with, args=(os.getppid(),), daemon=True).start()
    if also is not None:
        also(number)


def _end_with(parent: int) -> NoReturn:
    """End this process, without clean-up, once ``parent`` sends SIGTERM or is gone."""
    while os.getppid() == parent:
        told = signal.sigtimedwait({signal.SIGTERM}, _WATCH_SECONDS)
        if told is not None and told.si_pid == parent:
            break
    os._exit(0)
