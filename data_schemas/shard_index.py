"""The records of all finished shards of a part in one file, ``index/<kind>.arrows``, so that a store opens at once.

Derived and disposable: the records say the same. The file is an Arrow IPC stream of one batch with one row for each
shard, then the sha256 of the stream; readers of such streams ignore what follows their end mark.
"""

import hashlib
from collections.abc import Iterable
from dataclasses import asdict
from functools import cached_property
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from data_schemas.image_list import ImageList, find_id, numbers
from data_schemas.manifest import FileEntry, ImageOutcome, ShardRecord

INDEX_VERSION = 1
_SEAL_BYTES = hashlib.sha256().digest_size


def _struct(**types: pa.DataType) -> pa.DataType:
    return pa.struct([pa.field(name, kind, nullable=False) for name, kind in types.items()])


def _field(name: str, item: pa.DataType) -> pa.Field:
    return pa.field(name, pa.list_(pa.field("item", item, nullable=False)), nullable=False)


SHARD_INDEX_SCHEMA = pa.schema(
    [
        pa.field("shard_index", pa.int32(), nullable=False),
        pa.field("shard_id", pa.string(), nullable=False),
        _field("image_id", pa.int64()),
        _field("height", pa.int32()),
        _field("width", pa.int32()),
        _field("is_ok", pa.uint8()),
        _field("rows", pa.int32()),
        _field("retries", pa.int32()),
        _field("quarantined", _struct(stage=pa.string(), reason=pa.string())),
        _field(
            "files",
            _struct(
                path=pa.string(),
                num_bytes=pa.int64(),
                sha256=pa.string(),
                footer_bytes=pa.int64(),
                footer_sha256=pa.string(),
            ),
        ),
    ]
)
"""A row for each finished shard, by rising index; its lists have a value for each image, each image that is not ok
(in the same order), and each file."""


def _text(reason: str) -> str:
    """What UTF-8 can hold: a file's name may be in it, and need not be Unicode."""
    return reason.encode(errors="backslashreplace").decode()


