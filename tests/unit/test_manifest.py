import dataclasses
import json

import pytest
from toy_stores import LAYOUT, make_identity

from data_schemas.manifest import (
    FileEntry,
    ImageOutcome,
    Manifest,
    ShardRecord,
    StorePart,
    identity_differences,
    seal,
    unseal,
)

RECORD = ShardRecord(
    "abc",
    "proposals",
    (FileEntry.of("proposals/abc.parquet", b"0123456789", footer_bytes=4),),
    (ImageOutcome(3, "ok", rows=5, retries=1), ImageOutcome.quarantined(5, stage="decode", reason="truncated")),
    {"numpy": "2"},
)
PART = StorePart(make_identity("similarity"), 7, "e" * 64, 3, ("a", "b", "c"), LAYOUT, RECORD.files, {"zarr": "3"})


def test_records_and_manifests_survive_a_round_trip():
    assert ShardRecord.from_bytes(RECORD.to_bytes()) == RECORD
    assert RECORD.rows == 5
    manifest = Manifest({"similarity": PART})
    assert Manifest.from_bytes(manifest.to_bytes()) == manifest
    assert manifest.to_bytes() == Manifest.from_bytes(manifest.to_bytes()).to_bytes()


@pytest.mark.parametrize("whole", [RECORD, Manifest({"similarity": PART})], ids=["record", "manifest"])
def test_no_flipped_bit_of_a_value_goes_unseen(whole):
    kind, data = type(whole), whole.to_bytes()
    for position in range(len(data)):
        for bit in (0, 3, 6):
            flipped = bytearray(data)
            flipped[position] ^= 1 << bit
            try:
                read = kind.from_bytes(bytes(flipped))
            except ValueError:
                continue
            assert read == whole, f"bit {bit} of byte {position} changed what was read"


def test_a_record_that_lies_about_its_rows_is_refused():
    values = json.loads(RECORD.to_bytes())
    values.pop("checksum")
    with pytest.raises(ValueError, match="sum to 5, stated 6"):
        ShardRecord.from_bytes(seal({**values, "rows": 6}))


@pytest.mark.parametrize("data", [b"", b"{", b"[]", b"{}", b"\xff\xfe", seal({"manifest_version": 2})])
def test_what_is_no_manifest(data):
    with pytest.raises(ValueError):  # noqa: PT011
        Manifest.from_bytes(data)


def test_another_manifest_version_is_named():
    with pytest.raises(ValueError, match="version 99, this program reads 2"):
        Manifest.from_bytes(seal({"manifest_version": 99, "parts": {}}))


def test_a_fingerprint_tells_plans_apart_and_nothing_else():
    same = dataclasses.replace(PART, files=(), library_versions={})
    others = [
        dataclasses.replace(PART, images_digest="f" * 64),
        dataclasses.replace(PART, images_per_shard=4),
        dataclasses.replace(PART, shard_ids=("a", "b", "d")),
        dataclasses.replace(PART, identity=make_identity("pseudo_labels")),
    ]
    assert same.fingerprint == PART.fingerprint
    assert len({PART.fingerprint, *(other.fingerprint for other in others)}) == 5


def test_sealed_values_do_not_depend_on_key_order():
    assert seal({"a": 1, "b": 2}) == seal({"b": 2, "a": 1})
    assert unseal(seal({"a": 1})) == {"a": 1}


def test_differences_name_field_stored_and_wanted():
    stored = make_identity()
    assert identity_differences(stored, make_identity()) == []
    changed = dataclasses.replace(stored, sam_sha256="b" * 64, settings={"points_per_side": 32, "new": True})
    assert identity_differences(stored, changed) == [
        ("sam_sha256", "a" * 64, "b" * 64),
        ("settings.box_nms_threshold", 0.7, None),
        ("settings.new", None, True),
        ("settings.points_per_side", 16, 32),
    ]


def test_a_partial_expectation_asks_only_for_what_it_names():
    stored = make_identity(settings={"grid": (64, 64), "points_per_side": 16})
    assert identity_differences(stored, {"sam_name": "scenes-nano", "settings": {"grid": (64, 64)}}) == []
    assert identity_differences(stored, {"settings.points_per_side": 8}) == [("settings.points_per_side", 16, 8)]
    with pytest.raises(ValueError, match="sam_sha"):
        identity_differences(stored, {"sam_sha": "a"})


def test_a_file_entry_describes_file_and_footer():
    entry = RECORD.files[0]
    assert entry.num_bytes == 10
    assert entry.sha256 == "84d89877f0d4041efb6bf91a16f0248f2fd573e6af05c19f96bedb9f882f7882"
    assert entry.footer_sha256 == FileEntry.of("x", b"6789").sha256
