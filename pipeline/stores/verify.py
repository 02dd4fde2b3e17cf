"""Look at every byte of a store, and forget what is damaged so that the next run makes it again."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from data_schemas.manifest import FileEntry, ShardRecord, StorePart
from pipeline.errors import InputError, StoreDamagedError
from pipeline.stores.files import StoreFiles, open_files
from pipeline.stores.lock import StoreLock
from pipeline.stores.shards import MANIFEST, ShardPlan, data_paths, read_manifest, read_records, record_path
from pipeline.stores.writer import plans_of


@dataclass(frozen=True)
class Damage:
    """One thing that is not as it was written."""

    file: str
    """Relative to the store."""
    kind: str
    """``missing``, ``size``, ``checksum``, ``record``, ``manifest``."""
    expected: str
    got: str
    shard_id: str = ""
    """Empty where no single shard is concerned."""


def verify(uri: str | Path) -> list[Damage]:
    """Check manifest, Zarr metadata, records and every data file against their checksums and counts.

    A shard without a record is unfinished, not damaged; ``StoreWriter.missing`` lists those.

    Returns:
        What is wrong, in the manifest's order; empty for a sound store.

    Raises:
        InputError: There is no store.
    """
    files = open_files(uri)
    try:
        manifest = read_manifest(files)
    except StoreDamagedError as error:
        return [Damage(MANIFEST, "manifest", str(error.expected), str(error.got))]
    if manifest is None:
        raise InputError("there is no store here", where=files.uri, expected=MANIFEST, fix="correct the path")
    return [damage for part in manifest.parts.values() for damage in _part_damages(files, part)]


def drop_damaged(uri: str | Path, damages: Sequence[Damage], *, lock_timeout: float = 0.0) -> list[str]:
    """Remove the records of damaged shards, and a damaged manifest, so that ``precompute-sam`` redoes only those.

    Safe because ids of shards are hashes of their inputs: a new manifest finds again only what belongs to it.

    Args:
        uri: The store.
        damages: From :func:`verify`.
        lock_timeout: Seconds to wait for a job that is writing the store.

    Returns:
        The files that were removed.

    Raises:
        StoreBusyError: A job is writing the store.
    """
    files = open_files(uri)
    removed = sorted(
        {record_path(d.shard_id) for d in damages if d.shard_id} | {d.file for d in damages if d.file == MANIFEST}
    )
    with StoreLock(files, "proposals").acquire(lock_timeout), StoreLock(files, "similarity").acquire(lock_timeout):
        for path in removed:
            files.delete(path)
    return removed


def _part_damages(files: StoreFiles, part: StorePart) -> Iterator[Damage]:
    for entry in part.files:
        yield from _file_damages(files, entry, "")
    records = read_records(files, part.shard_ids)
    for plan in plans_of(part):
        record = records.get(plan.shard_id)
        if isinstance(record, ValueError):
            path = record_path(plan.shard_id)
            yield Damage(path, "record", "the JSON that was written", str(record), plan.shard_id)
        elif record is not None:
            yield from _shard_damages(files, plan, record)


def _shard_damages(files: StoreFiles, plan: ShardPlan, record: ShardRecord) -> Iterator[Damage]:
    wanted = [image.image_id for image in plan.images]
    given = [outcome.image_id for outcome in record.outcomes]
    paths = [entry.path for entry in record.files]
    if given != wanted or paths != list(data_paths(record.kind, plan)):
        path = record_path(plan.shard_id)
        yield Damage(
            path, "record", f"images {wanted[:4]} ...", f"images {given[:4]} ..., files {paths}", plan.shard_id
        )
        return
    for entry in record.files:
        yield from _file_damages(files, entry, plan.shard_id)


def _file_damages(files: StoreFiles, entry: FileEntry, shard_id: str) -> Iterator[Damage]:
    try:
        data = files.read(entry.path)
    except FileNotFoundError:
        yield Damage(entry.path, "missing", f"{entry.num_bytes} bytes", "no file", shard_id)
        return
    if len(data) != entry.num_bytes:
        yield Damage(entry.path, "size", f"{entry.num_bytes} bytes", f"{len(data)} bytes", shard_id)
        return
    got = FileEntry.of(entry.path, data).sha256
    if got != entry.sha256:
        yield Damage(entry.path, "checksum", f"sha256 {entry.sha256}", f"sha256 {got}", shard_id)
