"""The files of a store, on a local disk or behind a URI: whole files in, whole files or ranges out.

A local file is published by writing beside it, fsync and rename; an object store publishes a put by itself. Nothing
else in the stores knows where they are.
"""

import contextlib
import os
import uuid
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlparse

import fsspec
from fsspec.implementations.arrow import ArrowFSWrapper

from pipeline.errors import EnvironmentProblemError, InputError

PARTIAL = ".partial"


class StoreFiles(ABC):
    """A folder of files named by relative paths with forward slashes."""

    uri: str
    is_local: bool

    @abstractmethod
    def read(self, path: str) -> bytes:
        """All bytes of a file; raises FileNotFoundError."""

    @abstractmethod
    def read_range(self, path: str, start: int, end: int) -> bytes:
        """Bytes ``start`` to ``end``, fewer where the file is shorter; raises FileNotFoundError."""

    @abstractmethod
    def write(self, path: str, data: bytes) -> None:
        """Publish a file in one step, replacing what was there; after return it survives a power cut."""

    @abstractmethod
    def create(self, path: str, data: bytes) -> bool:
        """Publish a file only if none has its name; whether it was published."""

    @abstractmethod
    def delete(self, path: str) -> None:
        """Remove a file for good; one that is not there is no error."""

    @abstractmethod
    def sizes(self) -> dict[str, int]:
        """Path -> bytes of every published file; unfinished ones are left out."""

    @abstractmethod
    def sweep(self) -> None:
        """Remove what a killed writer left unfinished."""

    def read_many(self, paths: Iterable[str]) -> dict[str, bytes]:
        """The bytes of those files that exist."""
        found = {}
        for path in paths:
            with contextlib.suppress(FileNotFoundError):
                found[path] = self.read(path)
        return found

    def name(self, path: str) -> str:
        """A file's full name, for messages."""
        return f"{self.uri.rstrip('/')}/{path}"


def open_files(uri: str | Path) -> StoreFiles:
    """The files below a local path, a ``file://`` address or any address that fsspec or pyarrow knows.

    Raises:
        EnvironmentProblemError: The scheme needs a package that is not installed.
        InputError: Nothing knows the scheme.
    """
    text = os.fspath(uri)
    scheme = urlparse(text).scheme if "://" in text else "file"
    if scheme == "file":
        return LocalFiles(Path(unquote(urlparse(text).path)) if "://" in text else Path(text))
    return RemoteFiles(text, *_remote_filesystem(text, scheme))


