"""Plans, resume, refusals and the two kinds of file systems; faults are in test_store_faults.py."""

import dataclasses
import errno
import os
import pickle
import uuid

import pytest
from pyarrow import fs
from toy_stores import BAD_IMAGE, IMAGES, LAYOUT, commit, contents, fill, make_identity, make_proposals, open_writer

from data_schemas.manifest import ImageKey, ImageOutcome
from data_schemas.similarity import SimilarityLayout
from pipeline.errors import EnvironmentProblemError, InputError, StoreMismatchError
from pipeline.stores.files import ArrowFiles, LocalFiles, RemoteFiles, open_files
from pipeline.stores.lock import StoreBusyError, StoreLock
from pipeline.stores.proposal_store import ProposalStore, commit_proposals
from pipeline.stores.shards import plan_shards, read_manifest, shard_id
from pipeline.stores.similarity_store import SimilarityStore
from pipeline.stores.verify import verify
from pipeline.stores.writer import StoreCounts, preview, remove_part

IDENTITY = make_identity()


def test_shards_are_cut_by_rising_id_whatever_the_order_given():
    plans = plan_shards(IDENTITY, IMAGES[::-1], images_per_shard=3)
    assert [[image.image_id for image in plan.images] for plan in plans] == [[3, 5, 7], [9, 11, 13], [15]]
    assert plans == plan_shards(IDENTITY, IMAGES, images_per_shard=3)
    assert [plan.index for plan in plans] == [0, 1, 2]


def test_an_id_changes_with_everything_that_decides_the_content():
    base = shard_id(IDENTITY, IMAGES)
    assert base == shard_id(make_identity(settings={"box_nms_threshold": 0.7, "points_per_side": 16}), IMAGES)
    renamed = (dataclasses.replace(IMAGES[0], file_name="other.jpg"), *IMAGES[1:])
    resized = (dataclasses.replace(IMAGES[0], height=41), *IMAGES[1:])
    others = [
        shard_id(IDENTITY, IMAGES[1:]),
        shard_id(IDENTITY, renamed),
        shard_id(IDENTITY, resized),
        shard_id(make_identity(sam_sha256="b" * 64), IMAGES),
        shard_id(make_identity(settings={"points_per_side": 17}), IMAGES),
        shard_id(make_identity("similarity"), IMAGES, LAYOUT),
        shard_id(make_identity("similarity"), IMAGES, SimilarityLayout(8, (6, 5), 8)),
    ]
    assert len({base, *others}) == 1 + len(others)


@pytest.mark.parametrize(
    ("images", "per_shard", "words"),
    [((), 3, "no image"), ((*IMAGES, IMAGES[2]), 3, "twice"), (IMAGES, 0, "at least one")],
)
def test_what_is_no_plan(images, per_shard, words):
    with pytest.raises(InputError, match=words):
        plan_shards(IDENTITY, images, images_per_shard=per_shard)


@pytest.mark.parametrize("kind", ["proposals", "similarity"])
def test_a_run_resumes_and_a_finished_run_is_a_no_op(tmp_path, kind):
    with open_writer(tmp_path / "half", kind) as writer:
        work = writer.missing()
        assert work.summary() == "skipped 0, redo 0, new 3"
        commit(work.tasks[1])
        assert writer.missing().summary() == "skipped 1, redo 0, new 2"
    assert fill(tmp_path / "half", kind) == "skipped 1, redo 0, new 2"
    before = contents(tmp_path / "half")
    assert fill(tmp_path / "half", kind) == "skipped 3, redo 0, new 0"
    assert contents(tmp_path / "half") == before
    fill(tmp_path / "whole", kind)
    assert contents(tmp_path / "whole") == before


def test_both_kinds_share_a_directory_and_each_has_its_own_plan(tmp_path):
    fill(tmp_path / "store")
    assert fill(tmp_path / "store", "similarity", images=IMAGES[:2]) == "skipped 0, redo 0, new 1"
    assert fill(tmp_path / "store") == "skipped 3, redo 0, new 0"
    assert len(ProposalStore.open(tmp_path / "store").image_ids()) == 6
    assert SimilarityStore.open(tmp_path / "store").image_ids() == [3, 5]


