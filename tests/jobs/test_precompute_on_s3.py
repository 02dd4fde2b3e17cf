"""``precompute-sam`` into a store on a local S3 server, with s3fs and with pyarrow's own client."""

import json
import logging
import multiprocessing
import os
import signal
import sys
import urllib.request
import uuid
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from fsspec.registry import _registry as loaded_plugins

from data_schemas.proposals import Proposal
from jobs import doctor
from jobs.precompute_sam import precompute, run
from jobs.settings import PrecomputeSettings, SamSettings, SimilaritySettings
from pipeline.errors import EnvironmentProblemError, StoreDamagedError
from pipeline.sam.generator_settings import GeneratorSettings
from pipeline.stores import lock
from pipeline.stores.files import RemoteFiles, open_files
from pipeline.stores.lock import StoreBusyError
from pipeline.stores.proposal_store import ProposalStore
from pipeline.stores.similarity_store import SimilarityStore
from pipeline.stores.verify import verify
from tests.fakes import FakeSam
from tests.jobs.toys import fake_sam, store_files, write_coco
from tests.s3_faults import die_before_put, fill_and_die
from tests.unit.toy_stores import fill

LEASE_SECONDS = 0.8
CLIENTS = {"s3fs": "S3FileSystem", "pyarrow": "ArrowFiles"}


@pytest.fixture(scope="module")
def endpoint():
    server = pytest.importorskip("moto.server", reason="moto is not installed: pip install 'moto[server]'")
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    thread = server.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    thread.start()
    yield "http://{}:{}".format(*thread.get_host_and_port())
    thread.stop()


@pytest.fixture
def environment(endpoint, monkeypatch):
    """What a user of MinIO sets, and nothing of the machine's own."""
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    values = {
        "AWS_ENDPOINT_URL": endpoint,
        "AWS_ACCESS_KEY_ID": "minio",
        "AWS_SECRET_ACCESS_KEY": "minio123",
        "AWS_CONFIG_FILE": os.devnull,
        "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
    }
    for name, value in values.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(lock, "LEASE_SECONDS", LEASE_SECONDS)
    monkeypatch.setattr(lock, "_POLL_SECONDS", 0.01)
    return values


@pytest.fixture(params=CLIENTS)
def uri(request, environment, monkeypatch):
    """Of a store in a new bucket."""
    if request.param == "s3fs":
        pytest.importorskip("s3fs", reason="s3fs is not installed: pip install s3fs")
    else:
        monkeypatch.setitem(sys.modules, "s3fs", None)  # as if it were not installed
    for name in ("s3", "s3a"):
        monkeypatch.delitem(loaded_plugins, name, raising=False)
    bucket = f"bucket-{uuid.uuid4().hex[:8]}"
    make_bucket = urllib.request.Request(f"{environment['AWS_ENDPOINT_URL']}/{bucket}", method="PUT")
    urllib.request.urlopen(make_bucket).close()
    uri = f"s3://{bucket}/stores/one"
    assert type(open_files(uri).filesystem).__name__ == CLIENTS[request.param]
    yield uri
    if request.param == "s3fs":
        # Its instances remember the address of a server that is about to go.
        open_files(uri).filesystem.clear_instance_cache()


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_coco(tmp_path_factory.mktemp("data"), 5, labelled=3)


def make_settings(data, store):
    return PrecomputeSettings(
        images=str(data),
        store=str(store),
        sam=SamSettings("fake"),
        similarity=SimilaritySettings(num_inside=4, num_uniform=4, rows_per_chunk=4),
        proposals=GeneratorSettings(points_per_side=4),
        images_per_shard=2,
    )


@pytest.fixture
def settings(uri, data):
    return make_settings(data, uri)


@pytest.fixture(scope="module")
def local(tmp_path_factory, data):
    """The same store on the disk."""
    store = tmp_path_factory.mktemp("local") / "store"
    precompute(make_settings(data, store), make_backend=fake_sam)
    return store


def contents(uri):
    """Path -> bytes of every object, leases included."""
    files = open_files(uri)
    assert isinstance(files, RemoteFiles)
    return files.read_many(files.sizes())


def test_a_store_is_written_once_and_holds_what_a_local_one_holds(settings, uri, local, capsys):
    precompute(settings, make_backend=fake_sam)
    assert contents(uri) == store_files(local)  # no lease is left either
    assert verify(uri) == []
    capsys.readouterr()
    precompute(settings, make_backend=lambda _: Blind())
    out = capsys.readouterr().out
    assert "similarity: skipped 2, redo 0, new 0" in out
    assert "proposals: skipped 3, redo 0, new 0" in out
    here, there = ProposalStore.open(local), ProposalStore.open(uri)
    assert there.image_ids() == here.image_ids() == list(range(10, 15))
    for image_id in here.image_ids():
        found = there.read(image_id)
        assert found == here.read(image_id)
        assert all(isinstance(proposal, Proposal) for proposal in found)
    rows, wanted = SimilarityStore.open(uri), SimilarityStore.open(local)
    for image_id in (10, 11, 12):
        assert rows.read(image_id).similarity.tolist() == wanted.read(image_id).similarity.tolist()
    loader = torch.utils.data.DataLoader(Reader(uri), batch_size=None, num_workers=1, timeout=60)
    assert [tuple(read) for read in loader] == [Reader(local)[place] for place in range(3)]


class Blind(FakeSam):
    def embed(self, images):
        raise AssertionError("nothing was to be computed")


