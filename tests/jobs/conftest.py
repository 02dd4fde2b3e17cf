"""Made once for all tests of the jobs that only read it."""

import pytest


@pytest.fixture(scope="session")
def demo(tmp_path_factory):
    from tests.jobs.toy_demo import write_demo

    return write_demo(tmp_path_factory.mktemp("demo"))
