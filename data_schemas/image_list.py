"""The images of a store as columns: the plan file, ``plan/<kind>.parquet``, written before any shard."""

import hashlib
from collections.abc import Sequence
from functools import cached_property

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from data_schemas.manifest import ImageKey

IMAGE_LIST_SCHEMA = pa.schema(
    [
        pa.field("image_id", pa.int64(), nullable=False),
        pa.field("file_name", pa.binary(), nullable=False),
        pa.field("height", pa.int32(), nullable=False),
        pa.field("width", pa.int32(), nullable=False),
    ]
)
"""``file_name`` is UTF-8 where the name is Unicode; names on a disk need not be."""
_ANY_NAME = "surrogatepass"


class ImageList:
    """N images by rising id; an :class:`ImageKey` is made when it is asked for."""

    def __init__(self, table: pa.Table) -> None:
        """``table`` has :data:`IMAGE_LIST_SCHEMA` and rising ids."""
        self._table = table.combine_chunks()
        self.image_ids: NDArray[np.int64] = self._numbers("image_id")
        """[N] int64."""
        self.heights: NDArray[np.int32] = self._numbers("height")
        """[N] int32."""
        self.widths: NDArray[np.int32] = self._numbers("width")
        """[N] int32."""

    @classmethod
    def of(cls, images: Sequence[ImageKey]) -> "ImageList":
        """Columns of ``images``, which must be sorted by id.

        Raises:
            ValueError: An id does not fit 64 bits, or a size 32.
        """
        columns = {
            "image_id": [image.image_id for image in images],
            "file_name": [image.file_name.encode(errors=_ANY_NAME) for image in images],
            "height": [image.height for image in images],
            "width": [image.width for image in images],
        }
        try:
            return cls(pa.table(columns, schema=IMAGE_LIST_SCHEMA))
        except (pa.ArrowException, OverflowError, TypeError) as error:
            raise ValueError(f"an id or a size is not a whole number of 64 and 32 bits: {error}") from error

    @classmethod
    def from_parquet(cls, data: bytes) -> "ImageList":
        """The reverse of :meth:`to_parquet`.

        Raises:
            ValueError: Not such a file.
        """
        try:
            table = pq.ParquetFile(pa.BufferReader(data)).read(use_threads=False)
        except (pa.ArrowException, OSError) as error:
            raise ValueError(f"not a Parquet file: {error}") from error
        if not table.schema.equals(IMAGE_LIST_SCHEMA):
            raise ValueError(f"not a list of images, but columns {table.schema.names}")
        return cls(table)

    def to_parquet(self) -> bytes:
        """As a Parquet file; equal lists give equal bytes with equal versions of pyarrow."""
        sink = pa.BufferOutputStream()
        pq.write_table(self._table, sink, compression="zstd", use_dictionary=False, store_schema=False)
        return bytes(sink.getvalue())

    @cached_property
    def digest(self) -> str:
        """sha256 (hex) of ids, sizes and names; no library has a part in it."""
        names = [name.as_py() for name in self._table.column("file_name")]
        whole = hashlib.sha256(np.ascontiguousarray(self.image_ids, "<i8").tobytes())
        for sizes in (self.heights, self.widths):
            whole.update(sizes.astype("<i4").tobytes())
        whole.update(np.array([len(name) for name in names], "<i8").tobytes())
        whole.update(b"".join(names))
        return whole.hexdigest()

    def __len__(self) -> int:
        """N."""
        return len(self.image_ids)

    def get(self, image_id: int) -> ImageKey | None:
        """The image of that id, if there is one."""
        place = find_id(self.image_ids, image_id)
        return None if place is None else self.between(place, place + 1)[0]

    def between(self, start: int, stop: int) -> tuple[ImageKey, ...]:
        """Images number ``start`` to ``stop``, counted by rising id."""
        columns = self._table.slice(start, max(stop - start, 0)).to_pydict()
        names = [name.decode(errors=_ANY_NAME) for name in columns["file_name"]]
        rows = zip(columns["image_id"], names, columns["height"], columns["width"], strict=True)
        return tuple(ImageKey(*row) for row in rows)

    def _numbers(self, name: str) -> NDArray:
        column = self._table.column(name)
        return numbers(column.chunk(0)) if column.num_chunks else np.empty(0, str(column.type))


def numbers(array: pa.Array) -> NDArray:
    """Values of an array of whole numbers without nulls, not copied: [N] of its own type.

    ``pa.Array.to_numpy`` does the same, but imports pandas first: a second and 40 MB of every process that reads.
    """
    dtype = np.dtype(str(array.type))
    if not len(array):
        return np.empty(0, dtype)
    return np.frombuffer(array.buffers()[1], dtype, len(array), array.offset * dtype.itemsize)


def find_id(image_ids: NDArray[np.int64], image_id: int) -> int | None:
    """Where a number stands in [N] rising int64, if it is there."""
    if not len(image_ids) or not image_ids[0] <= image_id <= image_ids[-1]:
        return None
    place = int(image_ids.searchsorted(image_id))
    return place if image_ids[place] == image_id else None
