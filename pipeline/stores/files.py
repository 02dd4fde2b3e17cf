"""The files of a store, on a local disk or behind a URI: whole files in, whole files or ranges out.

A local file is published by writing beside it, fsync and rename; an object store publishes a put by itself. Nothing
else in the stores knows where they are.

Addresses such as ``s3://bucket/folder`` go through fsspec's plug-in (``pip install 's4m-pipeline[s3]'`` brings s3fs)
and, where that is not installed, through pyarrow's own client. Both take what the AWS tools take from the environment:
``AWS_ACCESS_KEY_ID`` and ``AWS_SECRET_ACCESS_KEY`` (or a profile, or the machine's role), ``AWS_DEFAULT_REGION``, and
for MinIO and the like ``AWS_ENDPOINT_URL=http://HOST:PORT``. Set them on every machine of a cluster. The bucket must
exist. s3fs takes a lock by a conditional put; pyarrow's client has none, so there two jobs that start within the same
fifth of a second are told apart by who wrote last.
"""

import contextlib
import os
import re
import uuid
from abc import ABC, abstractmethod
from collections.abc import Collection, Iterable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlparse

import fsspec

from pipeline.errors import EnvironmentProblemError, InputError, PipelineError
from pipeline.stores.arrow_files import ArrowFiles, first_line, open_address

PARTIAL = ".partial"
_WITH_BUCKETS = {"s3", "s3a", "gs", "gcs"}
"""Services without folders, on which making one would make a bucket of a mistyped name."""


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
    def sweep(self, paths: Collection[str]) -> None:
        """Remove what a killed writer left unfinished of these files; others may be being written just now."""

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
        EnvironmentProblemError: The scheme needs a package that is not installed, or the service does not answer.
        InputError: Nothing knows the scheme.
    """
    # A command line option that is a path has lost one of the two slashes.
    text = re.sub(r"^([a-z][a-z0-9+]+):/(?=[^/])", r"\1://", os.fspath(uri))
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
        # Also where it is gone already: who removed it may not have come to this.
        with _explained(self.name(path)), contextlib.suppress(FileNotFoundError):
            file.unlink(missing_ok=True)
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

    def sweep(self, paths: Collection[str]) -> None:
        """See the base class."""
        for folder, _, names in os.walk(self.root):
            for name in names:
                file = Path(folder, name)
                if name.endswith(PARTIAL) and _finished_name(file).relative_to(self.root).as_posix() in paths:
                    file.unlink(missing_ok=True)

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
    """A store behind an fsspec file system; a put is atomic there, a rename is not, so nothing is renamed.

    Beside what the base class says every method raises EnvironmentProblemError where the service cannot be reached or
    refuses: trouble on the way must not be taken for a damaged store.
    """

    is_local = False

    def __init__(self, uri: str, filesystem: Any, root: str) -> None:
        """``root`` is the path of ``uri`` inside ``filesystem``."""
        self.uri, self.root = uri, root.rstrip("/")
        self._filesystem, self._process = filesystem, os.getpid()

    def __reduce__(self) -> tuple[Any, ...]:
        """Another process makes connections of its own."""
        return open_files, (self.uri,)

    @property
    def filesystem(self) -> Any:
        """Of this process: event loops and connections do not survive the fork of a data loader's worker."""
        if self._process != os.getpid():
            self._filesystem, _ = _remote_filesystem(self.uri, urlparse(self.uri).scheme)
            self._process = os.getpid()
        return self._filesystem

    def read(self, path: str) -> bytes:
        """See the base class."""
        with _answered(self.name(path)):
            return bytes(self.filesystem.cat_file(f"{self.root}/{path}"))

    def read_range(self, path: str, start: int, end: int) -> bytes:
        """See the base class."""
        with _answered(self.name(path)):
            return bytes(self.filesystem.cat_file(f"{self.root}/{path}", start=start, end=end))

    def write(self, path: str, data: bytes) -> None:
        """See the base class."""
        with _answered(self.name(path)):
            self._put(path, data, mode="overwrite")

    def create(self, path: str, data: bytes) -> bool:
        """See the base class; where the service knows no put-if-absent this is look, then put."""
        with _answered(self.name(path)):
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
        with contextlib.suppress(FileNotFoundError), _answered(self.name(path)):
            self.filesystem.rm_file(f"{self.root}/{path}")

    def sizes(self) -> dict[str, int]:
        """See the base class."""
        try:
            with _answered(self.uri):
                self.filesystem.invalidate_cache()
                found = self.filesystem.find(self.root, detail=True)
        except FileNotFoundError:
            return {}
        inside = len(self.root.strip("/")) + 1
        return {name.strip("/")[inside:]: entry["size"] for name, entry in found.items()}

    def sweep(self, paths: Collection[str]) -> None:
        """See the base class; an unfinished put leaves nothing."""

    def read_many(self, paths: Iterable[str]) -> dict[str, bytes]:
        """See the base class; services answer many requests at once."""
        wanted = list(paths)
        if not wanted:
            return {}
        with _answered(self.uri):
            # Not cat, which takes brackets and stars of a path for a pattern.
            answers = self.filesystem.cat_ranges([f"{self.root}/{path}" for path in wanted], None, None)
            failures = [x for x in answers if isinstance(x, Exception) and not isinstance(x, FileNotFoundError)]
            if failures:
                raise failures[0]
        found = zip(wanted, answers, strict=True)
        return {path: bytes(answer) for path, answer in found if not isinstance(answer, FileNotFoundError)}

    def _put(self, path: str, data: bytes, *, mode: str) -> None:
        name = f"{self.root}/{path}"
        try:
            self.filesystem.pipe_file(name, data, mode=mode)
        except FileNotFoundError as error:
            protocol = self.filesystem.protocol
            if not _WITH_BUCKETS.isdisjoint([protocol] if isinstance(protocol, str) else protocol):
                raise EnvironmentProblemError(
                    "the bucket of the store does not exist",
                    where=self.uri,
                    got=f"no bucket {self.root.partition('/')[0]}",
                    fix="correct the address, or make the bucket",
                ) from error
            # Object stores have no folders, but some file systems behind fsspec do.
            self.filesystem.makedirs(name.rpartition("/")[0], exist_ok=True)
            self.filesystem.pipe_file(name, data, mode=mode)


