"""What is written comes back, in order, byte for byte, and nothing damaged comes back at all."""

import dataclasses
import pickle
import random
import time

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
from data_schemas.proposals import Proposal
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
        read.clear()  # a caller may do with its list what it likes


def test_an_image_without_proposals_is_an_empty_list(filled):
    assert ProposalStore.open(filled).read(EMPTY_IMAGE) == []


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
        column = file.metadata.row_group(0).column(2)
        assert column.compression == "ZSTD"
        assert not column.has_dictionary_page
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
        store.read(image_id)
    assert all(word in str(caught.value) for word in [*words, "precompute", str(tmp_path)])
    assert isinstance(caught.value, LookupError)
    assert caught.value.exit_code == 3


def test_a_reader_refuses_a_store_that_does_not_fit(filled):
    ProposalStore.open(filled, expect=make_identity())
    ProposalStore.open(filled, expect={"sam_sha256": "a" * 64, "settings": {"points_per_side": 16}})
    for expect, word in [
        (make_identity(sam_sha256="c" * 64), "sam_sha256"),
        ({"settings": {"points_per_side": 32}}, "settings.points_per_side = 32"),
        ({"dataset_fingerprint": "other"}, "dataset_fingerprint"),
        (dataclasses.replace(make_identity(), schema_version=2), "schema_version = 2"),
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


def test_a_store_travels_into_another_process(filled):
    store = ProposalStore.open(filled)
    wanted = store.read(3)
    assert pickle.loads(pickle.dumps(store)).read(3) == wanted


@pytest.mark.parametrize("step", [29, pytest.param(1, marks=pytest.mark.slow)])
def test_no_flipped_bit_is_ever_read_as_a_proposal(tmp_path, step):
    """One bit of every step-th byte of a file, read afresh and with the footer already parsed."""
    image = ImageKey(1, "1.jpg", 40, 40)
    truth = slow_order(make_proposals(image, 3))
    with open_writer(tmp_path, images=(image,)) as writer:
        commit_proposals(writer.missing().tasks[0], {1: truth})
    (path,) = (tmp_path / "proposals").iterdir()
    whole, store = path.read_bytes(), ProposalStore.open(tmp_path)
    entry = store._index.find(1)
    num_fresh = num_parsed = 0
    for position in range(0, len(whole), step):
        path.write_bytes(whole)
        fresh, parsed = (pickle.loads(pickle.dumps(store)) for _ in range(2))
        parsed._decode(entry)
        flipped = bytearray(whole)
        flipped[position] ^= 1 << position % 8
        path.write_bytes(flipped)
        num_fresh += is_damaged(fresh, entry, truth)
        num_parsed += is_damaged(parsed, entry, truth)
    footer = entry.files[0].footer_bytes
    # Every bit of the footer counts, and the pages are more than half of the rest (their headers have idle bits).
    assert num_fresh * step >= footer
    assert num_parsed * step > (len(whole) - footer) / 2


def is_damaged(store, entry, truth):
    """Whether reading ends in the error; if not, it must be the truth."""
    try:
        read = store._decode(entry)
    except StoreDamagedError as error:
        words = str(error)
    else:
        assert read == truth
        return False
    assert store._index.files.name(entry.files[0].path) in words
    assert "image 1 " in words
    assert f"s4m-pipeline doctor {store._index.files.uri}" in words
    return True


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


def test_read_latency_of_one_image(tmp_path):
    """No limit is set, because machines differ: run with -s to see the figures."""
    images = tuple(ImageKey(i, f"{i}.jpg", 256, 256) for i in range(64))
    rng = np.random.default_rng(0)

    def sixty(image: ImageKey) -> list[Proposal]:
        found = make_proposals(image, 60)
        counts = ["".join(chr(48 + c) for c in rng.integers(0, 64, 300)) for _ in found]
        return [dataclasses.replace(one, rle_counts=text) for one, text in zip(found, counts, strict=True)]

    with open_writer(tmp_path, images=images, images_per_shard=16) as writer:
        for task in writer.missing().tasks:
            commit_proposals(task, {image.image_id: sixty(image) for image in task.plan.images})
    store = ProposalStore.open(tmp_path)
    for image in images[::16]:
        store.read(image.image_id)
    times = []
    for image_id in random.Random(0).sample(range(64), 64):
        entry = store._index.find(image_id)
        start = time.perf_counter()
        assert len(store._decode(entry)) == 60
        times.append(time.perf_counter() - start)
    (path, *_) = (tmp_path / "proposals").iterdir()
    print(
        f"\n60 proposals of one image: median {np.median(times) * 1e3:.2f} ms, p95 {np.quantile(times, 0.95) * 1e3:.2f}"
    )
    print(
        f"file {path.stat().st_size} bytes, footer {ProposalStore.open(tmp_path)._index.find(0).files[0].footer_bytes}"
    )


def test_encoding_alone_is_deterministic():
    groups = {image.image_id: make_proposals(image) for image in IMAGES}
    assert encode_shard(groups, shard_id="x") == encode_shard(groups, shard_id="x")
    assert encode_shard(groups, shard_id="x") != encode_shard(groups, shard_id="y")