def test_both_kinds_can_be_written_at_once(tmp_path):
    with open_writer(tmp_path) as one, open_writer(tmp_path, "similarity") as other:
        for task in (*one.missing().tasks, *other.missing().tasks):
            commit(task)
    assert SimilarityStore.open(tmp_path).image_ids() == ProposalStore.open(tmp_path).image_ids()


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"identity": make_identity(sam_sha256="b" * 64)}, ["another sam_sha256", "'" + "a" * 64, "'" + "b" * 64]),
        ({"identity": make_identity(sam_name="x", dataset_fingerprint="e")}, ["dataset_fingerprint, sam_name"]),
        (
            {"identity": make_identity(settings={})},
            ["settings.points_per_side = None", "settings.points_per_side = 16"],
        ),
        ({"images_per_shard": 4}, ["images_per_shard = 4", "images_per_shard = 3"]),
        ({"images": IMAGES[:3]}, ["another images", "3 images", "7 images"]),
    ],
)
def test_a_store_of_other_things_is_refused_with_field_values_and_next_step(tmp_path, changes, words):
    fill(tmp_path)
    before = contents(tmp_path)
    for call in (lambda: open_writer(tmp_path, **changes), lambda: preview_with(tmp_path, **changes)):
        with pytest.raises(StoreMismatchError) as caught:
            call()
        assert all(word in str(caught.value) for word in [*words, "--overwrite", str(tmp_path)])
    assert contents(tmp_path) == before


def preview_with(uri, **changes):
    arguments = {"identity": IDENTITY, "images": IMAGES, "images_per_shard": 3, **changes}
    return preview(uri, **arguments)


def test_the_other_kind_must_come_from_the_same_sam_and_layouts_must_agree(tmp_path):
    fill(tmp_path)
    with pytest.raises(StoreMismatchError, match="sam_sha256"):
        open_writer(tmp_path, "similarity", identity=make_identity("similarity", sam_sha256="b" * 64))
    fill(tmp_path, "similarity")
    with pytest.raises(StoreMismatchError, match=r"layout\.rows_per_chunk = 8"):
        open_writer(tmp_path, "similarity", layout=dataclasses.replace(LAYOUT, rows_per_chunk=8))


def test_a_refusal_names_the_kind_and_advises_to_make_no_other_kind_anew(tmp_path):
    """A changed split makes other targets; the library, hours of work, is still right."""
    fill(tmp_path)
    fill(tmp_path, "similarity")
    with pytest.raises(StoreMismatchError, match=r"^the similarity targets of the store were") as caught:
        open_writer(tmp_path, "similarity", images=IMAGES[:3])
    assert '--overwrite --cfg-options "targets=[similarity]"' in caught.value.fix
    other = make_identity("similarity", sam_sha256="b" * 64)
    with pytest.raises(StoreMismatchError, match=r"^the proposals and similarity targets of the store were") as caught:
        open_writer(tmp_path, "similarity", identity=other)
    assert '"targets=[proposals,similarity]"' in caught.value.fix
    assert caught.value.got.count("sam_sha256") == 1
    with pytest.raises(StoreMismatchError, match=r"^the proposals of the store were") as caught:
        preview_with(tmp_path, identity=other, layout=LAYOUT, replaced=["similarity"])
    assert '"targets=[proposals,similarity]"' in caught.value.fix


def test_what_another_command_made_is_not_advised_to_be_overwritten(tmp_path):
    fill(tmp_path, "similarity")
    with pytest.raises(StoreMismatchError) as caught:
        open_writer(tmp_path, identity=make_identity(sam_name="import:a.json", sam_sha256="b" * 64))
    assert caught.value.fix.startswith("give this run another store path: ")
    imported = tmp_path / "imported"
    fill(imported, identity=make_identity(sam_name="import:a.json"))
    with pytest.raises(StoreMismatchError) as caught:
        open_writer(imported, identity=make_identity(sam_name="import:b.json"))
    assert caught.value.fix.endswith("or --overwrite to make it anew")


def test_a_run_of_pseudo_label_is_told_its_own_option(tmp_path):
    with open_writer(tmp_path / "labels", "pseudo_labels"):
        pass
    fill(tmp_path / "library")
    other = make_identity("pseudo_labels", sam_sha256="b" * 64)
    for folder, fix in (
        ("labels", "choose another --work-dir, or --overwrite to make it anew"),
        ("library", "choose another --work-dir: --overwrite leaves what another command made"),
    ):
        with pytest.raises(StoreMismatchError) as caught:
            open_writer(tmp_path / folder, "pseudo_labels", identity=other)
        assert caught.value.fix == fix


def test_a_writer_of_another_schema_or_without_its_layout_is_refused(tmp_path):
    with pytest.raises(InputError, match="schema"):
        open_writer(tmp_path, identity=make_identity(schema_version=99))
    with pytest.raises(InputError, match="layout"):
        open_writer(tmp_path, "similarity", layout=None)
    assert contents(tmp_path) == {}


