"""Zarr v3 shards as bytes: written whole in memory, read chunk by chunk, every piece under a crc32c.

The layout is plain Zarr (sharding codec, zstd, crc32c), which any Zarr reader opens; zarr-python itself writes only the
metadata here. It takes an absent chunk for zeros, and its sharded reads cost milliseconds for a small row, so the two
directions of the format stand side by side below instead.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import google_crc32c
import numpy as np
from numcodecs.zstd import Zstd
from numpy.typing import NDArray

from data_schemas.similarity import SIMILARITY_VERSION, SimilarityLayout

ROOT = "similarity.zarr"
_ZSTD_LEVEL = 3
_CRC_BYTES = 4
_ABSENT = np.uint64(2**64 - 1)


class ChunkError(ValueError):
    """A chunk is absent or does not have its checksum."""


@dataclass(frozen=True)
class ArraySpec:
    """One of the arrays, without its first axis (images)."""

    name: str
    dtype: str
    row_shape: tuple[int, ...]
    """Of one image."""
    chunk_shape: tuple[int, ...]
    """Of one inner chunk; cuts the first axis of ``row_shape`` only."""

    @property
    def chunks_per_image(self) -> int:
        """Inner chunks that one image takes."""
        return self.row_shape[0] // self.chunk_shape[0]

    def index_bytes(self, images_per_shard: int) -> int:
        """Length of the index at the end of a shard: offset and length of each chunk, and a checksum."""
        return 16 * images_per_shard * self.chunks_per_image + _CRC_BYTES


def array_specs(layout: SimilarityLayout) -> tuple[ArraySpec, ...]:
    """The arrays of a store, in the order of its files: points_xy, point_kind, similarity."""
    num, rows, grid = layout.num_points, layout.rows_per_chunk, layout.grid_hw
    return (
        ArraySpec("points_xy", "<f4", (num, 2), (num, 2)),
        ArraySpec("point_kind", "|u1", (num,), (num,)),
        ArraySpec("similarity", "|u1", (num, *grid), (rows, *grid)),
    )


def metadata_files(layout: SimilarityLayout, *, num_images: int, images_per_shard: int) -> list[tuple[str, bytes]]:
    """(path, bytes) of every ``zarr.json``, to be there before the first shard."""
    import zarr
    from zarr.codecs import Crc32cCodec, ZstdCodec
    from zarr.storage import MemoryStore

    made: dict[str, zarr.core.buffer.Buffer] = {}
    about = {"s4m.schema_version": SIMILARITY_VERSION, "s4m.similarity": "value = q / 127.5 - 1"}
    group = zarr.create_group(store=MemoryStore(made), attributes=about)
    for spec in array_specs(layout):
        group.create_array(
            spec.name,
            shape=(num_images, *spec.row_shape),
            shards=(images_per_shard, *spec.row_shape),
            chunks=(1, *spec.chunk_shape),
            dtype=np.dtype(spec.dtype),
            compressors=[ZstdCodec(level=_ZSTD_LEVEL), Crc32cCodec()],
            fill_value=0,
            config={"write_empty_chunks": True},
        )
    return [(f"{ROOT}/{name}", made[name].to_bytes()) for name in sorted(made)]


def encode_shard(images: Sequence[NDArray], spec: ArraySpec, *, images_per_shard: int) -> bytes:
    """One shard file.

    Args:
        images: At most ``images_per_shard`` arrays of ``spec.row_shape`` and ``spec.dtype``.
        spec: Of the array.
        images_per_shard: Places in the shard; unused ones (of the last shard) stay absent.

    Returns:
        The chunks in image order, so that an image is one contiguous range, then the index.
    """
    index = np.full((images_per_shard * spec.chunks_per_image, 2), _ABSENT, dtype="<u8")
    chunks: list[bytes] = []
    offset = 0
    for image in images:
        for part in image.reshape(spec.chunks_per_image, *spec.chunk_shape):
            index[len(chunks)] = offset, len(chunk := _encode_chunk(part, spec))
            chunks.append(chunk)
            offset += len(chunk)
    return b"".join([*chunks, _sealed(index.tobytes())])


def decode_index(data: bytes, spec: ArraySpec) -> NDArray[np.uint64]:
    """Offset and length of each chunk.

    Args:
        data: The last ``spec.index_bytes`` bytes of a shard.
        spec: Of the array.

    Returns:
        [images_per_shard, chunks_per_image, 2]

    Raises:
        ChunkError: The index is short or damaged.
    """
    return np.frombuffer(_unsealed(data, "the shard's index"), "<u8").reshape(-1, spec.chunks_per_image, 2)


def decode_chunk(data: bytes, spec: ArraySpec, *, what: str) -> NDArray:
    """One inner chunk, of ``spec.chunk_shape``; raises ChunkError naming ``what`` where it is damaged."""
    plain = Zstd().decode(_unsealed(data, what))
    if len(plain) != math.prod(spec.chunk_shape) * np.dtype(spec.dtype).itemsize:
        raise ChunkError(f"{what} has {len(plain)} bytes")
    return np.frombuffer(plain, spec.dtype).reshape(spec.chunk_shape)


def chunk_range(index: NDArray[np.uint64], slot: int, chunk: int) -> tuple[int, int]:
    """First and last (exclusive) byte of a chunk in its shard; raises ChunkError where it is absent."""
    offset, length = index[slot, chunk]
    if offset == _ABSENT:
        raise ChunkError(f"chunk {chunk} of place {slot} is absent")
    return int(offset), int(offset + length)


def _encode_chunk(part: NDArray, spec: ArraySpec) -> bytes:
    return _sealed(Zstd(level=_ZSTD_LEVEL).encode(np.ascontiguousarray(part, dtype=spec.dtype)))


def _sealed(data: bytes) -> bytes:
    data = bytes(data)
    checksum: int = google_crc32c.value(data)
    return data + checksum.to_bytes(_CRC_BYTES, "little")


def _unsealed(data: bytes, what: str) -> bytes:
    plain, stated = data[:-_CRC_BYTES], data[-_CRC_BYTES:]
    if len(data) <= _CRC_BYTES or google_crc32c.value(plain).to_bytes(_CRC_BYTES, "little") != stated:
        raise ChunkError(f"{what} ({len(data)} bytes) does not have its crc32c")
    return plain