class Reader(torch.utils.data.Dataset):
    """Opened before the workers are forked, read in them, as a training does."""

    def __init__(self, uri):
        self.proposals, self.similarity = ProposalStore.open(uri), SimilarityStore.open(uri)
        self.first = self.proposals.read(10)

    def __len__(self):
        return 3

    def __getitem__(self, place):
        rows = self.similarity.read(10 + place, torch.tensor([0, 5]).numpy())
        return [p.area for p in self.proposals.read(10 + place)], rows.points_xy.tolist()


class Killed(BaseException):
    pass


def test_a_killed_precompute_is_gone_on_with(settings, uri, local, monkeypatch, capsys):
    def end():
        dying.setattr(lock.StoreLock, "release", lambda self: self._stop.set())  # the dead give nothing back
        raise Killed

    with monkeypatch.context() as dying:
        dying.setattr(RemoteFiles, "_put", die_before_put(20, end))  # data, but no record, of the second Parquet file
        with pytest.raises(Killed):
            precompute(settings, make_backend=fake_sam)
    assert ".proposals.lease" in contents(uri)
    capsys.readouterr()
    precompute(settings, make_backend=fake_sam)  # waits until the lease of the dead has stood still
    out = capsys.readouterr().out
    assert "similarity: skipped 2, redo 0, new 0" in out
    assert "proposals: skipped 1, redo 1, new 1" in out
    assert contents(uri) == store_files(local)


@pytest.fixture(scope="module")
def spawner():
    """Processes forked from a server without threads."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.s3_faults", "s3fs"])
    return context


def test_a_writer_that_gets_sigkill_is_made_good(uri, environment, spawner, tmp_path):
    has_s3fs = sys.modules.get("s3fs", False) is not None
    # Between data and record of the second Parquet file; between two of the three files of the first Zarr shard.
    kind, number, left = ("proposals", 5, "redo 1, new 1") if has_s3fs else ("similarity", 8, "redo 1, new 2")
    options = {"environment": environment, "has_s3fs": has_s3fs, "number": number, "lease_seconds": LEASE_SECONDS}
    process = spawner.Process(target=fill_and_die, args=(uri, kind), kwargs=options)
    process.start()
    process.join(60)
    assert process.exitcode == -signal.SIGKILL
    assert f".{kind}.lease" in contents(uri)
    assert verify(uri) == []  # whatever a record speaks of is whole
    assert fill(uri, kind).endswith(left)
    fill(tmp_path / "local", kind)
    assert contents(uri) == store_files(tmp_path / "local")


def test_the_second_of_two_jobs_is_refused_and_the_first_goes_on(settings, uri, local):
    refused = []

    class Rival(FakeSam):
        def embed(self, images):
            if not refused:
                with pytest.raises(StoreBusyError) as caught:
                    precompute(settings, make_backend=fake_sam)
                refused.append(caught.value)
            return super().embed(images)

    precompute(settings, make_backend=lambda _: Rival())
    assert f"process {os.getpid()} on" in str(refused[0])
    assert contents(uri) == store_files(local)


def test_damaged_objects_are_named_and_only_their_shards_are_made_again(settings, uri, local, capsys):
    precompute(settings, make_backend=fake_sam)
    files = open_files(uri)
    starts = ("similarity.zarr/similarity/c/1/", "proposals/")
    damaged = [next(path for path in sorted(files.sizes()) if path.startswith(start)) for start in starts]
    for path in damaged:
        data = bytearray(files.read(path))
        data[len(data) // 2] ^= 16
        files.write(path, bytes(data))
    damages = verify(uri)
    assert sorted((damage.file, damage.kind) for damage in damages) == sorted((path, "checksum") for path in damaged)
    num_images = sum(len(json.loads(files.read(f"records/{d.shard_id}.json"))["outcomes"]) for d in damages)
    with pytest.raises(StoreDamagedError, match="2 files of the store are damaged"):
        doctor._check_store(uri, repair=False)
    doctor._check_store(uri, repair=True)
    assert "4 files removed" in capsys.readouterr().out
    sam = FakeSam()
    precompute(settings, make_backend=lambda _: sam)
    assert len(sam.embedded) == num_images
    out = capsys.readouterr().out
    assert "similarity: skipped 1, redo 1, new 0" in out
    assert "proposals: skipped 2, redo 1, new 0" in out
    assert contents(uri) == store_files(local)


def test_a_bucket_that_does_not_exist_is_refused_before_anything_is_computed(settings, uri):
    missing = replace(settings, store="s3://no-such-bucket/store")
    with pytest.raises(EnvironmentProblemError, match=r"s3://no-such-bucket/store") as caught:
        precompute(missing, make_backend=lambda _: Blind())
    assert "bucket" in str(caught.value).lower()


def test_an_address_on_the_command_line_is_an_address(uri, data, tmp_path, monkeypatch):
    """``--work-dir`` is a path, and a path swallows one of two slashes."""
    config = tmp_path / "config.py"
    config.write_text(
        f'images = "{data}"\nstore = "elsewhere"\nsam = dict(name="fake")\ntargets = ["proposals"]\n'
        "proposals = dict(points_per_side=4)\nimages_per_shard = 2\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(
        "jobs.precompute_sam.precompute.__kwdefaults__", precompute.__kwdefaults__ | {"make_backend": fake_sam}
    )
    run(config, work_dir=Path(uri))
    assert ProposalStore.open(uri).image_ids() == list(range(10, 15))
    assert [path.name for path in tmp_path.iterdir()] == ["config.py"]
