"""Opening a store by its index: the same as by its records, whatever was killed, redone, damaged or copied."""

import os
import pickle
import shutil
import uuid

import pytest
from killing import deaths, fork_server
from toy_stores import (
    BAD_IMAGE,
    EMPTY_IMAGE,
    IMAGES,
    commit,
    contents,
    fill,
    make_identity,
    make_proposals,
    open_writer,
)

from data_schemas.manifest import ImageKey, Manifest, seal
from pipeline.errors import InputError, StoreDamagedError, StoreMismatchError
from pipeline.stores.consolidated import index_of_records, read_index
from pipeline.stores.files import LocalFiles, RemoteFiles, open_files
from pipeline.stores.index import ImageNotStoredError, StoreIndex
from pipeline.stores.lock import StoreBusyError
from pipeline.stores.proposal_store import ProposalStore, commit_proposals
from pipeline.stores.shards import read_manifest
from pipeline.stores.verify import drop_damaged, verify
from pipeline.stores.writer import preview, remove_part

KINDS = ["proposals", "similarity"]
INDEX, IMAGE_LIST = "index/proposals.arrows", "plan/proposals.parquet"


@pytest.fixture(scope="module")
def spawner():
    return fork_server()


def memory_uri():
    return f"memory://index-{uuid.uuid4().hex}/store"


def view(index):
    """All that an index says, errors included."""
    found = {"ids": index.image_ids, "bad": index.quarantined}
    for image_id in [image.image_id for image in IMAGES] + [0, 4, 99]:
        try:
            entry = index.find(image_id)
        except ImageNotStoredError as error:
            found[image_id] = str(error)
        else:
            image = ImageKey(image_id, entry.image.file_name, entry.image.height, entry.image.width)
            found[image_id] = (image, (entry.shard_index, entry.slot, entry.group, entry.outcome, entry.files))
    return found


def view_by_records(uri, kind="proposals"):
    files = open_files(uri)
    part = read_manifest(files).parts[kind]
    return view(StoreIndex(files, part, index_of_records(files, part)))


def has_index(root, kind="proposals"):
    return (root / f"index/{kind}.arrows").exists()


def retry(root):
    """Redo the shard with the quarantined image, which has been mended."""
    with open_writer(root) as writer:
        for task in writer.missing(retry_quarantined=True).tasks:
            commit_proposals(task, {image.image_id: make_proposals(image) for image in task.plan.images})


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("is_local", [True, False])
def test_a_store_opens_the_same_by_its_index_and_by_its_records(tmp_path, kind, is_local):
    uri = tmp_path if is_local else memory_uri()
    with open_writer(uri, kind) as writer:  # the last shard stays to be done
        for task in writer.missing().tasks[:2]:
            commit(task)
    by_index = view(StoreIndex.open(uri, kind))
    assert by_index["ids"] == [3, 5, 7, 11, 13]
    assert list(by_index["bad"]) == [BAD_IMAGE]
    assert "truncated" in by_index[BAD_IMAGE]
    assert "folder/009.jpg" in by_index[BAD_IMAGE]
    assert "6 of 7 images done" in by_index[15]
    assert "never part" in by_index[4]
    image, (shard_index, slot, group, outcome, files) = by_index[13]
    assert image == IMAGES[5]
    assert (shard_index, slot, outcome.status) == (1, 2, "ok")
    assert group == 1  # the image before it has rows, the quarantined one has none
    assert len(files) == (1 if kind == "proposals" else 3)
    if kind == "proposals":
        assert by_index[EMPTY_IMAGE][1][3].rows == 0
        assert by_index[7][1][2] == 1  # the empty image has no row group
    assert by_index == view_by_records(uri, kind)
    open_files(uri).delete(f"index/{kind}.arrows")
    assert view(StoreIndex.open(uri, kind)) == by_index


def test_the_index_is_what_is_read(tmp_path):
    fill(tmp_path)
    before = view(StoreIndex.open(tmp_path, "proposals"))
    shutil.rmtree(tmp_path / "records")
    assert view(StoreIndex.open(tmp_path, "proposals")) == before
    (damage,) = verify(tmp_path)
    assert (damage.file, damage.kind) == (INDEX, "index")