class LocalFiles(StoreFiles):
    """A store on a local (or mounted) disk."""

    is_local = True

    def __init__(self, root: Path) -> None:
        """Nothing is created before the first write."""
        self.root = root.absolute()
        self.uri = str(self.root)

    def read(self, path: str) -> bytes:
        """See the base class."""
        return (self.root / path).read_bytes()

    def read_range(self, path: str, start: int, end: int) -> bytes:
        """See the base class; pread, so processes forked from one reader do not disturb each other."""
        handle = os.open(self.root / path, os.O_RDONLY)
        try:
            return os.pread(handle, end - start, start)
        finally:
            os.close(handle)

    def write(self, path: str, data: bytes) -> None:
        """See the base class."""
        final = self.root / path
        with _explained(self.name(path)), self._written(final, data) as partial:
            os.replace(partial, final)
            _fsync_folder(final.parent)

    def create(self, path: str, data: bytes) -> bool:
        """See the base class."""
        final = self.root / path
        with _explained(self.name(path)), self._written(final, data) as partial:
            try:
                os.link(partial, final)
            except FileExistsError:
                return False
            finally:
                partial.unlink()
            _fsync_folder(final.parent)
        return True

    def delete(self, path: str) -> None:
        """See the base class."""
        file = self.root / path
        with _explained(self.name(path)), contextlib.suppress(FileNotFoundError):
            file.unlink()
            _fsync_folder(file.parent)

    def sizes(self) -> dict[str, int]:
        """See the base class."""
        found = {}
        for folder, _, names in os.walk(self.root):
            for name in names:
                file = Path(folder, name)
                # A file may be renamed or removed by another job while we look.
                with contextlib.suppress(FileNotFoundError):
                    if not name.endswith(PARTIAL):
                        found[file.relative_to(self.root).as_posix()] = file.stat().st_size
        return found

    def sweep(self) -> None:
        """See the base class."""
        for folder, _, names in os.walk(self.root):
            for name in names:
                if name.endswith(PARTIAL):
                    Path(folder, name).unlink(missing_ok=True)

    @contextlib.contextmanager
    def _written(self, final: Path, data: bytes) -> Iterator[Path]:
        make_folder(final.parent)
        partial = final.with_name(f"{final.name}.{uuid.uuid4().hex}{PARTIAL}")
        try:
            with partial.open("wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            yield partial
        except BaseException:
            partial.unlink(missing_ok=True)
            raise


class RemoteFiles(StoreFiles):
    """A store behind an fsspec file system; a put is atomic there, a rename is not, so nothing is renamed."""

    is_local = False

    def __init__(self, uri: str, filesystem: Any, root: str) -> None:
        """``root`` is the path of ``uri`` inside ``filesystem``."""
        self.uri, self.filesystem, self.root = uri, filesystem, root.rstrip("/")

    def read(self, path: str) -> bytes:
        """See the base class."""
        return bytes(self.filesystem.cat_file(f"{self.root}/{path}"))

    def read_range(self, path: str, start: int, end: int) -> bytes:
        """See the base class."""
        return bytes(self.filesystem.cat_file(f"{self.root}/{path}", start=start, end=end))

    def write(self, path: str, data: bytes) -> None:
        """See the base class."""
        with _explained(self.name(path)):
            self._put(path, data, mode="overwrite")

    def create(self, path: str, data: bytes) -> bool:
        """See the base class; where the service knows no put-if-absent this is look, then put."""
        with _explained(self.name(path)):
            self.filesystem.invalidate_cache()
            if self.filesystem.exists(f"{self.root}/{path}"):
                return False
            try:
                self._put(path, data, mode="create")
            except FileExistsError:
                return False
        return True

    def delete(self, path: str) -> None:
        """See the base class."""
        with _explained(self.name(path)), contextlib.suppress(FileNotFoundError):
            self.filesystem.rm_file(f"{self.root}/{path}")

    def sizes(self) -> dict[str, int]:
        """See the base class."""
        self.filesystem.invalidate_cache()
        try:
            found = self.filesystem.find(self.root, detail=True)
        except FileNotFoundError:
            return {}
        inside = len(self.root.strip("/")) + 1
        return {name.strip("/")[inside:]: entry["size"] for name, entry in found.items()}

    def sweep(self) -> None:
        """See the base class; an unfinished put leaves nothing."""

    def read_many(self, paths: Iterable[str]) -> dict[str, bytes]:
        """See the base class; services answer many requests at once."""
        full = {f"{self.root}/{path}": path for path in paths}
        if not full:
            return {}
        answers = self.filesystem.cat(list(full), on_error="return")
        found = {}
        for name, answer in answers.items():
            if isinstance(answer, FileNotFoundError):
                continue
            if isinstance(answer, Exception):
                raise answer
            # Some file systems answer with a leading slash and some without.
            found[full.get(name) or full.get(f"/{name}") or full[name.lstrip("/")]] = bytes(answer)
        return found

    def _put(self, path: str, data: bytes, *, mode: str) -> None:
        name = f"{self.root}/{path}"
        try:
            self.filesystem.pipe_file(name, data, mode=mode)
        except FileNotFoundError:
            # Object stores have no folders, but some file systems behind fsspec do.
            self.filesystem.makedirs(name.rpartition("/")[0], exist_ok=True)
            self.filesystem.pipe_file(name, data, mode=mode)


class ArrowFiles(ArrowFSWrapper):  # type: ignore[misc]
    """fsspec's view of a pyarrow file system; the original opens a range from byte 0 as a stream it cannot seek."""

    def cat_file(self, path: str, start: int | None = None, end: int | None = None, **kwargs: Any) -> bytes:
        """Bytes ``start`` to ``end`` of a file."""
        with self.fs.open_input_file(path) as file:
            size = file.size()
            first, last = start or 0, size if end is None else min(end, size)
            return bytes(file.read_at(max(last - first, 0), first))


def _remote_filesystem(uri: str, scheme: str) -> tuple[Any, str]:
    try:
        filesystem, root = fsspec.core.url_to_fs(uri)
        return filesystem, str(root)
    except ValueError as error:
        raise InputError(f"no file system is known for {scheme}://", where=uri, got=str(error)) from error
    except ImportError as missing:
        return _arrow_filesystem(uri, scheme, missing)


def _arrow_filesystem(uri: str, scheme: str, missing: ImportError) -> tuple[Any, str]:
    """pyarrow brings S3, GCS and HDFS itself, so a missing fsspec plug-in is not the end."""
    from pyarrow import fs

    try:
        filesystem, root = fs.FileSystem.from_uri(uri)
    except Exception as error:
        raise EnvironmentProblemError(
            f"{scheme}:// needs a package that is not installed",
            where=uri,
            got=str(missing),
            fix=f"pip install the fsspec plug-in for {scheme} (s3fs, gcsfs, adlfs, ...) on every machine",
        ) from error
    return ArrowFiles(filesystem), root


@contextlib.contextmanager
def _explained(name: str) -> Iterator[None]:
    """Turn a full disk or a missing permission into words; the published part of the store stays as it was."""
    try:
        yield
    except OSError as error:
        raise EnvironmentProblemError(
            "a file of the store cannot be written",
            where=name,
            got=error.strerror or str(error),
            fix="make room (or ask for write access), then run the same command again: finished shards are kept",
        ) from error


def make_folder(folder: Path) -> None:
    """Like mkdir -p, but each new name is on the disk before anything is put below it."""
    if folder.is_dir():
        return
    make_folder(folder.parent)
    folder.mkdir(exist_ok=True)
    _fsync_folder(folder.parent)


def _fsync_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
