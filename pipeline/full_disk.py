"""A full disk, in words: libraries tell of one in words of their own, and mostly without the file."""

import contextlib
import errno
import shutil
from collections.abc import Iterator
from pathlib import Path

from pipeline.errors import EnvironmentProblemError

_TORCH = ("inline_container", "PytorchStreamWriter failed writing")
"""In the messages of ``torch.save`` where a file comes out shorter than it was written."""
AGAIN = "make room on that disk, then run the same command again"


def full_disk(error: Exception, *, where: str | Path | None = None, fix: str = AGAIN) -> EnvironmentProblemError | None:
    """What to tell of a disk or quota that is used up; None for every other error.

    Args:
        error: Any.
        where: The file or folder that was being written, where the error does not name it.
        fix: What to do.
    """
    is_full = isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)
    if not is_full and not (isinstance(error, RuntimeError) and _is_torch_writing(str(error))):
        return None
    named = isinstance(error, OSError) and error.filename
    path = named or where
    got = error.strerror if isinstance(error, OSError) else f"torch wrote less than it meant to: {error}"
    if path is not None:
        # Room there means that it was another disk, such as the one of temporary files.
        with contextlib.suppress(OSError):
            got = f"{got} ({shutil.disk_usage(_there(Path(path))).free / 1e6:.0f} MB free there)"
    return EnvironmentProblemError("a file cannot be written, the disk is full", where=path, got=got, fix=fix)


def _is_torch_writing(text: str) -> bool:
    """Reading a damaged archive fails in the same file of torch's."""
    return any(words in text for words in _TORCH) and "Reader" not in text


def _there(path: Path) -> Path:
    return next((folder for folder in (path, *path.absolute().parents) if folder.exists()), path)


@contextlib.contextmanager
def told_if_full(where: str | Path, *, fix: str = AGAIN) -> Iterator[None]:
    """Turn what a full disk raises in the block into :func:`full_disk`'s words; other errors pass."""
    try:
        yield
    except (OSError, RuntimeError) as error:
        told = full_disk(error, where=where, fix=fix)
        if told is None:
            raise
        raise told from error
