"""A small cache that drops what was not used for longest, and drops everything when it is copied to a process."""

from collections import OrderedDict
from collections.abc import Callable
from typing import Generic, TypeVar

Value = TypeVar("Value")


class Lru(Generic[Value]):
    """At most ``size`` values by key."""

    def __init__(self, size: int) -> None:
        """Start empty."""
        self.size = size
        self._values: OrderedDict[object, Value] = OrderedDict()

    def get(self, key: object, make: Callable[[], Value]) -> Value:
        """The value of ``key``, made now if it is not held."""
        if key in self._values:
            self._values.move_to_end(key)
            return self._values[key]
        value = self._values[key] = make()
        if len(self._values) > self.size:
            self._values.popitem(last=False)
        return value

    def __getstate__(self) -> int:
        """Open files and decoded rows stay with the process that has them."""
        return self.size

    def __setstate__(self, size: int) -> None:
        """Empty, with the same room."""
        self.__init__(size)  # type: ignore[misc]
