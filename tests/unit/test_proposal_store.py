"""What is written comes back, in order, byte for byte, and nothing damaged comes back at all."""

import dataclasses
import pickle
import random

import numpy as np
import pyarrow.parquet as pq
import pytest
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

from data_schemas.manifest import ImageKey, ImageOutcome
from data_schemas.proposals import PLAIN_COLUMNS
from pipeline.errors import InputError, StoreDamagedError, StoreMismatchError
from pipeline.stores.index import ImageNotStoredError
from pipeline.stores.proposal_store import ProposalStore, commit_proposals, encode_shard


@pytest.fixture(scope="module")
def filled(tmp_path_factory):
    root = tmp_path_factory.mktemp("proposals")
    fill(root)
    return root


def slow_order(proposals):
    """The rule of the schema, as three stable sorts from the last key to the first."""
    rows = sorted(proposals, key=lambda p: p.rle_counts.encode())
    rows = sorted(rows, key=lambda p: p.area, reverse=True)
    return sorted(rows, key=lambda p: np.float32(p.predicted_iou), reverse=True)


def test_each_image_comes_back_in_order(filled):
    store = ProposalStore.open(filled)
    good = [image for image in IMAGES if image.image_id not in (BAD_IMAGE, EMPTY_IMAGE)]
    assert store.image_ids() == sorted([image.image_id for image in good] + [EMPTY_IMAGE])
    for image in random.Random(0).sample(good, len(good)) * 2:
        read = store.read(image.image_id)
        assert len(read) > 0
        assert read == slow_order(make_proposals(image))
        assert_same_masks(store.read_masks(image.image_id), read, image)


def assert_same_masks(library, proposals, image):
    assert library.size_hw == (image.height, image.width)
    assert (library.areas.dtype, library.boxes_xywh.dtype) == (np.int64, np.float32)
    assert library.areas.tolist() == [one.area for one in proposals]
    assert [tuple(box) for box in library.boxes_xywh.tolist()] == [one.bbox_xywh for one in proposals]
    assert [code.decode() for code in library.codes] == [one.rle_counts for one in proposals]


def test_an_image_without_proposals_is_empty(filled):
    store = ProposalStore.open(filled)
    (image,) = [image for image in IMAGES if image.image_id == EMPTY_IMAGE]
    assert store.read(EMPTY_IMAGE) == []
    assert_same_masks(store.read_masks(EMPTY_IMAGE), [], image)
    assert store.read_masks(EMPTY_IMAGE).boxes_xywh.shape == (0, 4)


def test_equal_input_gives_equal_bytes_whatever_the_order(tmp_path, filled):
    with open_writer(tmp_path) as writer:
        for task in reversed(writer.missing().tasks):
            keys = [image for image in task.plan.images if image.image_id != BAD_IMAGE]
            found = {
                image.image_id: [] if image.image_id == EMPTY_IMAGE else make_proposals(image)[::-1]
                for image in reversed(keys)
            }
            bad = [ImageOutcome.quarantined(BAD_IMAGE, stage="decode", reason="truncated", retries=2)]
            commit_proposals(task, found, bad if len(keys) < len(task.plan.images) else [])
    assert contents(tmp_path) == contents(filled)


def test_the_file_is_plain_parquet_with_a_row_group_for_each_image(filled):
    store = ProposalStore.open(filled)
    for path in sorted((filled / "proposals").iterdir()):
        file = pq.ParquetFile(path)
        rows = file.read().to_pylist()
        groups = [file.read_row_group(i).column("image_id").unique().to_pylist() for i in range(file.num_row_groups)]
        assert [image_id for (image_id,) in groups] == sorted({row["image_id"] for row in rows})
        assert file.metadata.metadata[b"s4m.shard_id"].decode() == path.stem
        columns = [file.metadata.row_group(0).column(k) for k in range(file.metadata.num_columns)]
        assert {c.path_in_schema for c in columns if c.compression == "UNCOMPRESSED"} == PLAIN_COLUMNS
        assert {c.compression for c in columns if c.path_in_schema not in PLAIN_COLUMNS} == {"ZSTD"}
        assert not any(column.has_dictionary_page for column in columns)
        for row in rows:
            proposal = store.read(row["image_id"])[row["proposal_id"]]
            assert (row["rle_counts"], row["area"]) == (proposal.rle_counts, proposal.area)
            assert tuple(row[f"bbox_{axis}"] for axis in "xywh") == proposal.bbox_xywh
            assert (row["point_x"], row["point_y"]) == proposal.point_xy


@pytest.mark.parametrize("which", ["quarantined", "not computed", "never planned"])
def test_an_image_that_is_not_there_is_an_error_that_says_why(tmp_path, which):
    with open_writer(tmp_path) as writer:
        commit(writer.missing().tasks[1])
    store = ProposalStore.open(tmp_path)
    image_id, words = {
        "quarantined": (BAD_IMAGE, ["quarantined", "decode: truncated", "009.jpg"]),
        "not computed": (3, ["not computed yet", "3 of 7 images", "again"]),
        "never planned": (4, ["never part"]),
    }[which]
    with pytest.raises(ImageNotStoredError) as caught:
        store.read_masks(image_id)
    assert all(word in str(caught.value) for word in [*words, "precompute", str(tmp_path)])
    assert isinstance(caught.value, LookupError)
    assert caught.value.exit_code == 3


def test_a_training_takes_a_quarantined_image_for_one_without_proposals_and_says_so_once(tmp_path, caplog):
    with open_writer(tmp_path) as writer:
        commit(writer.missing().tasks[1])
    store = pickle.loads(pickle.dumps(ProposalStore.open(tmp_path, quarantined_is_empty=True)))
    (image,) = [image for image in IMAGES if image.image_id == BAD_IMAGE]
    for _ in range(2):
        assert_same_masks(store.read_masks(BAD_IMAGE), [], image)
    (told,) = caplog.messages
    assert "009.jpg" in told
    assert "truncated" in told
    for image_id in (3, 4):  # not computed yet, never planned
        with pytest.raises(ImageNotStoredError):
            store.read_masks(image_id)


