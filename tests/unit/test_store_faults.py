"""Killed writers, two writers, rotten bits: what is left is always a store, and running again makes it whole."""

import itertools
import json
import os
import resource
import signal
import time

import pytest
from killing import STEPS, die_at, fork_server, run
from toy_stores import IMAGES, commit, contents, fill, make_identity, open_writer

from pipeline.errors import EnvironmentProblemError, InputError, StoreDamagedError
from pipeline.stores.files import LocalFiles, open_files
from pipeline.stores.lock import StoreBusyError, StoreLock
from pipeline.stores.proposal_store import ProposalStore
from pipeline.stores.similarity_store import SimilarityStore
from pipeline.stores.verify import drop_damaged, verify

KINDS = ["proposals", "similarity"]
MOMENTS = {"write": (1, 6, 11), "fsync": (6, 17, 31), "replace": (1, 5, 9), "unlink": (1, 5, 9)}
"""Calls at which a kill lands: early, in the middle, and late, when the index is written and the lock given back."""


@pytest.fixture(scope="module")
def spawner():
    return fork_server()


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    found = {}
    for kind in KINDS:
        root = tmp_path_factory.mktemp(kind)
        fill(root, kind)
        found[kind] = contents(root)
    return found


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize("moments", ["few", pytest.param("all", marks=pytest.mark.slow)])
def test_a_writer_killed_anywhere_is_made_good_by_running_again(tmp_path, spawner, uninterrupted, kind, step, moments):
    num_killed, left_to_do = 0, set()
    for when in MOMENTS[step] if moments == "few" else itertools.count():
        root = tmp_path / str(when)
        code = run(spawner, die_at, step, when, fill, root, kind)
        assert code in (0, -signal.SIGKILL)
        if code == 0:
            break
        num_killed += 1
        if (root / "manifest.json").exists():
            assert verify(root) == []  # whatever a record speaks of is whole
            store = (ProposalStore if kind == "proposals" else SimilarityStore).open(root)
            for image_id in store.image_ids():
                store.read(image_id)
        left_to_do.add(fill(root, kind))
        assert contents(root) == uninterrupted[kind], f"killed before {step} number {when}"
    assert num_killed >= 2
    assert len(left_to_do) > 1  # the kills did not all land in the same shard


def work_slowly(root, barrier, seconds):
    with open_writer(root) as writer:
        barrier.wait(30)
        time.sleep(seconds)
        for task in writer.missing().tasks:
            commit(task)


def test_a_second_job_is_refused_and_may_wait(tmp_path, spawner, uninterrupted):
    barrier = spawner.Barrier(2)
    process = spawner.Process(target=work_slowly, args=(tmp_path, barrier, 0.5))
    process.start()
    barrier.wait(30)
    with pytest.raises(StoreBusyError) as caught:
        open_writer(tmp_path)
    assert f"process {process.pid} on" in str(caught.value)
    assert caught.value.exit_code == 3
    with open_writer(tmp_path, "similarity"):
        pass  # another kind is another job
    with open_writer(tmp_path, lock_timeout=30) as writer:
        assert writer.missing().summary() == "skipped 3, redo 0, new 0"
    process.join(30)
    assert process.exitcode == 0
    assert {p: d for p, d in contents(tmp_path).items() if p.startswith("proposals")} == {
        p: d for p, d in uninterrupted["proposals"].items() if p.startswith("proposals")
    }


def hold(root, barrier):
    open_writer(root)
    barrier.wait(30)
    time.sleep(60)


def test_the_lock_of_a_killed_job_is_taken_over_at_once(tmp_path, spawner):
    barrier = spawner.Barrier(2)
    process = spawner.Process(target=hold, args=(tmp_path, barrier))
    process.start()
    barrier.wait(30)
    process.kill()
    process.join()
    assert fill(tmp_path) == "skipped 0, redo 0, new 3"


def test_a_worker_that_outlived_its_job_publishes_nothing(tmp_path):
    with open_writer(tmp_path) as old:
        orphaned = old.missing().tasks[0]
    with pytest.raises(StoreBusyError, match="no longer holds"):
        commit(orphaned)
    with open_writer(tmp_path) as new:
        with pytest.raises(StoreBusyError, match="nothing was published"):
            commit(orphaned)
        assert new.missing().summary() == "skipped 0, redo 0, new 3"


