"""Look at every byte of a store, and forget what is damaged so that the next run makes it again."""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from data_schemas.manifest import SCHEMA_VERSIONS, FileEntry, ShardRecord, StoreIdentity, StorePart
from pipeline.errors import InputError, StoreDamagedError
from pipeline.stores.consolidated import index_of_records, read_images, read_index
from pipeline.stores.files import StoreFiles, open_files
from pipeline.stores.lock import StoreLock
from pipeline.stores.shards import MANIFEST, index_path, iterate_records, read_manifest, record_path, shard_paths
from pipeline.stores.writer import StoreCounts, count_images


@dataclass(frozen=True)
class Damage:
    """One thing that is not as it was written."""

    file: str
    """Relative to the store."""
    kind: str
    """``missing``, ``size``, ``checksum``, ``record``, ``index``, ``manifest``."""
    expected: str
    got: str
    shard_id: str = ""
    """Empty where no single shard is concerned."""


def verify(uri: str | Path) -> list[Damage]:
    """Check manifest, image lists, Zarr metadata, records, every data file and the indices against each other.

    A shard without a record is unfinished, not damaged; :func:`progress` counts those.

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


@dataclass(frozen=True)
class Progress:
    """How much of one kind of artefact is there."""

    identity: StoreIdentity
    shards_done: int
    shards: int
    counts: StoreCounts
    set_aside: tuple[str, ...]
    """``StoreCounts.reasons``; nothing where the list of images is damaged."""


def progress(uri: str | Path) -> list[Progress]:
    """What the records say of each kind, in the manifest's order; nothing where there is no manifest.

    Raises:
        StoreDamagedError: The manifest is damaged.
    """
    files = open_files(uri)
    manifest = read_manifest(files)
    found = []
    for part in manifest.parts.values() if manifest else ():
        records = [record for _, record in iterate_records(files, part.shard_ids) if isinstance(record, ShardRecord)]
        counts = count_images(part, records)
        named = _set_aside(files, part, counts)
        found.append(Progress(part.identity, len(records), len(part.shard_ids), counts, named))
    return found


def _set_aside(files: StoreFiles, part: StorePart, counts: StoreCounts) -> tuple[str, ...]:
    if not counts.quarantined:
        return ()
    try:
        images = read_images(files, part)
    except StoreDamagedError:
        return ()

    def name_of(image_id: int) -> str:
        image = images.get(image_id)
        return image.file_name if image is not None else f"image {image_id}"

    return tuple(counts.reasons(name_of))


def drop_damaged(uri: str | Path, damages: Sequence[Damage], *, lock_timeout: float = 0.0) -> list[str]:
    """Remove the records of damaged shards, a damaged manifest and damaged indices, so that the next run of the command
    that made the store redoes only those; it also writes damaged image lists and Zarr metadata anew.

    Safe because ids of shards are hashes of their inputs: a new manifest finds again only what belongs to it.

    Args:
        uri: The store.
        damages: From :func:`verify`.
        lock_timeout: Seconds to wait for a job that is writing the store.

    Returns:
        The files that were removed: indices first, as with every change of records.

    Raises:
        StoreBusyError: A job is writing the store.
    """
    files = open_files(uri)
    indices = [index_path(kind) for kind in SCHEMA_VERSIONS]
    records = sorted({record_path(d.shard_id) for d in damages if d.shard_id})
    named = {damage.file for damage in damages}
    with ExitStack() as locks:
        for kind in SCHEMA_VERSIONS:
            locks.enter_context(StoreLock(files, kind).acquire(lock_timeout))
        there = files.read_many(indices)
        removed = [path for path in indices if path in there and (records or path in named)]
        removed += [*records, *({MANIFEST} & named)]
        for path in removed:
            files.delete(path)
    return removed


def _part_damages(files: StoreFiles, part: StorePart) -> Iterator[Damage]:
    for entry in part.files:
        yield from _file_damages(files, entry, "")
    try:
        image_ids = read_images(files, part).image_ids
    except StoreDamagedError:
        image_ids = None  # named above; the shards are checked without it
    numbers, size = {shard_id: number for number, shard_id in enumerate(part.shard_ids)}, part.images_per_shard
    is_sound = image_ids is not None
    for shard_id, record in iterate_records(files, part.shard_ids):
        number = numbers[shard_id]
        ids = None if image_ids is None else image_ids[number * size : (number + 1) * size].tolist()
        if isinstance(record, ShardRecord) and _describes(record, shard_paths(record.kind, number, shard_id), ids):
            for entry in record.files:
                yield from _file_damages(files, entry, shard_id)
        else:
            is_sound = False
            yield _record_damage(record, shard_id, ids)
    yield from _index_damages(files, part, are_records_sound=is_sound)


def _describes(record: ShardRecord, paths: Sequence[str], ids: Sequence[int] | None) -> bool:
    is_of_images = ids is None or [outcome.image_id for outcome in record.outcomes] == ids
    return is_of_images and [entry.path for entry in record.files] == list(paths)


def _record_damage(record: ShardRecord | ValueError, shard_id: str, ids: Sequence[int] | None) -> Damage:
    path = record_path(shard_id)
    if isinstance(record, ValueError):
        return Damage(path, "record", "the JSON that was written", str(record), shard_id)
    got = f"images {[o.image_id for o in record.outcomes[:4]]} ..., files {[entry.path for entry in record.files]}"
    return Damage(path, "record", f"images {list(ids or ())[:4]} ...", got, shard_id)


def _index_damages(files: StoreFiles, part: StorePart, *, are_records_sound: bool) -> Iterator[Damage]:
    found, path = read_index(files, part), index_path(part.identity.kind)
    if isinstance(found, ValueError):
        yield Damage(path, "index", "the index of this part", str(found))
    elif found is not None and are_records_sound and found != index_of_records(files, part):
        yield Damage(path, "index", "what the records say", "other shards, images or files")


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