def test_a_reader_refuses_a_store_that_does_not_fit(filled):
    ProposalStore.open(filled, expect=make_identity())
    ProposalStore.open(filled, expect={"sam_sha256": "a" * 64, "settings": {"points_per_side": 16}})
    for expect, word in [
        (make_identity(sam_sha256="c" * 64), "sam_sha256"),
        ({"settings": {"points_per_side": 32}}, "settings.points_per_side = 32"),
        ({"dataset_fingerprint": "other"}, "dataset_fingerprint"),
        (dataclasses.replace(make_identity(), schema_version=99), "schema_version = 99"),
    ]:
        with pytest.raises(StoreMismatchError) as caught:
            ProposalStore.open(filled, expect=expect)
        assert word in str(caught.value)
    with pytest.raises(InputError, match="no field"):
        ProposalStore.open(filled, expect={"sam_sah": "x"})


def test_no_store_and_the_other_kind_are_said_apart(tmp_path):
    with pytest.raises(InputError, match=r"no manifest\.json"):
        ProposalStore.open(tmp_path / "none")
    fill(tmp_path, "similarity")
    with pytest.raises(InputError, match="a store of similarity"):
        ProposalStore.open(tmp_path)


def test_a_proposal_that_does_not_fit_its_image_is_not_stored(tmp_path):
    with open_writer(tmp_path) as writer:
        task = writer.missing().tasks[0]
        found = {image.image_id: make_proposals(image, 2) for image in task.plan.images}
        found[5] = [dataclasses.replace(found[5][0], height=1)]
        with pytest.raises(InputError, match=r"image 5 \(folder/005\.jpg\)"):
            commit_proposals(task, found)
        assert writer.missing().summary() == "skipped 0, redo 0, new 3"


def test_a_shard_without_any_row_is_a_shard(tmp_path):
    with open_writer(tmp_path) as writer:
        for task in writer.missing().tasks:
            record = commit_proposals(task, {image.image_id: [] for image in task.plan.images})
            assert record.rows == 0
        assert writer.missing().summary() == "skipped 3, redo 0, new 0"
    store = ProposalStore.open(tmp_path)
    assert [store.read(image.image_id) for image in IMAGES] == [[]] * 7
    assert {len(store.read_masks(image.image_id)) for image in IMAGES} == {0}


def test_a_store_travels_into_another_process(filled):
    store = ProposalStore.open(filled)
    wanted = store.read(3)
    assert pickle.loads(pickle.dumps(store)).read(3) == wanted


@pytest.mark.parametrize("step", [29, pytest.param(1, marks=pytest.mark.slow)])
def test_no_flipped_bit_is_ever_read_as_a_proposal(tmp_path, step):
    """One bit of every step-th byte of a file, read afresh and with the footer already parsed."""
    image = ImageKey(1, "1.jpg", 40, 40)
    with open_writer(tmp_path, images=(image,)) as writer:
        commit_proposals(writer.missing().tasks[0], {1: make_proposals(image, 3)})
    (path,) = (tmp_path / "proposals").iterdir()
    whole, store = path.read_bytes(), ProposalStore.open(tmp_path)
    footer = len(whole) - store._index.find(1).files[0].footer_bytes
    magic = 4  # the first bytes of the file, which no row group has
    for position in range(magic, len(whole), step):
        path.write_bytes(whole)
        fresh, parsed = (pickle.loads(pickle.dumps(store)) for _ in range(2))
        parsed.read(1)
        flipped = bytearray(whole)
        flipped[position] ^= 1 << position % 8
        path.write_bytes(flipped)
        for read in (fresh.read, fresh.read_masks):
            assert_damaged(read, path, tmp_path)
        for read in (parsed.read, parsed.read_masks) if position < footer else ():
            assert_damaged(read, path, tmp_path)


def assert_damaged(read, path, root):
    with pytest.raises(StoreDamagedError) as caught:
        read(1)
    assert all(words in str(caught.value) for words in (str(path), "image 1 ", f"s4m-pipeline doctor {root}"))


def test_a_cut_missing_or_longer_file_is_damaged(tmp_path):
    fill(tmp_path)
    for path in (tmp_path / "proposals").iterdir():
        whole = path.read_bytes()
        for broken in (b"", whole[:-1], whole[: len(whole) // 2], whole + b"\0"):
            path.write_bytes(broken)
            with pytest.raises(StoreDamagedError, match=path.name):
                [ProposalStore.open(tmp_path).read(image_id) for image_id in (3, 11, 15)]
        path.unlink()
        with pytest.raises(StoreDamagedError, match="No such file"):
            [ProposalStore.open(tmp_path).read(image_id) for image_id in (3, 11, 15)]
        path.write_bytes(whole)


def test_the_file_of_another_shard_is_not_taken_for_this_one(tmp_path):
    fill(tmp_path)
    one, two, _ = (tmp_path / "proposals").iterdir()
    one.write_bytes(two.read_bytes())
    with pytest.raises(StoreDamagedError, match=one.name):
        [ProposalStore.open(tmp_path).read(image_id) for image_id in (3, 11, 15)]


def test_encoding_alone_is_deterministic():
    groups = {image.image_id: make_proposals(image) for image in IMAGES}
    assert encode_shard(groups, shard_id="x") == encode_shard(groups, shard_id="x")
    assert encode_shard(groups, shard_id="x") != encode_shard(groups, shard_id="y")
