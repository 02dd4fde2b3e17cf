"""Stores behind an address, without a server: what clients raise, forks, odd names, leases of the dead."""

import logging
import multiprocessing
import pickle
import uuid
from types import SimpleNamespace

import pytest

from pipeline.errors import EnvironmentProblemError
from pipeline.stores import files as store_files
from pipeline.stores.arrow_files import ArrowFiles, open_address
from pipeline.stores.files import RemoteFiles, open_files
from pipeline.stores.lock import StoreBusyError, StoreLock


@pytest.fixture
def files():
    return open_files(f"memory://bucket-{uuid.uuid4().hex}/store [1]*")


class Silent:
    """A plug-in whose server does not answer; its error is of no class that we know."""

    protocol = ("s3", "s3a")

    def __getattr__(self, name):
        def call(*_arguments, **_options):
            raise ClientTrouble("could not connect\nlong story")

        return call


class ClientTrouble(Exception):
    pass


@pytest.mark.parametrize(
    ("method", "arguments"),
    [
        ("read", ["a"]),
        ("read_range", ["a", 0, 1]),
        ("read_many", [["a"]]),
        ("write", ["a", b"1"]),
        ("create", ["a", b"1"]),
        ("delete", ["a"]),
        ("sizes", []),
    ],
)
def test_a_server_that_does_not_answer_is_the_environments_fault(method, arguments):
    with pytest.raises(EnvironmentProblemError, match="ClientTrouble: could not connect") as caught:
        getattr(RemoteFiles("s3://bucket/store", Silent(), "bucket/store"), method)(*arguments)
    assert "AWS_ENDPOINT_URL" in str(caught.value)
    assert "long story" not in str(caught.value)


def test_a_single_failure_among_many_answers_is_not_taken_for_a_missing_file(files, monkeypatch):
    files.write("a", b"1")

    def some(paths, *_):
        return [b"1", PermissionError("no")][: len(paths)]

    monkeypatch.setattr(files.filesystem, "cat_ranges", some, raising=False)
    assert files.read_many(["a"]) == {"a": b"1"}
    with pytest.raises(EnvironmentProblemError, match="PermissionError: no"):
        files.read_many(["a", "b"])


def test_pyarrow_asked_of_a_silent_server_does_not_answer_that_the_folder_is_empty():
    def get_file_info(_):
        raise OSError("timeout")

    silent = ArrowFiles(SimpleNamespace(type_name="s3", get_file_info=get_file_info))
    with pytest.raises(EnvironmentProblemError, match="timeout"):
        RemoteFiles("s3://bucket/store", silent, "bucket/store").sizes()


def test_brackets_and_stars_in_a_path_are_no_pattern(files):
    files.write("records/a", b"1")
    assert files.read_many(["records/a", "records/b"]) == {"records/a": b"1"}
    assert files.sizes() == {"records/a": 1}


def test_no_bucket_is_made_of_a_mistyped_name():
    class NoBucket(Silent):
        def pipe_file(self, *_arguments, **_options):
            raise FileNotFoundError("NoSuchBucket")

    with pytest.raises(EnvironmentProblemError, match="bucket of the store does not exist") as caught:
        RemoteFiles("s3://bukket/store", NoBucket(), "bukket/store").write("a", b"1")
    assert "no bucket bukket" in str(caught.value)


def test_a_copy_and_a_forked_process_connect_anew(files, monkeypatch):
    files.write("a", b"1")
    mine = files.filesystem
    assert pickle.loads(pickle.dumps(files)).read("a") == b"1"
    opened = []
    real = store_files._remote_filesystem

    def counted(*arguments):
        opened.append(arguments)
        return real(*arguments)

    monkeypatch.setattr(store_files, "_remote_filesystem", counted)
    assert files.filesystem is mine
    assert opened == []
    context = multiprocessing.get_context("fork")
    answers = context.SimpleQueue()
    child = context.Process(target=lambda: answers.put((files.read("a"), files.read("a"), len(opened))))
    child.start()
    assert answers.get() == (b"1", b"1", 1)
    child.join()


def test_the_slash_that_a_path_option_swallowed_is_put_back():
    assert open_files("memory:/bucket/store").uri == "memory://bucket/store"


@pytest.mark.parametrize("uri", ["quux://host/x", "s3://bucket/x?no_such_option=1"])
def test_an_address_that_pyarrow_cannot_open_either_tells_both_reasons(uri):
    with pytest.raises(EnvironmentProblemError, match="Install it; pyarrow's own client: ") as caught:
        open_address(uri, uri.partition(":")[0], ImportError("Install it"))
    assert "pip install" in str(caught.value)


def die(lock):
    """Its process is gone: no heart beat, and nothing was given back."""
    lock._stop.set()
    lock._beating.join()


def test_a_job_that_was_killed_on_an_object_store_is_found_out_without_a_timeout(files, caplog):
    killed = StoreLock(files, "proposals", lease_seconds=0.5).acquire()
    die(killed)
    with caplog.at_level(logging.WARNING), StoreLock(files, "proposals", lease_seconds=0.5) as lock:
        assert lock.token != killed.token
    assert "whether process" in caplog.text
    assert files.sizes() == {}


def test_a_job_that_is_alive_on_an_object_store_is_left_alone(files):
    with StoreLock(files, "proposals", lease_seconds=0.5) as held:
        with pytest.raises(StoreBusyError, match="another job is writing"):
            StoreLock(files, "proposals", lease_seconds=0.5).acquire()
        assert held.token.encode() in files.read(held.path)
