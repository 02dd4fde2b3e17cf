"""Shards one after the other in this process, each written while the next one is computed.

Without Ray a GPU would otherwise wait for the encoding of a shard, its checksums and the disk. With Ray it does not
have to: workers that share it (``workers.gpus=0.5``) take turns, and a shard counts there only when it is published.
"""

from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

J = TypeVar("J")
R = TypeVar("R")


def run_overlapped(compute: Callable[[J], Callable[[], R]], jobs: Iterable[J]) -> Generator[R, None, None]:
    """Compute every job here and publish it in one other thread, in order; yields as jobs are published.

    At most one computed job waits to be written, so at most the results of two are in memory, and a kill loses at most
    two. Whatever ends this early (an error, an interruption, ``close``) first lets the writing end.

    Args:
        compute: Takes a job; what it returns publishes the job, and touches nothing that computing needs.
        jobs: In the order of their records.

    Raises:
        Exception: What ``compute`` raised, or what publishing raised, as soon as the next job is computed or all are.
    """
    pending: Future[R] | None = None
    with ThreadPoolExecutor(1, thread_name_prefix="publish") as writer:
        for job in jobs:
            publish = compute(job)
            before = None if pending is None else (pending.result(),)
            pending = writer.submit(publish)
            del publish  # a job that is published is not kept
            if before is not None:
                yield before[0]
        if pending is not None:
            yield pending.result()
