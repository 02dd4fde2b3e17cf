"""A DataLoader's process leaves it to its parent what a signal to both of them means."""

import os
import signal
import subprocess
from functools import partial

import pytest
import torch

from pipeline.models.stop_hook import begin_reading

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
