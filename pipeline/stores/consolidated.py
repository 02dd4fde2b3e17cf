"""A part as columns: the list of its images, and the index of its finished shards with the records to fall back on."""

from collections.abc import Iterator

from data_schemas.image_list import ImageList
from data_schemas.manifest import FileEntry, ShardRecord, StorePart
from data_schemas.shard_index import ShardIndex
from pipeline.errors import StoreDamagedError
from pipeline.stores.files import StoreFiles
from pipeline.stores.lock import StoreLock
from pipeline.stores.shards import image_list_path, index_path, iterate_records, record_path


def read_images(files: StoreFiles, part: StorePart) -> ImageList:
    """The images of a part.

    Raises:
        StoreDamagedError: The list is missing or is not what was written.
    """
    entry = next(entry for entry in part.files if entry.path == image_list_path(part.identity.kind))
    data = files.read_many([entry.path]).get(entry.path)
    got = "no file" if data is None else f"sha256 {FileEntry.of(entry.path, data).sha256}"
    if data is None or got != f"sha256 {entry.sha256}":
        raise StoreDamagedError(
            "the list of the store's images is missing or damaged",
            where=files.name(entry.path),
            expected=f"sha256 {entry.sha256}",
            got=got,
            fix="run the command that made the store again: it writes the list anew and keeps finished shards",
        )
    return ImageList.from_parquet(data)


def read_shards(files: StoreFiles, part: StorePart) -> ShardIndex:
    """All finished shards: from the index if there is one, else from the records, which takes longer.

    Raises:
        StoreDamagedError: A record is damaged, or was needed beside a damaged list of images.
    """
    found = read_index(files, part)
    return found if isinstance(found, ShardIndex) else index_of_records(files, part)


def read_index(files: StoreFiles, part: StorePart) -> ShardIndex | ValueError | None:
    """The index, what is wrong with it, or ``None`` where there is none."""
    path = index_path(part.identity.kind)
    # Read and not mapped: on a network disk, a mapped file that another machine deletes kills its readers.
    data = files.read_many([path]).get(path)
    if data is None:
        return None
    try:
        return ShardIndex.from_bytes(data, fingerprint=part.fingerprint)
    except ValueError as error:
        return error


def index_of_records(files: StoreFiles, part: StorePart) -> ShardIndex:
    """The index as the records have it. Errors as :func:`read_shards`."""
    images = read_images(files, part)
    return ShardIndex.from_records(_sound_records(files, part, images), images, fingerprint=part.fingerprint)


def publish_index(files: StoreFiles, part: StorePart, lock: StoreLock) -> None:
    """Put the records of a part together, when its workers are done; leaves a sound index as it is.

    Nothing is published beside a damaged record, so that readers come upon it, nor for a job that lost its store.

    Args:
        files: Of the store.
        part: With at least one finished shard, or else there will be no index.
        lock: Of the job. Its token changes: no worker that is still about publishes after this, but for one that had
            just looked at the token for the last time; ``verify`` names an index that misses its record.
    """
    if not lock.bar_workers() or isinstance(read_index(files, part), ShardIndex):
        return
    path = index_path(part.identity.kind)
    try:
        index = index_of_records(files, part)
    except StoreDamagedError:
        return
    if not lock.is_held():
        return
    if len(index.shard_index):
        files.write(path, index.to_bytes())
    else:
        files.delete(path)


def _sound_records(files: StoreFiles, part: StorePart, images: ImageList) -> Iterator[tuple[int, ShardRecord]]:
    size = part.images_per_shard
    numbers = {shard_id: number for number, shard_id in enumerate(part.shard_ids)}
    for shard_id, record in iterate_records(files, part.shard_ids):
        number = numbers[shard_id]
        ids = images.image_ids[number * size : (number + 1) * size].tolist()
        if isinstance(record, ValueError) or [outcome.image_id for outcome in record.outcomes] != ids:
            raise StoreDamagedError(
                "the record of a shard is damaged",
                where=files.name(record_path(shard_id)),
                expected=f"the outcomes of images {ids[:4]} ...",
                got=record if isinstance(record, ValueError) else "other images",
                fix=f"s4m-pipeline doctor {files.uri}",
            )
        yield number, record