def _remote_filesystem(uri: str, scheme: str) -> tuple[Any, str]:
    try:
        filesystem, root = fsspec.core.url_to_fs(uri)
        return filesystem, str(root)
    except ValueError as error:
        raise InputError(
            f"no file system is known for {scheme}://",
            where=uri,
            got=str(error),
            fix="name a local folder, or an address such as s3://bucket/folder",
        ) from error
    except ImportError as missing:
        # pyarrow brings S3, GCS and HDFS itself, so a missing plug-in is not the end.
        found, root = open_address(uri, scheme, missing)
        return ArrowFiles(found), root
    except Exception as error:  # some clients connect at once, and raise whatever their library does
        raise _no_answer(uri, error) from error


@contextlib.contextmanager
def _answered(name: str) -> Iterator[None]:
    """Turn what a service's client raises, of whatever class, into words; a file that is not there stays that."""
    try:
        yield
    except (FileNotFoundError, PipelineError):
        raise
    except Exception as error:
        raise _no_answer(name, error) from error


def _no_answer(name: str, error: Exception) -> EnvironmentProblemError:
    return EnvironmentProblemError(
        "the service that holds the store did not do what was asked",
        where=name,
        got=first_line(error),
        fix="check address, credentials and network (s3: AWS_ENDPOINT_URL, AWS_ACCESS_KEY_ID, "
        "AWS_SECRET_ACCESS_KEY), then run the same command again: finished shards are kept",
    )


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


def _finished_name(partial: Path) -> Path:
    """``a/b.json`` of ``a/b.json.0123abcd.partial``."""
    return partial.with_name(partial.name.removesuffix(PARTIAL).rpartition(".")[0])


def _fsync_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
