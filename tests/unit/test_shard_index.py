"""The two columnar files of a store: the list of images, and the records of all shards together."""

import dataclasses
import hashlib

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from toy_stores import IMAGES

from data_schemas.image_list import ImageList
from data_schemas.manifest import FileEntry, ImageKey, ImageOutcome, ShardRecord
from data_schemas.shard_index import ShardIndex

FINGERPRINT = "f" * 64
RECORDS = [
    (
        0,
        ShardRecord(
            "a" * 20,
            "proposals",
            (FileEntry.of("proposals/a.parquet", b"0123456789", footer_bytes=4),),
            (
                ImageOutcome(-3, "ok", rows=5, retries=1),
                ImageOutcome.quarantined(2, stage="decode", reason="ü", retries=2),
            ),
            {},
        ),
    ),
    (
        2,
        ShardRecord(
            "c" * 20,
            "proposals",
            (FileEntry.of("x", b"1"), FileEntry.of("y", b"2")),
            (ImageOutcome.quarantined(7, stage="read", reason="gone"), ImageOutcome(2**40, "ok")),
            {},
        ),
    ),
]
LISTED = ImageList.of([ImageKey(i, "x", 40 + k, 50 + k) for k, i in enumerate((-3, 2, 4, 5, 7, 2**40))])


@pytest.fixture
def index():
    return ShardIndex.from_records(RECORDS, LISTED, fingerprint=FINGERPRINT)


def test_an_index_says_what_the_records_say(index):
    for row, (number, record) in enumerate(RECORDS):
        assert index.shard_index[row] == number
        assert index.files(row) == record.files
        for outcome in record.outcomes:
            place = index.find(outcome.image_id)
            assert index.shard_at(place) == row
            assert index.outcome(place) == outcome
            listed = LISTED.get(outcome.image_id)
            assert (index.height[place], index.width[place]) == (listed.height, listed.width)
    assert index.bad_places.tolist() == [1, 2]
    assert index.starts.tolist() == [0, 2, 4]


@pytest.mark.parametrize("image_id", [-4, 0, 3, 2**40 + 1, 2**63, 2**80, -(2**80)])
def test_an_id_that_is_not_there_is_not_found(index, image_id):
    assert index.find(image_id) is None
    assert ShardIndex.from_records([], LISTED, fingerprint=FINGERPRINT).find(image_id) is None


def test_an_index_survives_a_round_trip_without_a_copy(index):
    data = index.to_bytes()
    read = ShardIndex.from_bytes(data, fingerprint=FINGERPRINT)
    assert read == index
    assert read.to_bytes() == data
    whole = np.frombuffer(data, np.uint8)
    assert all(np.shares_memory(whole, column) for column in (read.image_id, read.width, read.is_ok, read.rows))
    assert read != ShardIndex.from_records(RECORDS[:1], LISTED, fingerprint=FINGERPRINT)
    assert read != ShardIndex.from_records(RECORDS, LISTED, fingerprint="e" * 64)


def test_other_tools_read_the_file_as_an_arrow_stream(index):
    table = pa.ipc.open_stream(index.to_bytes()).read_all()
    assert table.column("image_id").to_pylist() == [[-3, 2], [7, 2**40]]


def test_no_flipped_bit_of_an_index_goes_unseen(index):
    data = index.to_bytes()
    for position in range(0, len(data), 3):
        flipped = bytearray(data)
        flipped[position] ^= 1 << position % 8
        with pytest.raises(ValueError, match="checksum"):
            ShardIndex.from_bytes(bytes(flipped), fingerprint=FINGERPRINT)
    for cut in (b"", data[:20], data[:-1], data + b"x"):
        with pytest.raises(ValueError, match="checksum"):
            ShardIndex.from_bytes(cut, fingerprint=FINGERPRINT)


def test_what_is_sealed_but_no_index_of_this_part(index):
    with pytest.raises(ValueError, match="eeee"):
        ShardIndex.from_bytes(index.to_bytes(), fingerprint="e" * 64)
    text = b"not a stream"
    with pytest.raises(ValueError, match="not an Arrow stream"):
        ShardIndex.from_bytes(text + hashlib.sha256(text).digest(), fingerprint=FINGERPRINT)


def test_images_survive_a_round_trip_and_are_found_by_id():
    listed = ImageList.of(IMAGES)
    read = ImageList.from_parquet(listed.to_parquet())
    assert len(read) == len(IMAGES)
    assert read.between(0, len(read)) == IMAGES
    assert read.between(2, 4) == IMAGES[2:4]
    assert [read.get(image.image_id) for image in IMAGES] == list(IMAGES)
    assert [read.get(i) for i in (2, 4, 17, 2**70)] == [None] * 4
    assert read.digest == listed.digest


def test_names_that_are_not_unicode_survive():
    odd = (ImageKey(1, "ü/日本\n'\".jpg", 1, 2), ImageKey(2, "caf\udce9.jpg", 3, 4))
    assert ImageList.from_parquet(ImageList.of(odd).to_parquet()).between(0, 2) == odd


def test_every_value_of_a_list_is_in_its_digest():
    changes = [{"image_id": 4}, {"file_name": "folder/003.png"}, {"height": 41}, {"width": 34}]
    lists = [IMAGES, IMAGES[:-1], *((dataclasses.replace(IMAGES[0], **change), *IMAGES[1:]) for change in changes)]
    # The same letters and the same sizes, cut and given otherwise.
    lists += [(ImageKey(1, "ab", 1, 2), ImageKey(2, "c", 1, 2)), (ImageKey(1, "a", 1, 2), ImageKey(2, "bc", 1, 2))]
    lists += [(ImageKey(1, "ab", 2, 1), ImageKey(2, "c", 2, 1))]
    assert len({ImageList.of(images).digest for images in lists}) == len(lists)


def test_the_digest_of_a_list_stays_what_it_is():
    """Stores hold it: another way to compute it would refuse every store."""
    expected = "b8e62e1f80c4ea08f48515eee4325f821dafd156a7bcc8c2cc9895f51fb35407"
    assert ImageList.of(IMAGES).digest == expected


@pytest.mark.parametrize("image", [ImageKey(2**63, "a", 1, 1), ImageKey(1, "a", 2**31, 1), ImageKey("x", "a", 1, 1)])
def test_numbers_that_do_not_fit_are_refused(image):
    with pytest.raises(ValueError, match="whole number"):
        ImageList.of([image])


@pytest.mark.parametrize("data", [b"", b"PAR1", ShardIndex.from_records([], LISTED, fingerprint="").to_bytes()])
def test_what_is_no_list_of_images(data):
    with pytest.raises(ValueError, match="not a Parquet file"):
        ImageList.from_parquet(data)


def test_a_table_of_something_else_is_refused():
    sink = pa.BufferOutputStream()
    pq.write_table(pa.table({"image_id": [1], "name": ["a"]}), sink)
    with pytest.raises(ValueError, match=r"columns .*'name'"):
        ImageList.from_parquet(bytes(sink.getvalue()))