@pytest.mark.parametrize("uri", ["memory://lease/{}", "{}"])
def test_a_lease_is_taken_over_only_when_it_stands_still(tmp_path, uri):
    files = open_files(uri.format(str(tmp_path)))
    held = StoreLock(files, "proposals", lease_seconds=0.6).acquire()
    if isinstance(files, LocalFiles):
        # As if the holder were on another machine that shares the disk but not the file lock.
        held._file_lock.release()
        held._lease = lambda: json.dumps({"token": held.token, "host": "elsewhere", "beat": time.time()}).encode()
        files.write(held.path, held._lease())
    rival = StoreLock(files, "proposals", lease_seconds=0.6)
    with pytest.raises(StoreBusyError):
        rival.acquire(timeout=1.5)  # the holder's heart beats every 0.1 s
    held._stop.set()  # its process is gone
    held._beating.join()
    rival.acquire(timeout=5)
    assert json.loads(files.read(rival.path))["token"] == rival.token
    held.release()  # late, and without harm to the new holder
    assert json.loads(files.read(rival.path))["token"] == rival.token
    rival.release()
    assert files.read_many([rival.path]) == {}


def flip(path, position):
    data = bytearray(path.read_bytes())
    data[position] ^= 16
    path.write_bytes(data)


def files_of(root):
    return sorted(path for path in root.rglob("*") if path.is_file() and not path.name.startswith("."))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("fault", ["flip", "cut", "delete"])