def test_a_remote_store_opens_in_two_requests(monkeypatch):
    uri = memory_uri()
    fill(uri)
    requests = []
    real = RemoteFiles.read_many

    def counted(self, paths):
        paths = list(paths)
        requests.append(paths)
        return real(self, paths)

    monkeypatch.setattr(RemoteFiles, "read_many", counted)
    monkeypatch.setattr(RemoteFiles, "read", None)
    monkeypatch.setattr(RemoteFiles, "read_range", None)
    index = StoreIndex.open(uri, "proposals")
    assert [index.find(i).image[:3] for i in (3, 15)] == [(3, 40, 33), (15, 40, 45)]
    assert requests == [["manifest.json"], [INDEX]]
    assert index.find(3).image.file_name == "folder/003.jpg"
    assert index.find(5).image.file_name == "folder/005.jpg"
    assert requests[2:] == [[IMAGE_LIST]]


@pytest.mark.parametrize(
    "step", ["unlink", *(pytest.param(s, marks=pytest.mark.slow) for s in ("replace", "write", "fsync"))]
)
def test_a_retry_killed_anywhere_leaves_no_stale_index(tmp_path, spawner, step):
    fill(tmp_path / "start")
    assert has_index(tmp_path / "start")
    with_index, killed = set(), 0
    for root in deaths(spawner, tmp_path / "start", tmp_path, step, retry):
        assert view(StoreIndex.open(root, "proposals")) == view_by_records(root)
        assert verify(root) == []
        with_index.add(has_index(root))
        killed += 1
        retry(root)
        assert view(StoreIndex.open(root, "proposals")) == view_by_records(root)
        assert StoreIndex.open(root, "proposals").quarantined == {}
        assert has_index(root)
    assert killed >= 4
    # Killed before the index was deleted, and after; nothing is replaced before.
    assert with_index == ({False} if step == "replace" else {True, False})


@pytest.mark.parametrize("kind", ["proposals", pytest.param("similarity", marks=pytest.mark.slow)])
def test_a_removal_killed_anywhere_leaves_a_sound_store_and_can_be_repeated(tmp_path, spawner, kind):
    fill(tmp_path / "start", kind)
    whole, num = contents(tmp_path / "start"), 0
    remove = remove_proposals if kind == "proposals" else remove_similarity
    for root in deaths(spawner, tmp_path / "start", tmp_path, "unlink", remove):
        if (root / "manifest.json").exists():
            assert view(StoreIndex.open(root, kind)) == view_by_records(root, kind)
            assert verify(root) == []
        else:
            with pytest.raises(InputError, match="no manifest"):
                StoreIndex.open(root, kind)
        fill(root, kind)
        assert contents(root) == whole
        num += 1
    assert num > 8


def remove_proposals(root):
    remove_part(root, "proposals")


def remove_similarity(root):
    remove_part(root, "similarity")


def test_a_shard_done_again_takes_the_index_away_until_the_job_ends(tmp_path):
    fill(tmp_path)
    with open_writer(tmp_path) as writer:
        assert has_index(tmp_path)
        (task,) = writer.missing(retry_quarantined=True).redo
        commit_proposals(task, {image.image_id: make_proposals(image) for image in task.plan.images})
        assert not has_index(tmp_path)
        assert StoreIndex.open(tmp_path, "proposals").quarantined == {}
    assert has_index(tmp_path)
    assert len(ProposalStore.open(tmp_path).read(BAD_IMAGE)) > 0
    assert view(StoreIndex.open(tmp_path, "proposals")) == view_by_records(tmp_path)


def test_the_index_is_gone_before_the_first_record_changes(tmp_path, monkeypatch):
    fill(tmp_path)
    with open_writer(tmp_path) as writer:
        (task,) = writer.missing(retry_quarantined=True).redo
        real = LocalFiles.delete

        def looking(self, path):
            assert not path.startswith("records/") or not has_index(tmp_path)
            real(self, path)

        monkeypatch.setattr(LocalFiles, "delete", looking)
        commit(task)
        monkeypatch.undo()


