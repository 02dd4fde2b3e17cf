"""pyarrow's own clients of object stores behind fsspec's interface, for machines without the fsspec plug-in."""

from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from fsspec.implementations.arrow import ArrowFSWrapper

from pipeline.errors import EnvironmentProblemError

if TYPE_CHECKING:
    from pyarrow.fs import FileSystem

_REQUESTS_AT_ONCE = 32


class ArrowFiles(ArrowFSWrapper):  # type: ignore[misc]
    """fsspec's view of a pyarrow file system, less what is wrong or slow in the original."""

    def find(self, path: str, **_: Any) -> dict[str, dict[str, Any]]:
        """Path -> ``size`` of every file below a folder; the original takes a silent server for an empty folder."""
        from pyarrow.fs import FileSelector

        found = self.fs.get_file_info(FileSelector(path, allow_not_found=True, recursive=True))
        return {info.path: {"size": info.size} for info in found if info.is_file}

    def cat_file(self, path: str, start: int | None = None, end: int | None = None, **kwargs: Any) -> bytes:
        """Bytes ``start`` to ``end`` of a file; the original opens those from byte 0 as a stream it cannot seek."""
        with self.fs.open_input_file(path) as file:
            size = file.size()
            first, last = start or 0, size if end is None else min(end, size)
            return bytes(file.read_at(max(last - first, 0), first))

    def cat_ranges(self, paths: list[str], starts: None, ends: None, **_: Any) -> list[bytes | Exception]:
        """All bytes of many files, or what prevented each; the original asks for one after the other."""

        def attempt(path: str) -> bytes | Exception:
            try:
                return self.cat_file(path, starts, ends)
            except OSError as error:
                return error

        with ThreadPoolExecutor(min(_REQUESTS_AT_ONCE, len(paths))) as pool:
            return list(pool.map(attempt, paths))


def open_address(uri: str, scheme: str, missing: ImportError) -> tuple["FileSystem", str]:
    """A file system of pyarrow's own and the path in it.

    Args:
        uri: As given to fsspec, not encoded; options of pyarrow's may follow a question mark.
        scheme: Of ``uri``.
        missing: Why fsspec could not.

    Raises:
        EnvironmentProblemError: pyarrow cannot either.
    """
    from pyarrow import fs

    # fsspec takes a path as it stands; pyarrow wants it encoded, and options behind a question mark.
    path, _, given = uri.partition("?")
    # One put for one file, so that a killed one leaves no parts behind.
    options = [*filter(None, [given]), *(["allow_delayed_open=true"] if scheme == "s3" else [])]
    try:
        filesystem, root = fs.FileSystem.from_uri(quote(path, safe=":/@") + "?" * bool(options) + "&".join(options))
    except Exception as error:
        raise EnvironmentProblemError(
            f"the {scheme}:// address cannot be opened",
            where=uri,
            got=f"{missing}; pyarrow's own client: {first_line(error)}",
            fix=f"pip install the fsspec plug-in for {scheme} (s3fs, gcsfs, adlfs, ...) on every machine, or correct "
            "the address and the credentials",
        ) from error
    return filesystem, root


def first_line(error: Exception) -> str:
    """Class and message, for what clients of services raise: the rest is mostly their inside."""
    return f"{type(error).__name__}: {str(error).partition(chr(10))[0][:300]}"
