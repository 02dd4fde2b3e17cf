"""Functions through ``torch.compile``, which never cost a run: where compiling fails they run as they are."""

import logging
from collections.abc import Callable
from typing import Any, Generic, ParamSpec, TypeVar

import torch

P = ParamSpec("P")
R = TypeVar("R")


class Compiled(Generic[P, R]):
    """A function of tensors, compiled at its first call.

    Sizes that change are compiled for twice at most: for the first ones, then for any. A machine without a C++
    compiler, or a function that cannot be compiled, is told once and costs only the speed.
    """

    def __init__(self, function: Callable[P, R], *, name: str) -> None:
        """Take the function; ``name`` is for the message."""
        self._plain = function
        self._compiled: Callable[P, R] | None = torch.compile(function)
        self._name = name

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R:
        """What the function returns for these arguments, up to rounding."""
        if self._compiled is not None:
            try:
                return self._compiled(*args, **kwargs)
            except torch.OutOfMemoryError:
                raise  # the caller tries again with less
            except Exception as error:  # a missing compiler and a wrong argument alike; the latter is raised below
                reason: Any = " ".join(str(error).split())[:300]
            answer = self._plain(*args, **kwargs)
            self._compiled = None
            logging.getLogger(__name__).warning("%s runs uncompiled: torch.compile failed: %s", self._name, reason)
            return answer
        return self._plain(*args, **kwargs)
