"""Many prompts, as many at a time as the device has room for."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TypeVar

import torch

T = TypeVar("T")


@dataclass
class BatchSize:
    """How many are computed together: as many as wished, and fewer for good once a GPU's memory was not enough."""

    fits: int


def in_batches(num: int, batch: BatchSize, compute: Callable[[slice], T]) -> Iterator[T]:
    """Compute slices one after the other; where the GPU's memory is not enough, smaller ones from there on.

    Raises:
        torch.OutOfMemoryError: even a single one needs more.
    """
    start = 0
    while start < num:
        stop = start + batch.fits
        try:
            result = compute(slice(start, stop))
        except torch.OutOfMemoryError:
            if batch.fits == 1:
                raise
        else:
            yield result
            start = stop
            continue
        # Out here, because inside the handler the error still holds what was allocated.
        batch.fits = max(1, batch.fits // 2)
        torch.cuda.empty_cache()
