"""A DataLoader's process leaves it to its parent what a signal to both of them means."""

import os
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import pytest
import torch

from pipeline.models.stop_hook import begin_reading

pytestmark = pytest.mark.skipif(not hasattr(signal, "sigtimedwait"), reason="this system tells no sender of a signal")
BEGUN = []


class Processes(torch.utils.data.Dataset):
    """Item: the process that reads, and what was begun there."""

    def __len__(self):
        return 8

    def __getitem__(self, index):
        return torch.tensor([os.getpid(), *BEGUN])


@pytest.fixture
def reading():
    start = partial(begin_reading, BEGUN.append)
    loader = torch.utils.data.DataLoader(Processes(), batch_size=None, num_workers=1, worker_init_fn=start, timeout=60)
    items = iter(loader)
    yield items
    items._shutdown_workers()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_to_the_group_ends_no_reading(reading, number):
    first = next(reading).tolist()
    assert first[0] != os.getpid()
    subprocess.run(["kill", f"-{int(number)}", str(first[0])], check=True)
    assert [item.tolist() for item in reading] == [first] * 7


def test_it_begins_with_what_else_it_is_given(reading):
    assert next(reading).tolist()[1:] == [0]


def test_its_parent_ends_it(reading):
    next(reading)
    process = reading._workers[0]
    process.terminate()
    process.join(30)
    assert process.exitcode == 0


KILLED = """
import os, signal
from functools import partial
import numpy as np, torch
from pipeline.models.stop_hook import begin_reading

class Large(torch.utils.data.Dataset):
    def __len__(self):
        return 100
    def __getitem__(self, index):
        return np.zeros(1 << 20)

loader = torch.utils.data.DataLoader(
    Large(), batch_size=None, num_workers=2, worker_init_fn=partial(begin_reading, None), collate_fn=lambda item: item
)
items = iter(loader)
next(items)
print(*(process.pid for process in items._workers), flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_none_outlives_its_parent(tmp_path):
    """With more to write than a pipe holds, which nobody reads any more."""
    with (tmp_path / "said").open("w+") as said:
        parent = subprocess.run([sys.executable, "-c", KILLED], timeout=120, check=False, stdout=said)
        assert parent.returncode == -signal.SIGKILL
        said.seek(0)
        readers = [int(word) for word in said.read().split()]
    assert len(readers) == 2
    deadline = time.monotonic() + 60
    while any(is_running(reader) for reader in readers):
        assert time.monotonic() < deadline
        time.sleep(0.2)


def is_running(process):
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False
