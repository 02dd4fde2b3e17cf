"""Targets come back within the stated error; zarr reads the same; an absent chunk is never zeros."""

import dataclasses
import pickle
import time

import google_crc32c
import numpy as np
import pytest
import zarr
from toy_stores import BAD_IMAGE, IMAGES, LAYOUT, commit, fill, make_identity, make_targets, open_writer

from data_schemas.manifest import ImageKey
from data_schemas.similarity import MAX_QUANTISATION_ERROR, SimilarityLayout, quantise
from pipeline.errors import InputError, StoreDamagedError, StoreMismatchError
from pipeline.stores.index import ImageNotStoredError
from pipeline.stores.similarity_arrays import array_specs, chunk_range, decode_chunk, decode_index
from pipeline.stores.similarity_store import SimilarityStore, commit_similarity

GOOD = [image for image in IMAGES if image.image_id != BAD_IMAGE]


@pytest.fixture(scope="module")
def filled(tmp_path_factory):
    root = tmp_path_factory.mktemp("similarity")
    fill(root, "similarity")
    return root


def test_targets_come_back_within_the_stated_error(filled):
    store = SimilarityStore.open(filled, expect=make_identity("similarity"))
    assert store.image_ids() == [image.image_id for image in GOOD]
    for image in GOOD[::-1]:
        truth, read = make_targets(image), store.read(image.image_id)
        assert read.points_xy.tolist() == truth.points_xy.tolist()
        assert read.points_xy.dtype == read.similarity.dtype == np.float32
        assert (read.point_kind == truth.point_kind).all()
        assert np.abs(read.similarity - truth.similarity).max() <= MAX_QUANTISATION_ERROR + 1e-6
        assert (quantise(read.similarity) == quantise(truth.similarity)).all()
        points_xy, kind = store.points(image.image_id)
        assert points_xy.dtype == np.float32
        assert (points_xy == read.points_xy).all()
        assert (kind == truth.point_kind).all()


@pytest.mark.parametrize("rows", [[0], [7], [3, 4], [6, 1, 6, 0], [5, 4, 7, 6], [], list(range(8))])
def test_some_rows_are_those_rows(filled, rows):
    store = SimilarityStore.open(filled)
    whole, some = store.read(11), store.read(11, np.array(rows, np.int64))
    assert (some.similarity == whole.similarity[rows]).all()
    assert some.similarity.shape == (len(rows), 6, 5)
    assert (some.points_xy == whole.points_xy[rows]).all()
    assert (some.point_kind == whole.point_kind[rows]).all()


@pytest.mark.parametrize("rows", [np.array([8]), np.array([-1]), np.array([0.5]), np.array([[0]])])
def test_rows_out_of_range_are_refused(filled, rows):
    with pytest.raises(InputError, match="0 to 7"):
        SimilarityStore.open(filled).read(11, rows)


def test_zarr_itself_reads_the_same(filled):
    group = zarr.open_group(filled / "similarity.zarr", mode="r")
    store = SimilarityStore.open(filled)
    assert group["similarity"].shape == (7, 8, 6, 5)
    assert group["similarity"].chunks == (1, 4, 6, 5)
    assert group["similarity"].shards == (3, 8, 6, 5)
    for row, image in enumerate(IMAGES):
        if image.image_id == BAD_IMAGE:
            assert np.isnan(group["points_xy"][row]).all()
            assert (group["point_kind"][row] == 255).all()
            continue
        read = store.read(image.image_id)
        assert (group["points_xy"][row] == read.points_xy).all()
        assert (group["point_kind"][row] == read.point_kind).all()
        assert (group["similarity"][row] == quantise(read.similarity)).all()


