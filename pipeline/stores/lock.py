"""One writing job per store and kind: a file lock where the operating system has one, and a lease everywhere.

The lease is a small file with a random token and a counter that its holder raises. Nobody compares clocks: another job
watches the counter. It is refused when the counter moves, and takes the lease over when it has stood still for the
whole ``lease_seconds``. So a killed job is found out where there are leases alone, as on object stores; where the
operating system has a file lock, that decides at once. Tasks carry the token, so a worker that outlived its killed
driver finds another token there and publishes nothing.
"""

import contextlib
import json
import logging
import os
import socket
import threading
import time
import uuid
from pathlib import Path
from types import TracebackType

from filelock import FileLock, Timeout

from pipeline.errors import InputError
from pipeline.stores.files import LocalFiles, StoreFiles, make_folder

LEASE_SECONDS = 60.0
_POLL_SECONDS = 0.05
_LOG = logging.getLogger(__name__)


class StoreBusyError(InputError):
    """Another job is writing the store (exit 3)."""


class StoreLock:
    """Held by the job that writes; use as a context manager or call :meth:`acquire` and :meth:`release`."""

    def __init__(self, files: StoreFiles, name: str, *, lease_seconds: float | None = None) -> None:
        """``name`` tells the locks of one store apart; ``lease_seconds`` is LEASE_SECONDS by default."""
        self.files, self.token = files, uuid.uuid4().hex
        self.lease_seconds = LEASE_SECONDS if lease_seconds is None else lease_seconds
        self.path = lease_path(name)
        self._file_lock = self._make_file_lock(name)
        self._stop = threading.Event()
        self._writing = threading.Lock()
        self._beating: threading.Thread | None = None
        self._beat = 0

    def acquire(self, timeout: float = 0.0) -> "StoreLock":
        """Take the lock.

        Args:
            timeout: Seconds to wait for a job that is alive. Whether it is may take up to ``lease_seconds`` to find
                out, also with a timeout of 0.

        Raises:
            StoreBusyError: Another job holds it and goes on holding it.
        """
        start, watch, is_told = time.monotonic(), _Watch(), False
        while True:
            lease = self._read()
            watch.see(lease)
            is_free = self._lock_file()
            if is_free and self._take(lease, is_stale=watch.seconds_still >= self.lease_seconds):
                break
            waited = time.monotonic() - start
            is_settled = watch.has_moved or not is_free or waited >= timeout + 2 * self.lease_seconds
            if is_settled and waited >= timeout:
                self._unlock_file()
                raise self._busy(lease)
            if is_free and not is_told:
                text = "%s: looking for up to %.0f s whether %s is still writing"
                _LOG.warning(text, self.files.uri, self.lease_seconds, _holder(lease))
                is_told = True
            time.sleep(_POLL_SECONDS if self.files.is_local else min(self.lease_seconds / 20, 1.0))
        self._stop.clear()
        self._beating = threading.Thread(target=self._keep_alive, daemon=True, name=f"lease {self.path}")
        self._beating.start()
        return self

    def bar_workers(self) -> bool:
        """Change the token, so that no worker publishes from now on; whether the lock was still held."""
        with self._writing:
            if not self.is_held():
                return False
            self.token = uuid.uuid4().hex
            self.files.write(self.path, self._lease())
        return True

    def is_held(self) -> bool:
        """Whether nobody has taken the lock over."""
        return bool(_token_of(self._read()) == self.token)

    def release(self) -> None:
        """Give it back; a lease that someone took over is left to them."""
        if self._beating:
            self._stop.set()
            self._beating.join()
            self._beating = None
            # A store that cannot be reached any more must not hide the error that ended the work.
            with contextlib.suppress(Exception):
                if self.is_held():
                    self.files.delete(self.path)
        self._unlock_file()

    def __enter__(self) -> "StoreLock":
        """Already acquired, or acquired now without waiting."""
        return self if self._beating else self.acquire()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Release."""
        self.release()

    def _make_file_lock(self, name: str) -> FileLock | None:
        if not isinstance(self.files, LocalFiles):
            return None
        path = self.files.root / f".{name}.lock"
        return FileLock(path, thread_local=False, fallback_to_soft=False, preserve_lock_file=True)

    def _lock_file(self) -> bool:
        if self._file_lock is None or self._file_lock.is_locked:
            return True
        make_folder(Path(self._file_lock.lock_file).parent)
        try:
            self._file_lock.acquire(timeout=0)
        except Timeout:
            return False
        except NotImplementedError:
            # Some network disks have no locks; the lease alone has to do.
            self._file_lock = None
        return True

    def _unlock_file(self) -> None:
        if self._file_lock is not None:
            self._file_lock.release()

    def _take(self, lease: bytes | None, *, is_stale: bool) -> bool:
        if lease is None:
            if not self.files.create(self.path, self._lease()):
                return False
        elif is_stale or self._is_dead(lease):
            self.files.write(self.path, self._lease())
        else:
            return False
        if not self.files.is_local:
            # Two jobs may have put at once; the last put stays, and both see the same one.
            time.sleep(4 * _POLL_SECONDS)
        return _token_of(self._read()) == self.token

    def _is_dead(self, lease: bytes) -> bool:
        """The file lock is ours, so a holder on this machine can only have been killed."""
        return self._file_lock is not None and _parse(lease).get("host") == socket.gethostname()

    def _keep_alive(self) -> None:
        while not self._stop.wait(self.lease_seconds / 6):
            # A missed beat is no reason to die: the tasks' token check decides.
            with contextlib.suppress(Exception), self._writing:
                if not self.is_held():
                    return
                self.files.write(self.path, self._lease())

    def _lease(self) -> bytes:
        self._beat += 1
        lease = {"token": self.token, "host": socket.gethostname(), "pid": os.getpid(), "beat": self._beat}
        return json.dumps(lease).encode()

    def _read(self) -> bytes | None:
        return self.files.read_many([self.path]).get(self.path)

    def _busy(self, lease: bytes | None) -> StoreBusyError:
        return StoreBusyError(
            "another job is writing this store",
            where=self.files.uri,
            expected="no other writer",
            got=_holder(lease),
            fix="wait for it to end, then run the same command again",
        )


class _Watch:
    """How long a lease has stood still, and whether it ever moved."""

    def __init__(self) -> None:
        self.has_moved = False
        self._lease: bytes | None = None
        self._since = time.monotonic()

    def see(self, lease: bytes | None) -> None:
        """What is there now."""
        if lease != self._lease:
            # From or to nothing is another job's coming or going, which says nothing of a next one.
            self.has_moved |= lease is not None and self._lease is not None
            self._lease, self._since = lease, time.monotonic()

    @property
    def seconds_still(self) -> float:
        """Since the last change that was seen."""
        return time.monotonic() - self._since


def lease_path(name: str) -> str:
    """Where the lease of the lock ``name`` lies in a store."""
    return f".{name}.lease"


def check_token(files: StoreFiles, name: str, token: str) -> None:
    """Refuse to publish for a job that lost its store.

    Raises:
        StoreBusyError: The lease is gone or another job's.
    """
    path = lease_path(name)
    lease = files.read_many([path]).get(path)
    if _token_of(lease) != token:
        raise StoreBusyError(
            "this worker belongs to a job that no longer holds the store; nothing was published",
            where=files.uri,
            expected=f"lease {token[:8]}",
            got=f"lease {str(_token_of(lease))[:8]}",
            fix="let this worker end; the job that holds the store does its shards",
        )


def _holder(lease: bytes | None) -> str:
    values = _parse(lease or b"{}")
    return f"process {values.get('pid', '?')} on {values.get('host', '?')}"


def _parse(lease: bytes) -> dict[str, object]:
    try:
        values = json.loads(lease)
    except ValueError:
        return {}
    return values if isinstance(values, dict) else {}


def _token_of(lease: bytes | None) -> object:
    return _parse(lease or b"{}").get("token")
