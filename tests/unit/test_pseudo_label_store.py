"""Rows of a labelling run: what goes in comes out; damage and misfits are refused."""

from dataclasses import replace

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from data_schemas.manifest import ImageKey, ImageOutcome, StoreIdentity
from data_schemas.pseudo_labels import PSEUDO_LABEL_SCHEMA, PseudoLabel
from pipeline.errors import InputError, StoreDamagedError
from pipeline.stores import pseudo_label_store
from pipeline.stores.pseudo_label_store import commit_pseudo_labels, read_pseudo_labels
from pipeline.stores.verify import verify
from pipeline.stores.writer import StoreWriter

IDENTITY = StoreIdentity("pseudo_labels", 1, "d" * 64, "none", "", {"seed": 0})
IMAGES = [ImageKey(i, f"{i}.png", 4, 5) for i in (3, 7, 9)]
LABEL = PseudoLabel(3, 0, 18, 0.75, "matched", 4, 5, "04P", 4, "08L", 8)


@pytest.fixture
def writer(tmp_path):
    with StoreWriter.create_or_open(tmp_path / "run", IDENTITY, IMAGES, images_per_shard=2) as writer:
        yield writer


def fill(writer):
    first, second = writer.missing().tasks
    rows = {3: [LABEL, replace(LABEL, instance_id=1, outcome="kept", no_target=0.25)], 7: []}
    commit_pseudo_labels(first, rows)
    commit_pseudo_labels(second, {}, [ImageOutcome.quarantined(9, stage="read", reason="truncated")])
    return rows


def test_rows_come_back_and_images_are_accounted_for(writer, tmp_path):
    rows = fill(writer)
    assert list(read_pseudo_labels(writer.files, writer.records())) == rows[3]
    counts = writer.counts()
    assert (counts.images_ok, counts.images_quarantined, counts.rows) == (2, 1, 2)
    assert counts.quarantined_by_reason == {"read: truncated": 1}
    assert writer.missing().tasks == ()
    assert verify(tmp_path / "run") == []
    files = sorted((tmp_path / "run" / "pseudo_labels").glob("*.parquet"))
    assert [pq.read_schema(file).names for file in files] == [PSEUDO_LABEL_SCHEMA.names] * 2


def test_runs_without_the_youngest_column_are_read(writer, monkeypatch):
    with monkeypatch.context() as before:
        before.setattr(pseudo_label_store, "PSEUDO_LABEL_SCHEMA", pa.schema(list(PSEUDO_LABEL_SCHEMA)[:-1]))
        rows = fill(writer)
    assert list(read_pseudo_labels(writer.files, writer.records())) == [replace(row, no_target=None) for row in rows[3]]


def test_a_flipped_bit_is_found(writer, tmp_path):
    fill(writer)
    path = tmp_path / "run" / writer.records()[0].files[0].path
    data = bytearray(path.read_bytes())
    data[40] ^= 1
    path.write_bytes(bytes(data))
    with pytest.raises(StoreDamagedError, match="missing or damaged"):
        list(read_pseudo_labels(writer.files, writer.records()))
    path.unlink()
    with pytest.raises(StoreDamagedError, match="no file"):
        list(read_pseudo_labels(writer.files, writer.records()))


@pytest.mark.parametrize("wrong", [{"image_id": 7}, {"instance_id": 1}, {"height": 5}, {"width": 4}], ids=str)
def test_a_label_of_another_image_or_size_is_refused(writer, wrong):
    task = writer.missing().tasks[0]
    with pytest.raises(InputError, match="does not fit its image"):
        commit_pseudo_labels(task, {3: [replace(LABEL, **wrong)], 7: []})
    assert writer.records() == []


@pytest.mark.parametrize(
    "wrong",
    [
        *({"outcome": "lost"}, {"score": 1.5}, {"no_target": -1.0}, {"score": float("nan")}),
        *({"refined_rle": ""}, {"network_area": 21}),
    ],
)
def test_an_impossible_label_is_refused(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        replace(LABEL, **wrong)