def test_our_reader_reads_what_zarr_writes(tmp_path, filled):
    """The same metadata, the shard written by zarr: both directions of the format agree."""
    for path in (filled / "similarity.zarr").rglob("zarr.json"):
        target = tmp_path / path.relative_to(filled / "similarity.zarr")
        target.parent.mkdir(exist_ok=True)
        target.write_bytes(path.read_bytes())
    values = np.random.default_rng(0).integers(1, 255, (3, 8, 6, 5), dtype=np.uint8)
    zarr.open_group(tmp_path, mode="r+")["similarity"][0:3] = values
    data = (tmp_path / "similarity/c/0/0/0/0").read_bytes()
    spec = array_specs(LAYOUT)[2]
    index = decode_index(data[-spec.index_bytes(3) :], spec)
    for slot in range(3):
        for chunk in range(2):
            start, end = chunk_range(index, slot, chunk)
            read = decode_chunk(data[start:end], spec, what="chunk")
            assert (read == values[slot, 4 * chunk : 4 * chunk + 4]).all()


def test_an_all_zero_row_is_stored_and_told_from_an_absent_one(tmp_path):
    image = ImageKey(1, "a.jpg", 10, 10)
    targets = dataclasses.replace(make_targets(image), similarity=np.full((8, 6, 5), -1, np.float32))
    with open_writer(tmp_path, "similarity", images=(image,)) as writer:
        commit_similarity(writer.missing().tasks[0], {1: targets})
    assert (quantise(targets.similarity) == 0).all()
    assert (SimilarityStore.open(tmp_path).read(1).similarity == -1).all()
    make_chunk_absent(tmp_path)
    with pytest.raises(StoreDamagedError, match="absent"):
        SimilarityStore.open(tmp_path).read(1)
    zeros = zarr.open_group(tmp_path / "similarity.zarr", mode="r")["similarity"][0, :4]
    assert (zeros == 0).all()  # what zarr would have said


def make_chunk_absent(root):
    """Mark the first inner chunk as absent, with a valid checksum of the index."""
    path = root / "similarity.zarr/similarity/c/0/0/0/0"
    data = path.read_bytes()
    size = array_specs(LAYOUT)[2].index_bytes(3)
    index = bytearray(data[-size:-4])
    index[:16] = b"\xff" * 16
    path.write_bytes(data[:-size] + bytes(index) + google_crc32c.value(bytes(index)).to_bytes(4, "little"))


def test_a_deleted_shard_file_is_damage_and_not_zeros(tmp_path):
    fill(tmp_path, "similarity")
    for name in ("points_xy", "point_kind", "similarity"):
        (path,) = (p for p in (tmp_path / "similarity.zarr" / name / "c" / "0").rglob("*") if p.is_file())
        whole = path.read_bytes()
        path.unlink()
        with pytest.raises(StoreDamagedError) as caught:
            SimilarityStore.open(tmp_path).read(3)
        assert f"{name}/c/0/0" in str(caught.value)
        path.write_bytes(whole)
    SimilarityStore.open(tmp_path).read(3)


def test_no_flipped_bit_is_ever_read_as_a_target(tmp_path):
    """Every byte of every data file of a small store: an error that names it, or exactly what was written."""
    images = tuple(ImageKey(i, f"{i}.jpg", 40, 40) for i in (1, 2))
    with open_writer(tmp_path, "similarity", images=images) as writer:
        commit_similarity(writer.missing().tasks[0], {image.image_id: make_targets(image) for image in images})
    store = SimilarityStore.open(tmp_path)
    truth = {i: store.read(i) for i in (1, 2)}
    for path in [p for p in (tmp_path / "similarity.zarr").rglob("*") if p.is_file() and p.name != "zarr.json"]:
        whole = path.read_bytes()
        num_errors = 0
        for position in range(len(whole)):
            flipped = bytearray(whole)
            flipped[position] ^= 1 << position % 8
            path.write_bytes(flipped)
            fresh = pickle.loads(pickle.dumps(store))
            num_errors += sum(is_damaged(fresh, i, wanted, path) for i, wanted in truth.items())
        assert num_errors >= len(whole)  # every byte belongs to at least one image
        path.write_bytes(whole)


def is_damaged(store, image_id, truth, path):
    """Whether reading ends in the error; if not, it must be the truth."""
    try:
        read = store.read(image_id)
    except StoreDamagedError as error:
        words = str(error)
    else:
        assert (read.similarity == truth.similarity).all()
        assert (read.points_xy == truth.points_xy).all()
        assert (read.point_kind == truth.point_kind).all()
        return False
    assert str(path) in words
    assert f"image {image_id} " in words
    assert f"s4m-pipeline doctor {store._index.files.uri}" in words
    return True


