"""Read the pickles of REFER without running anything that is in them.

A pickle can name any function and have it called. A refs file needs none: lists, dicts, texts and numbers are opcodes
of their own, and only numbers of numpy name something. Those few names get stand-ins that are made anew for every
file, so that not even their attributes can be changed for others.
"""

import io
import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.errors import InputError

_NUMBERS = "biuf"
_FIX = "check the path: refs(unc).p, refs(umd).p or refs(google).p as REFER distributes them"


def read_pickle(path: Path) -> object:
    """Read a pickle that holds lists, dicts, texts, numbers (numpy's too) and nothing else.

    Texts of Python 2, which do not say what they are encoded in, come out as latin-1; :func:`restored` mends them.

    Raises:
        InputError: no such file, not a pickle, a damaged one, or one that names anything else.
    """
    path = Path(path)
    try:
        content = path.read_bytes()
    except OSError as error:
        raise InputError("expressions cannot be read", where=path, got=error.strerror, fix=_FIX) from error
    try:
        return _Reader(io.BytesIO(content), encoding="latin-1").load()
    except _Refused as error:
        raise InputError(
            "not a refs file: the pickle asks for code to be run",
            where=path,
            expected="lists, dicts, texts and numbers",
            got=str(error),
            fix=_FIX,
        ) from error
    # A damaged pickle can fail in every one of these ways.
    except (pickle.UnpicklingError, ValueError, TypeError, LookupError, AttributeError) as error:
        raise _damaged(path, error) from error
    except (EOFError, ImportError, OverflowError, MemoryError, RecursionError) as error:
        raise _damaged(path, error) from error


def restored(text: str) -> str:
    """A text as it was meant: UTF-8 that was read as latin-1 is read again, anything else stays."""
    try:
        return text.encode("latin-1").decode("utf-8")
    except UnicodeError:
        return text


def _damaged(path: Path, error: Exception) -> InputError:
    got = f"{type(error).__name__}: {error}"
    return InputError("not a pickle, or a damaged one", where=path, expected="a refs file of REFER", got=got, fix=_FIX)


class _Refused(pickle.UnpicklingError):
    """The pickle names something that no refs file needs."""


class _Reader(pickle.Unpickler):
    def __init__(self, file: io.BytesIO, *, encoding: str) -> None:
        super().__init__(file, encoding=encoding)
        self._known = _stand_ins()

    def find_class(self, module: str, name: str) -> Any:
        """Look a name up among the stand-ins."""
        if (module, name) not in self._known:
            raise _Refused(f"{module}.{name}")
        return self._known[module, name]


def _stand_ins() -> Mapping[tuple[str, str], Any]:
    """What the known names do here; new objects, because a pickle may set attributes of what it named."""

    class DType:
        """numpy.dtype of a number."""

        def __init__(self, code: str, *_flags: object) -> None:
            self.code, self.order = code, "="

        def __setstate__(self, state: tuple[Any, ...]) -> None:
            self.order = state[1]

    def encode(text: str, encoding: str = "latin1") -> bytes:
        """How Python 3 writes bytes in an old protocol."""
        if encoding not in ("latin1", "latin-1"):
            raise _Refused(f"_codecs.encode to {encoding!r}")
        return text.encode("latin-1")

    def scalar(dtype: Any, data: bytes | str) -> Any:
        """A number of numpy, as a number of Python."""
        kind = np.dtype(str(dtype.order).replace("|", "=") + str(dtype.code))
        if kind.kind not in _NUMBERS:
            raise _Refused(f"a numpy value of type {kind}")
        return np.frombuffer(data.encode("latin-1") if isinstance(data, str) else data, kind, count=1)[0].item()

    return {
        ("numpy", "dtype"): DType,
        ("numpy.core.multiarray", "scalar"): scalar,
        ("numpy._core.multiarray", "scalar"): scalar,
        ("_codecs", "encode"): encode,
        ("collections", "OrderedDict"): dict,
    }
