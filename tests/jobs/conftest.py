"""What tests of the jobs share: a small demo, made once for all that only read it, and torch on one thread."""

import pytest
import torch


@pytest.fixture
def one_thread():
    """Sums over several threads are rounded in another order, and programs set the number for the whole process."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def demo(tmp_path_factory):
    from tests.jobs.toy_demo import write_demo

    return write_demo(tmp_path_factory.mktemp("demo"))
