"""A stage in a child process of its own, so that an image that kills its worker costs one image and not the run.

Ray restarts a dead worker and gives it the same input for ever. Here the child says which image it turns to; if it
dies or stands still, that image is to blame. It is tried a bounded number of times, then set aside, and the rest of
the shard is done.
"""

import multiprocessing
import os
import signal
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from multiprocessing.connection import Connection
from typing import Any

from pipeline.errors import EnvironmentProblemError, PipelineError

THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "OPENCV_FOR_THREADS_NUM")
"""What a process that shares a machine with others must be started with: each library takes every core otherwise."""
START_SECONDS = 600.0
"""For the child to import its libraries and load its model."""


Stage = Callable[..., Any]


class IsolatedStage:
    """Calls a stage in a child process; the child lives until :meth:`close` or its death."""

    def __init__(
        self,
        make_stage: Callable[[], Stage],
        *,
        retries: int,
        seconds_per_image: float,
        threads: int | None = None,
    ) -> None:
        """Nothing is started before the first call.

        Args:
            make_stage: Picklable; makes the stage, in the child.
            retries: How often an image that ended a child is given to another one.
            seconds_per_image: An image that takes longer ends its child.
            threads: Of each library in the child; None: as in this process.
        """
        self._make_stage, self._retries, self._seconds = make_stage, retries, seconds_per_image
        self._threads = threads
        self._child: multiprocessing.process.BaseProcess | None = None
        self._pipe: Connection | None = None

    def __call__(self, job: Any, tell: Callable[[int | None], None] = lambda _: None) -> Any:
        """What the stage returns for ``job``, less the images that had to be set aside.

        Args:
            job: Picklable, with methods ``without(image_id, reason)``, which sets one image aside, and
                ``one_at_a_time()``: the same job touching no other image than the one it tells of, or None if it
                does so already.
            tell: Called here with what the stage tells there.

        Raises:
            EnvironmentProblemError: The child ends before it turns to an image, or while it publishes; or the stage
                raised it, and its child is ended.
            Exception: What the stage raised.
        """
        deaths: Counter[int] = Counter()
        while True:
            answer, image_id = self._attempt(job, tell)
            if answer[0] == "done":
                return answer[1]
            if answer[0] == "error":
                if isinstance(answer[1], EnvironmentProblemError):
                    self.close()  # a device that failed is of no use any more to the process that had it
                raise answer[1]
            self.close()
            if (careful := job.one_at_a_time()) is not None:
                # Other images were being read meanwhile: whose fault it was shows when only one is touched.
                job = careful
                continue
            if image_id is None:
                raise EnvironmentProblemError(
                    "a worker ended outside of any image",
                    got=answer[1],
                    fix="see the memory of the machine, and s4m-pipeline doctor; the same command goes on from here",
                )
            deaths[image_id] += 1
            if deaths[image_id] > self._retries:
                job = job.without(image_id, answer[1])

    def _attempt(self, job: Any, tell: Callable[[int | None], None]) -> tuple[tuple[str, Any], int | None]:
        """How it ended (done, error or dead) and the image that the child was at."""
        image_id, seconds = None, self._seconds
        pipe = self._pipe
        if pipe is None:
            pipe, seconds = self._start(), START_SECONDS
        with suppress(BrokenPipeError):  # a child that is dead already is found dead below
            pipe.send(job)
        while True:
            try:
                if not pipe.poll(seconds):
                    return ("dead", f"took longer than {seconds:g} s"), image_id
                kind, content = pipe.recv()
            except (EOFError, ConnectionResetError):
                return ("dead", f"its worker died ({self._death()})"), image_id
            if kind != "image":
                return (kind, content), image_id
            image_id, seconds = content, self._seconds if content is not None else START_SECONDS
            tell(content)

    def _start(self) -> Connection:
        # Not forked: a fork of a process with threads (torch, Ray) may lock up.
        context = multiprocessing.get_context("spawn")
        if self._threads is not None:
            os.environ.update(dict.fromkeys(THREAD_VARIABLES, str(self._threads)))
        self._pipe, theirs = context.Pipe()
        self._child = context.Process(target=_serve, args=(theirs, self._make_stage), daemon=True)
        self._child.start()
        theirs.close()
        return self._pipe

    def _death(self) -> str:
        if self._child is None:
            return "not started"
        self._child.join(10)
        code = self._child.exitcode
        return signal.Signals(-code).name if code is not None and code < 0 else f"exit code {code}"

    def close(self) -> None:
        """End the child."""
        if self._pipe is not None:
            self._pipe.close()
        if self._child is not None:
            self._child.kill()
            self._child.join()
        self._child = self._pipe = None


def _serve(pipe: Connection, make_stage: Callable[[], Stage]) -> None:
    """Life of the child: make the stage once, do job after job, end when the parent is gone."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent decides
    stage: Stage | None = None
    with suppress(EOFError, BrokenPipeError, ConnectionResetError):
        while True:
            job = pipe.recv()
            try:
                stage = stage or make_stage()
                answer: tuple[str, Any] = "done", stage(job, lambda image_id: pipe.send(("image", image_id)))
            except (BrokenPipeError, ConnectionResetError):
                raise
            except PipelineError as error:
                answer = "error", error
            except Exception as error:  # an error of a library may not survive pickling
                answer = "error", RuntimeError(f"{type(error).__name__}: {error}")
            pipe.send(answer)
