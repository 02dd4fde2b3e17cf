"""The targets of the structural distillation: sharded Zarr, written a shard at a time, read by image and row."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from data_schemas.manifest import FileEntry, ImageKey, ImageOutcome, ShardRecord, StoreIdentity
from data_schemas.similarity import NOT_COMPUTED, SimilarityLayout, SimilarityTargets, dequantise, quantise
from pipeline.errors import InputError
from pipeline.stores.cache import Lru
from pipeline.stores.index import Expectation, ImageEntry, StoreIndex
from pipeline.stores.shards import ShardTask, array_shard_path, publish
from pipeline.stores.similarity_arrays import (
    ArraySpec,
    ChunkError,
    array_specs,
    chunk_range,
    decode_chunk,
    decode_index,
    encode_shard,
)

_CACHED_INDICES = 1024


def commit_similarity(
    task: ShardTask,
    targets: Mapping[int, SimilarityTargets],
    quarantined: Iterable[ImageOutcome] = (),
    *,
    retries: Mapping[int, int] | None = None,
) -> ShardRecord:
    """Publish one shard of targets: three Zarr shards, then the record.

    Args:
        task: From ``StoreWriter.missing``.
        targets: Image id -> exactly ``num_points`` points on the grid of the store's layout.
        quarantined: The images of the shard that are not in ``targets``.
        retries: Image id -> how often an image had to be tried again.

    Returns:
        The record, as written.

    Raises:
        InputError: An image of the shard is missing, or targets do not fit the layout.
        StoreBusyError, EnvironmentProblemError: As ``publish``.
    """
    layout = _layout_of(task)
    rows = [_arrays(image, targets.get(image.image_id), layout) for image in task.plan.images]
    files = []
    for position, spec in enumerate(array_specs(layout)):
        data = encode_shard([row[position] for row in rows], spec, images_per_shard=task.images_per_shard)
        files.append((FileEntry.of(array_shard_path(spec.name, task.plan.index), data), data))
    ok = [ImageOutcome(i, "ok", rows=layout.num_points, retries=(retries or {}).get(i, 0)) for i in targets]
    return publish(task, files, [*ok, *quarantined])


class SimilarityStore:
    """Reads targets by image id. One object per process; it may be pickled into another."""

    def __init__(self, index: StoreIndex, layout: SimilarityLayout) -> None:
        """Use :meth:`open`."""
        self._index, self.layout = index, layout
        self._specs = {spec.name: (i, spec) for i, spec in enumerate(array_specs(layout))}
        self._shard_indices: Lru[NDArray[np.uint64]] = Lru(_CACHED_INDICES)

    @classmethod
    def open(cls, uri: str | Path, *, expect: Expectation | None = None) -> "SimilarityStore":
        """Open for reading; see ``StoreIndex.open`` for the errors."""
        index = StoreIndex.open(uri, "similarity", expect=expect)
        assert index.part.layout is not None  # the writer refuses a similarity part without one
        return cls(index, index.part.layout)

    @property
    def identity(self) -> StoreIdentity:
        """Who made it and with what."""
        return self._index.part.identity

    def image_ids(self) -> list[int]:
        """Images that can be read, rising."""
        return self._index.image_ids

    def quarantined(self) -> dict[int, ImageOutcome]:
        """Images that were tried and set aside."""
        return self._index.quarantined

    def read(self, image_id: int, rows: NDArray[np.int64] | None = None) -> SimilarityTargets:
        """Points of an image with their rows of cosines.

        Args:
            image_id: Of the image.
            rows: [R] int64 which points, in any order, repeats allowed; all where ``None``. Chunks of
                ``layout.rows_per_chunk`` rows are read whole, so neighbours are cheap.

        Returns:
            Targets of R points; the cosines are off by at most 1/255 from what was computed.

        Raises:
            ImageNotStoredError: Quarantined, not computed yet, or never planned.
            StoreDamagedError: A chunk is absent or does not pass its checksum.
            InputError: A row number is out of range.
        """
        wanted = self._checked_rows(rows)
        levels = self._rows(self._index.find(image_id), wanted)
        points, kind = self.points(image_id)
        return SimilarityTargets(points[wanted], kind[wanted], dequantise(levels))

    def points(self, image_id: int) -> tuple[NDArray[np.float32], NDArray[np.uint8]]:
        """All points of an image, [P, 2] float32 canonical (x, y), and their kinds [P] uint8: 0 inside the ground
        truth, 1 uniform; to choose rows before reading them. Errors as read."""
        entry = self._index.find(image_id)
        points, kind = self._chunks(entry, "points_xy", [0])[0], self._chunks(entry, "point_kind", [0])[0]
        return points.astype(np.float32), kind.copy()

    def _checked_rows(self, rows: NDArray[np.int64] | None) -> NDArray[np.int64]:
        num = self.layout.num_points
        if rows is None:
            return np.arange(num)
        wanted = np.asarray(rows)
        is_index = wanted.ndim == 1 and (wanted.size == 0 or np.issubdtype(wanted.dtype, np.integer))
        if not is_index or (wanted.size and not (wanted.min() >= 0 and wanted.max() < num)):
            raise InputError("rows of similarity targets", expected=f"integers from 0 to {num - 1}", got=rows)
        return wanted.astype(np.int64)

    def _rows(self, entry: ImageEntry, wanted: NDArray[np.int64]) -> NDArray[np.uint8]:
        size = self.layout.rows_per_chunk
        numbers = np.unique(wanted // size)  # [C] chunks to read
        levels = np.empty((len(wanted), *self.layout.grid_hw), np.uint8)
        for number, chunk in zip(numbers, self._chunks(entry, "similarity", numbers.tolist()), strict=True):
            inside = wanted // size == number
            levels[inside] = chunk[wanted[inside] % size]
        return levels

    def _chunks(self, entry: ImageEntry, name: str, numbers: Sequence[int]) -> list[NDArray]:
        """Some chunks of an image; one read for the range from the first to the last."""
        position, spec = self._specs[name]
        file, image_id = entry.files[position], entry.image.image_id
        if not numbers:
            return []
        try:
            index = self._shard_indices.get(file.path, lambda: self._shard_index(file, spec))
            ranges = [chunk_range(index, entry.slot, number) for number in numbers]
            first, last = ranges[0][0], ranges[-1][1]
            data = self._index.files.read_range(file.path, first, last)
            return [
                decode_chunk(data[start - first : end - first], spec, what=f"chunk {number} of image {image_id}")
                for number, (start, end) in zip(numbers, ranges, strict=True)
            ]
        except (OSError, ChunkError) as error:
            raise self._index.damaged(file.path, image_id=image_id, got=error) from error

    def _shard_index(self, file: FileEntry, spec: ArraySpec) -> NDArray[np.uint64]:
        num_bytes = spec.index_bytes(self._index.part.images_per_shard)
        # One byte more than there should be, so that a longer file shows.
        data = self._index.files.read_range(file.path, file.num_bytes - num_bytes, file.num_bytes + 1)
        return decode_index(data, spec)


def _layout_of(task: ShardTask) -> SimilarityLayout:
    if task.layout is None:
        raise InputError("this task is not of a similarity store", where=task.uri, got=task.kind)
    return task.layout


def _arrays(image: ImageKey, targets: SimilarityTargets | None, layout: SimilarityLayout) -> tuple[NDArray, ...]:
    """The three arrays of one image; a quarantined one keeps its place with values that no target has."""
    shape = (layout.num_points, *layout.grid_hw)
    if targets is None:
        nowhere = np.full((layout.num_points, 2), np.nan, np.float32)
        return nowhere, np.full(layout.num_points, NOT_COMPUTED, np.uint8), np.zeros(shape, np.uint8)
    try:
        if targets.similarity.shape != shape:
            raise ValueError(f"similarity of shape {targets.similarity.shape}, the store's is {shape}")
        if not np.isfinite(targets.points_xy).all():
            raise ValueError("a point is not finite")
        levels = quantise(targets.similarity)
    except ValueError as error:
        raise InputError(
            "targets do not fit the store", where=f"image {image.image_id} ({image.file_name})", got=error
        ) from error
    return targets.points_xy, targets.point_kind, levels
