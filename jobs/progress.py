"""How far, how fast, how long still: one bar on a terminal, a line every few seconds elsewhere."""

import sys
import time
from collections.abc import Callable
from types import TracebackType
from typing import TextIO

LINE_SECONDS = 5.0
BAR_SECONDS = 0.2
_BAR_WIDTH = 24


class Progress:
    """Counts items of one stage; a context manager that ends its output with a full line."""

    def __init__(
        self,
        label: str,
        total: int,
        *,
        unit: str = "images",
        stream: TextIO | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Say nothing yet.

        Args:
            label: What is being done.
            total: Items to do.
            unit: What the items are called.
            stream: Where to; standard error if None, so that results can be piped.
            clock: Seconds.
        """
        self.label, self.total, self.unit = label, total, unit
        self.done, self.note = 0, ""
        self._stream = stream or sys.stderr
        self._is_terminal = self._stream.isatty()
        self._clock = clock
        self._start = self._shown = clock()
        self._told: str | None = None

    def advance(self, count: int = 1, *, note: str = "") -> None:
        """Some more are done; shown now or a little later.

        Args:
            count: How many.
            note: Shown behind the numbers from now on.
        """
        self.done += count
        self.note = note or self.note
        if self._clock() - self._shown >= (BAR_SECONDS if self._is_terminal else LINE_SECONDS):
            self._show()

    def text(self) -> str:
        """As in ``proposals: 120 of 400 images, 7.5 images/s, 0:37 left``."""
        seconds = self._clock() - self._start
        rate = self.done / seconds if seconds > 0 else 0.0
        parts = [f"{self.label}: {self.done} of {self.total} {self.unit}", f"{rate:.3g} {self.unit}/s"]
        if self.done >= self.total:
            parts.append(f"{_clock_text(seconds)} in all")
        elif rate > 0:
            parts.append(f"{_clock_text((self.total - self.done) / rate)} left")
        return ", ".join(parts + ([self.note] if self.note else []))

    def _show(self) -> None:
        self._shown = self._clock()
        if not self._is_terminal:
            if self.text() != self._told:  # the end may have been told by the last step
                self._told = self.text()
                print(self._told, file=self._stream, flush=True)
            return
        filled = _BAR_WIDTH * min(self.done, self.total) // max(self.total, 1)
        bar = "#" * filled + "-" * (_BAR_WIDTH - filled)
        print(f"\r\x1b[K[{bar}] {self.text()}", end="", file=self._stream, flush=True)

    def __enter__(self) -> "Progress":
        """Start the clock."""
        self._start = self._shown = self._clock()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Show the last state, whatever happened."""
        self._show()
        if self._is_terminal:
            print(file=self._stream, flush=True)


def _clock_text(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def say(text: str) -> None:
    """One line to the user."""
    print(text, flush=True)