def test_a_worker_that_lags_behind_publishes_nothing_while_the_records_are_put_together(tmp_path, monkeypatch):
    with open_writer(tmp_path) as writer:
        tasks = writer.missing().tasks
        for task in tasks[:2]:
            commit(task)
        real, refused = LocalFiles.write, []

        def write(self, path, data):
            if path == INDEX:  # the records have been read
                with pytest.raises(StoreBusyError, match="nothing was published"):
                    commit(tasks[2])
                refused.append(path)
            real(self, path, data)

        monkeypatch.setattr(LocalFiles, "write", write)
    assert refused == [INDEX]
    assert verify(tmp_path) == []
    assert StoreIndex.open(tmp_path, "proposals").image_ids == [3, 5, 7, 11, 13]


def test_a_job_that_lost_its_store_writes_no_index(tmp_path):
    writer = open_writer(tmp_path)
    for task in writer.missing().tasks:
        commit(task)
    writer.files.write(".proposals.lease", b'{"token": "of another job"}')
    writer.close()
    assert not has_index(tmp_path)


def test_a_job_that_loses_its_store_while_it_reads_the_records_writes_no_index(tmp_path, monkeypatch):
    with open_writer(tmp_path) as writer:
        for task in writer.missing().tasks:
            commit(task)
        real = LocalFiles.read_many

        def taken_over(self, paths):
            paths = list(paths)
            if paths[0].startswith("records/"):
                self.write(".proposals.lease", b'{"token": "of another job"}')
            return real(self, paths)

        monkeypatch.setattr(LocalFiles, "read_many", taken_over)
    assert not has_index(tmp_path)