def test_any_damaged_file_is_found_dropped_and_redone(tmp_path, uninterrupted, kind, fault):
    fill(tmp_path, kind)
    index = f"index/{kind}.arrows"
    for path in files_of(tmp_path):
        name = path.relative_to(tmp_path).as_posix()
        whole = path.read_bytes()
        if fault == "flip":
            flip(path, len(whole) // 2)
        elif fault == "cut":
            path.write_bytes(whole[:-1] if path.suffix != ".json" else whole[:-40])
        else:
            path.unlink()
        if fault == "delete" and name == "manifest.json":
            with pytest.raises(InputError, match="no store"):
                verify(tmp_path)
        elif fault == "delete" and name == index:
            assert verify(tmp_path) == []  # the records say the same
        else:
            damages = verify(tmp_path)
            # A shard without a record is unfinished, not damaged, but the index speaks of it.
            found = index if fault == "delete" and name.startswith("records/") else name
            assert [damage.file for damage in damages] == [found]
            assert drop_damaged(tmp_path, damages) != [] or name.endswith("zarr.json") or name.startswith("plan/")
        is_shard = name.startswith(("records/", "proposals/")) or "/c/" in name
        # A shard of which neither record nor data is left is new again.
        again = "redo 0, new 1" if fault == "delete" and name.startswith("proposals/") else "redo 1, new 0"
        assert fill(tmp_path, kind) == (f"skipped 2, {again}" if is_shard else "skipped 3, redo 0, new 0")
        assert contents(tmp_path) == uninterrupted[kind]
        assert verify(tmp_path) == []


def test_verify_says_what_was_expected_and_found(tmp_path):
    fill(tmp_path, "similarity")
    points, kinds, rows = (
        tmp_path / "similarity.zarr" / name / ("c/1" + "/0" * dims)
        for name, dims in [("points_xy", 2), ("point_kind", 1), ("similarity", 3)]
    )
    flip(points, 3)
    kinds.unlink()
    rows.write_bytes(rows.read_bytes() + b"!")
    found = {damage.kind: damage for damage in verify(tmp_path)}
    assert set(found) == {"checksum", "missing", "size"}
    assert found["size"].got == f"{rows.stat().st_size} bytes"
    assert found["checksum"].expected != found["checksum"].got
    (shard_id,) = {damage.shard_id for damage in found.values()}
    removed = drop_damaged(tmp_path, list(found.values()))
    assert removed == ["index/similarity.arrows", f"records/{shard_id}.json"]


def test_a_damaged_manifest_or_record_is_named_by_readers_and_writers(tmp_path):
    fill(tmp_path)
    record = next((tmp_path / "records").iterdir())
    flip(record, 60)
    assert len(ProposalStore.open(tmp_path).image_ids()) == 6  # the index has a sound copy of it
    (tmp_path / "index/proposals.arrows").unlink()
    with pytest.raises(StoreDamagedError, match=record.name) as caught:
        ProposalStore.open(tmp_path)
    assert caught.value.exit_code == 5
    flip(tmp_path / "manifest.json", 200)
    for call in (ProposalStore.open, open_writer):
        with pytest.raises(StoreDamagedError, match=r"manifest\.json") as caught:
            call(tmp_path)
        assert f"doctor {tmp_path}" in str(caught.value)


def test_a_file_of_the_right_size_but_another_content_is_redone_after_verify_only(tmp_path, uninterrupted):
    """The quick look of a resumed run trusts sizes; ``verify`` reads everything."""
    fill(tmp_path)
    flip(next((tmp_path / "proposals").iterdir()), 100)
    assert fill(tmp_path) == "skipped 3, redo 0, new 0"
    drop_damaged(tmp_path, verify(tmp_path))
    assert fill(tmp_path) == "skipped 2, redo 1, new 0"
    assert contents(tmp_path) == uninterrupted["proposals"]


def test_strangers_and_leftovers_are_never_read(tmp_path, uninterrupted):
    fill(tmp_path)
    own = sorted((tmp_path / "proposals").glob("*.parquet"))[0].name
    (tmp_path / "proposals" / f"{own}.123.partial").write_bytes(b"half")
    (tmp_path / "proposals" / "stray.parquet").write_bytes(b"not parquet")
    (tmp_path / "pseudo_labels.parquet.123.partial").write_bytes(b"half, of a job that may be alive")
    (tmp_path / "records" / "0123456789abcdef0123.json").write_bytes(b"{}")
    assert verify(tmp_path) == []
    assert len(ProposalStore.open(tmp_path).image_ids()) == 6
    assert fill(tmp_path) == "skipped 3, redo 0, new 0"
    assert f"proposals/{own}.123.partial" not in contents(tmp_path)
    assert "pseudo_labels.parquet.123.partial" in contents(tmp_path)


def test_a_shard_done_again_does_not_stand_under_its_old_record(tmp_path, monkeypatch):
    """Killed between new data and new record: the old record must be gone, even where the sizes agree."""
    fill(tmp_path)
    with open_writer(tmp_path) as writer:
        (task,) = writer.missing(retry_quarantined=True).redo
        real = LocalFiles.write

        def stop_at_record(self, path, data):
            if path.startswith("records/"):
                raise KeyboardInterrupt
            real(self, path, data)

        monkeypatch.setattr(LocalFiles, "write", stop_at_record)
        with pytest.raises(KeyboardInterrupt):
            commit(task)
        monkeypatch.undo()
        assert writer.missing().summary() == "skipped 2, redo 1, new 0"


def fill_with_file_limit(root):
    resource.setrlimit(resource.RLIMIT_FSIZE, (3500, 3500))
    try:
        fill(root)
    except EnvironmentProblemError as error:
        os._exit(error.exit_code)


def test_a_disk_that_takes_no_more_ends_with_exit_code_6_and_a_sound_store(tmp_path, spawner, uninterrupted):
    assert run(spawner, fill_with_file_limit, tmp_path) == 6
    assert verify(tmp_path) == []
    assert not list(tmp_path.rglob("*.partial"))
    assert fill(tmp_path) != "skipped 3, redo 0, new 0"
    assert contents(tmp_path) == uninterrupted["proposals"]


def test_a_read_only_store_can_be_read(tmp_path):
    fill(tmp_path)
    folders = [tmp_path, *(path for path in tmp_path.rglob("*") if path.is_dir())]
    for folder in folders:
        folder.chmod(0o555)
    try:
        store = ProposalStore.open(tmp_path, expect=make_identity())
        assert [len(store.read(i)) >= 0 for i in store.image_ids()] == [True] * (len(IMAGES) - 1)
        assert verify(tmp_path) == []
    finally:
        for folder in folders:
            folder.chmod(0o755)