class ShardIndex:
    """S finished shards with N images, by rising image id."""

    def __init__(self, batch: pa.RecordBatch) -> None:
        """``batch`` has :data:`SHARD_INDEX_SCHEMA`."""
        self._batch = batch
        self.shard_index: NDArray[np.int32] = numbers(batch.column("shard_index"))
        """[S] int32: number of the shard in the plan."""
        self.starts: NDArray[np.int32] = numbers(batch.column("image_id").offsets)
        """[S + 1] int32: where the images of each shard begin in the columns below."""
        self.image_id: NDArray[np.int64] = self._values("image_id")
        """[N] int64, rising."""
        self.height: NDArray[np.int32] = self._values("height")
        """[N] int32."""
        self.width: NDArray[np.int32] = self._values("width")
        """[N] int32."""
        self.is_ok: NDArray[np.bool_] = self._values("is_ok").view(np.bool_)
        """[N] bool: False for what was quarantined."""
        self.rows: NDArray[np.int32] = self._values("rows")
        """[N] int32."""
        self.retries: NDArray[np.int32] = self._values("retries")
        """[N] int32."""

    @classmethod
    def from_records(
        cls, records: Iterable[tuple[int, ShardRecord]], images: ImageList, *, fingerprint: str
    ) -> "ShardIndex":
        """Columns of the records of a part.

        Args:
            records: (number in the plan, record) by rising number.
            images: Of the part; has all that the records have.
            fingerprint: Of the part.
        """
        shards, names, files, bad, columns = [], [], [], [], []
        for shard, record in records:
            shards.append(shard)
            names.append(record.shard_id)
            files.append([asdict(entry) for entry in record.files])
            bad.append([{"stage": o.stage, "reason": _text(o.reason)} for o in record.outcomes if o.status != "ok"])
            columns.append(np.array([(o.image_id, o.status == "ok", o.rows, o.retries) for o in record.outcomes]).T)
        starts = pa.array(np.cumsum([0, *(column.shape[1] for column in columns)], dtype=np.int32))
        image_id, *rest = np.concatenate([np.empty((4, 0), np.int64), *columns], axis=1)
        places = images.image_ids.searchsorted(image_id)
        flat = [image_id, images.heights[places], images.widths[places], *rest]
        lists = [
            pa.ListArray.from_arrays(starts, pa.array(values, field.type.value_type), type=field.type)
            for values, field in zip(flat, list(SHARD_INDEX_SCHEMA)[2:8], strict=True)
        ]
        tail = [
            pa.array(values, SHARD_INDEX_SCHEMA.field(name).type)
            for name, values in [("quarantined", bad), ("files", files)]
        ]
        schema = SHARD_INDEX_SCHEMA.with_metadata(_metadata(fingerprint))
        head = [pa.array(shards, pa.int32()), pa.array(names, pa.string())]
        return cls(pa.RecordBatch.from_arrays([*head, *lists, *tail], schema=schema))

    @classmethod
    def from_bytes(cls, data: bytes, *, fingerprint: str) -> "ShardIndex":
        """The reverse of :meth:`to_bytes`; copies nothing, so it keeps ``data``.

        Args:
            data: The file.
            fingerprint: Of the part that the index must belong to.

        Raises:
            ValueError: Damaged, of another version, or of another part.
        """
        view = memoryview(data)
        stream, stated = view[:-_SEAL_BYTES], bytes(view[-_SEAL_BYTES:])
        got = hashlib.sha256(stream).digest()
        if got != stated:
            raise ValueError(f"its checksum is {got.hex()[:12]}, stated {stated.hex()[:12]}")
        try:
            batch = pa.ipc.open_stream(pa.py_buffer(stream)).read_next_batch()
        except (pa.ArrowException, OSError, StopIteration) as error:
            raise ValueError(f"not an Arrow stream: {error!r}") from error
        found = {key.decode(): value.decode() for key, value in (batch.schema.metadata or {}).items()}
        wanted = _metadata(fingerprint)
        if found != wanted or not batch.schema.equals(SHARD_INDEX_SCHEMA):
            raise ValueError(f"an index of {found}, this one would be of {wanted}")
        return cls(batch)

    def to_bytes(self) -> bytes:
        """As a sealed file; equal records give equal bytes."""
        sink = pa.BufferOutputStream()
        with pa.ipc.new_stream(sink, self._batch.schema) as writer:
            writer.write_batch(self._batch)
        stream = sink.getvalue()
        return bytes(stream) + hashlib.sha256(stream).digest()

    def __eq__(self, other: object) -> bool:
        """Whether all values are equal."""
        return isinstance(other, ShardIndex) and bool(self._batch.equals(other._batch, check_metadata=True))

    __hash__ = None  # type: ignore[assignment]

    def find(self, image_id: int) -> int | None:
        """Place of an image in the columns, if its shard is finished."""
        return find_id(self.image_id, image_id)

    def shard_at(self, place: int) -> int:
        """Row of the shard that has the image at ``place``."""
        # A number of another width would have the whole column converted.
        return int(self.starts.searchsorted(np.int32(place), side="right")) - 1

    def outcome(self, place: int) -> ImageOutcome:
        """How the image at ``place`` ended."""
        image_id, rows, retries = self.image_id.item(place), self.rows.item(place), self.retries.item(place)
        if self.is_ok[place]:
            return ImageOutcome(image_id, "ok", rows, retries=retries)
        why = self._batch.column("quarantined").values[int(self.bad_places.searchsorted(place))].as_py()
        return ImageOutcome(image_id, "quarantined", rows, **why, retries=retries)

    @cached_property
    def bad_places(self) -> NDArray[np.int64]:
        """Places of the quarantined images."""
        return np.flatnonzero(~self.is_ok)

    def files(self, row: int) -> tuple[FileEntry, ...]:
        """Files of a shard."""
        starts, (paths, num_bytes, digests, footer_bytes, footer_digests) = self._files
        return tuple(
            FileEntry(
                paths[i].as_py(), int(num_bytes[i]), digests[i].as_py(), int(footer_bytes[i]), footer_digests[i].as_py()
            )
            for i in range(starts[row], starts[row + 1])
        )

    @cached_property
    def _files(self) -> tuple[NDArray[np.int32], tuple[Any, ...]]:
        """Where each shard's files begin, and the columns of all files: numbers in NumPy, which is faster to ask."""
        column = self._batch.column("files")
        path, num_bytes, digest, footer_bytes, footer_digest = column.values.flatten()
        return numbers(column.offsets), (path, numbers(num_bytes), digest, numbers(footer_bytes), footer_digest)

    def _values(self, name: str) -> NDArray:
        return numbers(self._batch.column(name).values)


def _metadata(fingerprint: str) -> dict[str, str]:
    return {"s4m.index_version": str(INDEX_VERSION), "s4m.plan": fingerprint}