def test_only_a_job_that_ended_well_writes_an_index(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        end_badly(tmp_path)
    assert not has_index(tmp_path)
    with open_writer(tmp_path / "empty"):
        pass
    assert not has_index(tmp_path / "empty")
    with open_writer(tmp_path):  # does nothing, but ends
        pass
    assert has_index(tmp_path)


def end_badly(root):
    with open_writer(root) as writer:
        commit(writer.missing().tasks[0])
        raise KeyboardInterrupt


def test_no_index_hides_a_damaged_record(tmp_path):
    fill(tmp_path)
    flip(next((tmp_path / "records").iterdir()), 60)
    (tmp_path / INDEX).unlink()
    with open_writer(tmp_path):
        pass
    assert not has_index(tmp_path)
    with pytest.raises(StoreDamagedError, match="record of a shard"):
        StoreIndex.open(tmp_path, "proposals")


def test_a_sound_index_is_left_as_it_is(tmp_path):
    fill(tmp_path)
    before = (tmp_path / INDEX).stat()
    fill(tmp_path)
    assert (tmp_path / INDEX).stat().st_ino == before.st_ino


def flip(path, position):
    data = bytearray(path.read_bytes())
    data[position] ^= 16
    path.write_bytes(data)


@pytest.mark.parametrize("fault", ["flip", "cut", "empty", "foreign"])
def test_readers_survive_a_damaged_index_and_doctor_names_and_removes_it(tmp_path, fault):
    fill(tmp_path)
    whole = contents(tmp_path)
    before, path = view(StoreIndex.open(tmp_path, "proposals")), tmp_path / INDEX
    if fault == "flip":
        flip(path, 1000)
    elif fault == "foreign":
        shutil.copy(tmp_path / IMAGE_LIST, path)
    else:
        path.write_bytes(b"" if fault == "empty" else path.read_bytes()[:-5])
    assert view(StoreIndex.open(tmp_path, "proposals")) == before
    (damage,) = damages = verify(tmp_path)
    assert (damage.file, damage.kind) == (INDEX, "index")
    assert "checksum" in damage.got
    assert drop_damaged(tmp_path, damages) == [INDEX]
    assert verify(tmp_path) == []
    assert fill(tmp_path) == "skipped 3, redo 0, new 0"
    assert contents(tmp_path) == whole


def test_a_run_replaces_a_damaged_index(tmp_path):
    fill(tmp_path)
    whole = contents(tmp_path)
    flip(tmp_path / INDEX, 1000)
    assert fill(tmp_path) == "skipped 3, redo 0, new 0"
    assert contents(tmp_path) == whole


@pytest.mark.parametrize(
    "changes",
    [{"identity": make_identity(sam_sha256="b" * 64)}, {"images": IMAGES[:-1]}, {"images_per_shard": 2}],
    ids=["weights", "images", "shards"],
)
def test_an_index_of_another_plan_is_not_believed(tmp_path, changes):
    fill(tmp_path / "store")
    fill(tmp_path / "other", **changes)
    before = view(StoreIndex.open(tmp_path / "store", "proposals"))
    shutil.copy(tmp_path / "other" / INDEX, tmp_path / "store" / INDEX)
    files = open_files(tmp_path / "store")
    assert isinstance(read_index(files, read_manifest(files).parts["proposals"]), ValueError)
    assert view(StoreIndex.open(tmp_path / "store", "proposals")) == before
    assert [(damage.file, damage.kind) for damage in verify(tmp_path / "store")] == [(INDEX, "index")]


def test_an_index_that_disagrees_with_the_records_is_named(tmp_path):
    """Of the same plan, but copied from a store in which the bad image was mended."""
    fill(tmp_path / "store")
    fill(tmp_path / "other")
    retry(tmp_path / "other")
    shutil.copy(tmp_path / "other" / INDEX, tmp_path / "store" / INDEX)
    (damage,) = verify(tmp_path / "store")
    assert (damage.file, damage.expected) == (INDEX, "what the records say")


def test_dropping_a_record_drops_the_index_first(tmp_path, monkeypatch):
    fill(tmp_path)
    fill(tmp_path, "similarity")
    flip(next((tmp_path / "proposals").iterdir()), 100)
    deleted, real = [], LocalFiles.delete

    def noting(self, path):
        deleted.append(path)
        real(self, path)

    monkeypatch.setattr(LocalFiles, "delete", noting)
    removed = drop_damaged(tmp_path, verify(tmp_path))
    assert removed[:2] == [INDEX, "index/similarity.arrows"]
    assert [path.split("/")[0] for path in removed[2:]] == ["records"]
    assert [path for path in deleted if not path.endswith(".lease")] == removed
    assert view(StoreIndex.open(tmp_path, "proposals")) == view_by_records(tmp_path)


def test_doctor_waits_for_every_kind_of_job(tmp_path):
    fill(tmp_path)
    flip(tmp_path / INDEX, 1000)
    identity = make_identity("pseudo_labels")
    with open_writer(tmp_path, identity=identity), pytest.raises(StoreBusyError):
        drop_damaged(tmp_path, verify(tmp_path))


def test_the_list_of_images_is_read_only_when_it_is_needed(tmp_path):
    fill(tmp_path)
    (tmp_path / IMAGE_LIST).unlink()
    index = StoreIndex.open(tmp_path, "proposals")
    entry = index.find(3)
    assert (entry.image.image_id, entry.image.width) == (3, 33)
    assert len(ProposalStore(index).read(3)) == entry.outcome.rows
    for ask in (lambda: entry.image.file_name, lambda: index.find(4), lambda: index.images):
        with pytest.raises(StoreDamagedError, match="list of the store's images") as caught:
            ask()
        assert caught.value.where.endswith(IMAGE_LIST)
    (tmp_path / INDEX).unlink()
    with pytest.raises(StoreDamagedError, match="no file"):
        StoreIndex.open(tmp_path, "proposals")
    assert [(damage.file, damage.kind) for damage in verify(tmp_path)] == [(IMAGE_LIST, "missing")]
    fill(tmp_path)
    assert StoreIndex.open(tmp_path, "proposals").find(3).image.file_name == "folder/003.jpg"


def test_shards_are_checked_without_the_list_of_images(tmp_path):
    fill(tmp_path)
    flip(tmp_path / IMAGE_LIST, 100)
    victim = next((tmp_path / "proposals").iterdir())
    flip(victim, 100)
    names = [damage.file for damage in verify(tmp_path)]
    assert names == [IMAGE_LIST, f"proposals/{victim.name}"]


def test_a_damaged_list_of_images_is_replaced_even_by_another_writer_of_parquet(tmp_path, monkeypatch):
    """What another version of pyarrow writes has other bytes; the manifest then states those."""
    fill(tmp_path)
    before, record = view(StoreIndex.open(tmp_path, "proposals")), contents(tmp_path)
    flip(tmp_path / IMAGE_LIST, 100)
    from data_schemas import image_list

    real = image_list.pq.write_table

    def uncompressed(table, sink, **options):
        real(table, sink, **{**options, "compression": "none"})

    monkeypatch.setattr(image_list.pq, "write_table", uncompressed)
    assert fill(tmp_path) == "skipped 3, redo 0, new 0"
    assert contents(tmp_path)[IMAGE_LIST] != record[IMAGE_LIST]
    assert verify(tmp_path) == []
    assert view(StoreIndex.open(tmp_path, "proposals")) == before
    monkeypatch.undo()
    now = contents(tmp_path)
    assert fill(tmp_path) == "skipped 3, redo 0, new 0"
    assert contents(tmp_path) == now  # sound, so it stays


def test_a_copy_in_another_process_opens_the_store_itself(tmp_path):
    fill(tmp_path / "store")
    index = StoreIndex.open(tmp_path / "store", "proposals")
    before = view(index)
    pickled = pickle.dumps(index)
    assert len(pickled) < 1000
    assert view(pickle.loads(pickled)) == before
    shutil.rmtree(tmp_path / "store")
    fill(tmp_path / "store", identity=make_identity(sam_sha256="b" * 64))
    with pytest.raises(StoreMismatchError, match="sam_sha256"):
        pickle.loads(pickled)


def test_a_store_of_the_first_version_is_named_and_kept_by_repair(tmp_path):
    fill(tmp_path)
    whole = contents(tmp_path)
    for name in (INDEX, IMAGE_LIST):
        (tmp_path / name).unlink()
    (tmp_path / "manifest.json").write_bytes(seal({"manifest_version": 1, "parts": {}}))
    with pytest.raises(StoreDamagedError, match="of another version") as caught:
        StoreIndex.open(tmp_path, "proposals")
    assert "manifest version 1, this program reads 2" in str(caught.value)
    assert drop_damaged(tmp_path, verify(tmp_path)) == ["manifest.json"]
    assert fill(tmp_path) == "skipped 3, redo 0, new 0"
    assert contents(tmp_path) == whole


def test_the_manifest_does_not_hold_the_images(tmp_path):
    fill(tmp_path)
    data = (tmp_path / "manifest.json").read_bytes()
    assert b"folder/" not in data
    part = Manifest.from_bytes(data).parts["proposals"]
    assert part.num_images == len(IMAGES)


def test_images_that_cannot_be_listed_are_refused_before_anything_is_written(tmp_path):
    for call in (open_writer, preview_of):
        with pytest.raises(InputError, match="cannot be listed"):
            call(tmp_path, images=(ImageKey(2**63, "a.jpg", 4, 4),))
    assert contents(tmp_path) == {}


def preview_of(uri, *, images):
    return preview(uri, make_identity(), images, images_per_shard=3)


def test_a_deletion_outlives_a_power_cut_whoever_came_first(tmp_path, monkeypatch):
    """The name may be gone while its folder is not on the disk yet: whoever goes on must see to that."""
    files = LocalFiles(tmp_path)
    files.write("index/a", b"x")
    (tmp_path / "index/a").unlink()  # by a worker that was killed then
    synced, real = [], os.fsync
    monkeypatch.setattr(
        os, "fsync", lambda handle: (synced.append(os.readlink(f"/proc/self/fd/{handle}")), real(handle))
    )
    files.delete("index/a")
    assert synced == [str(tmp_path / "index")]
    files.delete("nowhere/a")
