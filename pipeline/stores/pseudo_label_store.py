"""What ``pseudo-label`` writes, shard by shard: Parquet rows under the commit protocol of the stores."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import fields

import pyarrow as pa
import pyarrow.parquet as pq

from data_schemas.manifest import FileEntry, ImageOutcome, ShardRecord
from data_schemas.pseudo_labels import PSEUDO_LABEL_SCHEMA, PSEUDO_LABEL_VERSION, PseudoLabel
from pipeline.errors import InputError, StoreDamagedError
from pipeline.stores.files import StoreFiles
from pipeline.stores.shards import ShardTask, data_paths, publish

_FIELDS = tuple(field.name for field in fields(PseudoLabel))


def commit_pseudo_labels(
    task: ShardTask,
    labels: Mapping[int, Sequence[PseudoLabel]],
    quarantined: Iterable[ImageOutcome] = (),
    *,
    retries: Mapping[int, int] | None = None,
) -> ShardRecord:
    """Publish one shard; equal labels give equal bytes.

    Args:
        task: From ``StoreWriter.missing``.
        labels: Image id -> its pseudo-labels by rising instance id; an empty list is legal.
        quarantined: The images of the shard that are not in ``labels``.
        retries: Image id -> how often an image had to be tried again.

    Returns:
        The record, as written.

    Raises:
        InputError: An image of the shard is missing, or a label belongs to another image or size.
        StoreBusyError, EnvironmentProblemError: As ``publish``.
    """
    rows: list[PseudoLabel] = []
    for image in task.plan.images:
        for place, label in enumerate(labels.get(image.image_id, ())):
            expected = (image.image_id, place, image.height, image.width)
            got = (label.image_id, label.instance_id, label.height, label.width)
            if got != expected:
                raise InputError("a pseudo-label does not fit its image", expected=expected, got=got)
            rows.append(label)
    ok = [ImageOutcome(i, "ok", rows=len(found), retries=(retries or {}).get(i, 0)) for i, found in labels.items()]
    data = encode_shard(rows, shard_id=task.plan.shard_id)
    entry = FileEntry.of(data_paths("pseudo_labels", task.plan)[0], data)
    return publish(task, [(entry, data)], [*ok, *quarantined])


def encode_shard(rows: Sequence[PseudoLabel], *, shard_id: str) -> bytes:
    """One Parquet file of all rows of a shard; ``shard_id`` goes into its metadata."""
    columns = [pa.array([getattr(row, f.name) for row in rows], f.type) for f in PSEUDO_LABEL_SCHEMA]
    sink = pa.BufferOutputStream()
    with pq.ParquetWriter(sink, PSEUDO_LABEL_SCHEMA, compression="zstd", write_page_checksum=True) as writer:
        writer.write_table(pa.table(columns, schema=PSEUDO_LABEL_SCHEMA))
        version = str(PSEUDO_LABEL_VERSION)
        writer.add_key_value_metadata({"s4m.shard_id": shard_id, "s4m.schema_version": version})
    return bytes(sink.getvalue())


def read_pseudo_labels(files: StoreFiles, records: Iterable[ShardRecord]) -> Iterator[PseudoLabel]:
    """All rows of published shards, in the records' order.

    Args:
        files: Of the folder that the labelling run wrote.
        records: ``StoreWriter.records()``.

    Raises:
        StoreDamagedError: A file is missing or is not what was written.
    """
    for record in records:
        entry = record.files[0]
        data = files.read_many([entry.path]).get(entry.path)
        got = "no file" if data is None else FileEntry.of(entry.path, data).sha256
        if data is None or got != entry.sha256:
            raise StoreDamagedError(
                "a file of pseudo-labels is missing or damaged",
                where=files.name(entry.path),
                expected=f"sha256 {entry.sha256}",
                got=got,
                fix=f"s4m-pipeline doctor {files.uri} --repair, then the same command again",
            )
        table = pq.read_table(pa.BufferReader(data), page_checksum_verification=True)
        columns = [
            table.column(name).to_pylist()
            for name in _FIELDS
            if name in table.column_names or not PSEUDO_LABEL_SCHEMA.field(name).nullable
        ]
        yield from (PseudoLabel(*row) for row in zip(*columns, strict=True))