def test_a_cut_or_longer_shard_is_damaged(tmp_path):
    fill(tmp_path, "similarity")
    path = tmp_path / "similarity.zarr/similarity/c/1/0/0/0"
    whole = path.read_bytes()
    for broken in (b"", whole[:-1], whole[: len(whole) // 2], whole[:-1000], whole + b"\0"):
        path.write_bytes(broken)
        with pytest.raises(StoreDamagedError, match="c/1/0/0/0"):
            SimilarityStore.open(tmp_path).read(11)


def test_images_without_targets_say_why(tmp_path):
    with open_writer(tmp_path, "similarity") as writer:
        commit(writer.missing().tasks[1])
    store = SimilarityStore.open(tmp_path)
    assert store.quarantined()[BAD_IMAGE].reason == "truncated"
    for image_id, words in [(BAD_IMAGE, "quarantined"), (3, "not computed yet"), (4, "never part")]:
        with pytest.raises(ImageNotStoredError, match=words):
            store.read(image_id)


@pytest.mark.parametrize("wrong", ["grid", "points", "nan point", "nan cosine"])
def test_targets_that_do_not_fit_are_not_stored(tmp_path, wrong):
    good = make_targets(IMAGES[0])
    nan = np.where(np.arange(8)[:, None, None] == 3, np.nan, good.similarity).astype(np.float32)
    bad = {
        "grid": dataclasses.replace(good, similarity=np.zeros((8, 5, 6), np.float32)),
        "points": make_targets(IMAGES[0], SimilarityLayout(4, (6, 5), 4)),
        "nan point": dataclasses.replace(good, points_xy=np.full((8, 2), np.nan, np.float32)),
        "nan cosine": dataclasses.replace(good, similarity=nan),
    }[wrong]
    with open_writer(tmp_path, "similarity", images=IMAGES[:1]) as writer:
        with pytest.raises(InputError, match="image 3"):
            commit_similarity(writer.missing().tasks[0], {3: bad})
        assert writer.missing().summary() == "skipped 0, redo 0, new 1"


def test_the_reader_refuses_another_sam(filled):
    with pytest.raises(StoreMismatchError, match="sam_sha256"):
        SimilarityStore.open(filled, expect={"sam_sha256": "b" * 64})


def test_read_latency_of_128_rows(tmp_path):
    """No limit is set, because machines differ: run with -s to see the figures."""
    layout = SimilarityLayout(256, (64, 64), 64)
    images = tuple(ImageKey(i, f"{i}.jpg", 256, 256) for i in range(4))
    smooth = np.cos(np.linspace(0, 6, 256 * 64 * 64, dtype=np.float32)).reshape(256, 64, 64)
    base = make_targets(images[0], layout)
    noisy = 0.9 * smooth + 0.05 * base.similarity
    with open_writer(tmp_path, "similarity", images=images, layout=layout, images_per_shard=2) as writer:
        for task in writer.missing().tasks:
            commit_similarity(task, {i.image_id: dataclasses.replace(base, similarity=noisy) for i in task.plan.images})
    store = SimilarityStore.open(tmp_path)
    rng = np.random.default_rng(0)
    blocks = np.concatenate([np.arange(64), np.arange(128, 192)])
    for name, choose in [("two blocks", lambda: blocks), ("scattered", lambda: rng.permutation(256)[:128])]:
        times = []
        for step in range(40):
            rows = choose()
            start = time.perf_counter()
            store.read(step % 4, rows)
            times.append(time.perf_counter() - start)
        median, p95 = np.median(times) * 1e3, np.quantile(times, 0.95) * 1e3
        print(f"\n128 rows of 64x64, {name}: median {median:.2f} ms, p95 {p95:.2f}")
    size = (tmp_path / "similarity.zarr/similarity/c/0/0/0/0").stat().st_size
    print(f"bytes of one image: {size // 2} of {256 * 64 * 64}")
