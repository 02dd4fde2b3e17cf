"""A job on an S3 store that is killed, for tests/jobs/test_precompute_on_s3.py; a module of its own so that the process
which dies need not import what that test does."""

import os
import signal
import sys

from pipeline.stores import lock
from pipeline.stores.files import RemoteFiles
from tests.unit.toy_stores import fill


def die_before_put(number, end):
    """Call ``end`` in place of the put of that number, counted from 0; leases, which are put by the clock, not counted.

    Returns:
        What stands in for ``RemoteFiles._put``.
    """
    real, left = RemoteFiles._put, number

    def dying(self, path, data, *, mode):
        nonlocal left
        left -= not path.startswith(".")
        if left < 0:
            end()
        real(self, path, data, mode=mode)

    return dying


def fill_and_die(uri, kind, *, environment, has_s3fs, number, lease_seconds):
    """Fill a toy store; SIGKILL oneself before a put."""
    os.environ.update(environment)
    if not has_s3fs:
        sys.modules["s3fs"] = None
    lock.LEASE_SECONDS = lease_seconds
    RemoteFiles._put = die_before_put(number, lambda: os.kill(os.getpid(), signal.SIGKILL))
    fill(uri, kind)