def test_a_preview_writes_nothing(tmp_path):
    assert preview_with(tmp_path / "store").summary() == "skipped 0, redo 0, new 3"
    assert not (tmp_path / "store").exists()
    fill(tmp_path / "store")
    assert preview_with(tmp_path / "store").summary() == "skipped 3, redo 0, new 0"


def test_every_image_is_accounted_for(tmp_path):
    with open_writer(tmp_path) as writer:
        task = writer.missing().tasks[0]
        rows = {image.image_id: make_proposals(image) for image in task.plan.images}
        twice = ImageOutcome.quarantined(task.plan.images[0].image_id, stage="decode", reason="x")
        foreign = ImageOutcome.quarantined(999, stage="decode", reason="x")
        short = {i: found for i, found in rows.items() if i != task.plan.images[0].image_id}
        for found, bad in [(short, []), (rows, [twice]), (rows, [foreign])]:
            with pytest.raises(InputError, match="account for each"):
                commit_proposals(task, found, bad)
        assert writer.missing().summary() == "skipped 0, redo 0, new 3"


def test_counts_and_quarantine_with_reason(tmp_path):
    with open_writer(tmp_path) as writer:
        records = [commit(task) for task in writer.missing().tasks]
        counts = writer.counts()
        assert writer.records() == records
        assert writer.missing(retry_quarantined=True).summary() == "skipped 2, redo 1, new 0"
    assert (counts.images_planned, counts.images_ok, counts.images_quarantined) == (7, 6, 1)
    assert counts.quarantined_by_reason == {"decode: truncated": 1}
    assert counts.rows == sum(len(make_proposals(i)) for i in IMAGES if i.image_id not in (BAD_IMAGE, 5))
    bad = ProposalStore.open(tmp_path).quarantined()[BAD_IMAGE]
    assert (bad.stage, bad.reason, bad.retries) == ("decode", "truncated", 2)


def test_of_many_images_set_aside_for_one_reason_the_first_are_named():
    bad = {"read: truncated": tuple(range(22)), "sam: mode F": (30,)}
    counts = StoreCounts(images_planned=40, images_ok=17, images_quarantined=23, rows=0, quarantined=bad)
    first, second = counts.reasons(lambda image_id: f"{image_id}.png")
    assert first.startswith("22 x read: truncated: 0.png, 1.png, ")
    assert first.endswith(", 19.png and 2 more")
    assert second.endswith(": 30.png")
    (odd,) = dataclasses.replace(counts, quarantined={"read: refused": (1,)}).reasons(lambda _: "\ud800.png")
    assert odd == "1 x read: refused: \\ud800.png"


def test_a_quarantined_image_that_was_repaired_replaces_its_shard(tmp_path):
    fill(tmp_path)
    with open_writer(tmp_path) as writer:
        (task,) = writer.missing(retry_quarantined=True).redo
        commit_proposals(task, {image.image_id: make_proposals(image) for image in task.plan.images})
    store = ProposalStore.open(tmp_path)
    assert store.quarantined() == {}
    assert len(store.read(BAD_IMAGE)) > 0


def test_tasks_are_small_and_picklable(tmp_path):
    with open_writer(tmp_path, "similarity") as writer:
        for task in writer.missing().tasks:
            copied = pickle.loads(pickle.dumps(task))
            assert copied == task
            commit(copied)
        assert writer.missing().summary() == "skipped 3, redo 0, new 0"


@pytest.mark.parametrize("kind", ["proposals", "similarity"])
@pytest.mark.parametrize("scheme", ["memory", "arrow"])
def test_an_object_store_is_written_resumed_and_read(tmp_path, kind, scheme, monkeypatch):
    uri = f"memory://bucket-{uuid.uuid4().hex}/stores/one"
    if scheme == "arrow":
        uri = "s3://bucket/one"
        monkeypatch.setattr("pipeline.stores.files._remote_filesystem", lambda *_: arrow_on_disk(tmp_path / "remote"))
    with open_writer(uri, kind) as writer:
        assert not writer.files.is_local
        commit(writer.missing().tasks[2])
    assert fill(uri, kind) == "skipped 1, redo 0, new 2"
    assert fill(uri, kind) == "skipped 3, redo 0, new 0"
    fill(tmp_path / "local", kind)
    files = open_files(uri)
    remote = {path: files.read(path) for path in files.sizes()}
    assert remote == contents(tmp_path / "local")
    here, there = (reader(kind).open(place) for place in (tmp_path / "local", uri))
    for image_id in here.image_ids():
        assert as_lists(there.read(image_id)) == as_lists(here.read(image_id))
    files.write(data_file(files), b"x" * files.sizes()[data_file(files)])
    with pytest.raises(Exception, match="doctor"):
        [reader(kind).open(uri).read(image_id) for image_id in here.image_ids()]
    remove_part(uri, kind)
    assert files.sizes() == {}


def arrow_on_disk(root):
    root.mkdir(exist_ok=True)
    return ArrowFiles(fs.LocalFileSystem()), str(root)


def reader(kind):
    return ProposalStore if kind == "proposals" else SimilarityStore


def as_lists(read):
    return read if isinstance(read, list) else [read.points_xy.tolist(), read.similarity.tolist()]


def data_file(files):
    return sorted(path for path in files.sizes() if path.startswith("proposals/") or "/similarity/c/" in path)[0]


def test_removing_a_part_leaves_the_other_and_foreign_files(tmp_path):
    fill(tmp_path)
    alone = contents(tmp_path)
    fill(tmp_path, "similarity")
    (tmp_path / "notes.txt").write_text("mine")
    remove_part(tmp_path, "similarity")
    assert contents(tmp_path) == {**alone, "notes.txt": b"mine"}
    remove_part(tmp_path, "proposals")
    assert contents(tmp_path) == {"notes.txt": b"mine"}
    remove_part(tmp_path, "proposals")


def test_a_part_that_comes_while_the_lock_is_awaited_is_not_lost(tmp_path, monkeypatch):
    fill(tmp_path, "similarity")
    take, added = StoreLock.acquire, []

    def later(lock, timeout=0.0):
        if not added:
            added.append(lock)
            fill(tmp_path, "proposals")  # another job, quicker than this one
        return take(lock, timeout)

    monkeypatch.setattr(StoreLock, "acquire", later)
    remove_part(tmp_path, "similarity")
    assert verify(tmp_path) == []
    assert list(read_manifest(open_files(tmp_path)).parts) == ["proposals"]


def test_of_several_parts_none_is_removed_where_one_is_being_written(tmp_path):
    fill(tmp_path, "similarity")
    with open_writer(tmp_path, "proposals"):
        before = contents(tmp_path)
        with pytest.raises(StoreBusyError):
            remove_part(tmp_path, "similarity", "proposals")
        assert contents(tmp_path) == before
    remove_part(tmp_path, "similarity", "proposals")
    assert contents(tmp_path) == {}


def test_addresses_lead_to_the_right_files(tmp_path):
    assert isinstance(open_files(tmp_path), LocalFiles)
    spaced = open_files(f"file://{tmp_path}/a%20b")
    assert isinstance(spaced, LocalFiles)
    assert spaced.root == tmp_path / "a b"
    assert isinstance(open_files("memory://x/y"), RemoteFiles)
    with pytest.raises(InputError, match="quux"):
        open_files("quux://x")


def test_a_failing_disk_is_said_plainly_and_leaves_no_half_file(tmp_path, monkeypatch):
    files = LocalFiles(tmp_path)
    files.write("a/b", b"old")

    def full(_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(EnvironmentProblemError, match="No space left") as caught:
        files.write("a/b", b"new")
    assert "same command again" in str(caught.value)
    monkeypatch.undo()
    assert contents(tmp_path) == {"a/b": b"old"}


def test_files_are_listed_without_the_unfinished_and_created_once(tmp_path):
    files = LocalFiles(tmp_path)
    files.write("a/b", b"12345")
    (tmp_path / "a" / "c.0.partial").write_bytes(b"half")
    assert files.sizes() == {"a/b": 5}
    assert files.read_many(["a/b", "none"]) == {"a/b": b"12345"}
    assert not files.create("a/b", b"x")
    assert files.create("a/d", b"x")
    (tmp_path / "a" / "other.1.partial").write_bytes(b"being written by another job")
    files.sweep({"a/b", "a/c"})
    assert contents(tmp_path) == {"a/b": b"12345", "a/d": b"x", "a/other.1.partial": b"being written by another job"}


def test_an_image_key_with_odd_characters_survives(tmp_path):
    odd = (ImageKey(1, "ü/日本\n'\".jpg", 40, 40),)
    with open_writer(tmp_path, images=odd) as writer:
        commit(writer.missing().tasks[0])
    assert ProposalStore.open(tmp_path).image_ids() == [1]
