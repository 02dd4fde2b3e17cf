"""A shard of the library as bytes: plain Parquet, of which one image is read without a Parquet library.

pyarrow writes: a row group for each image, one page for each column, no levels, no dictionary. The footer, whose
checksum is in the shard's record, also holds an index of the row groups (``s4m.row_groups``): where each begins, where
each of its columns ends, and its crc32c. So an image is one range of bytes and one checksum; a column is the tail of
its piece of that range. Any other reader takes the file for what it is.
"""

import base64
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import google_crc32c
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from data_schemas.proposals import PLAIN_COLUMNS, PROPOSAL_SCHEMA, PROPOSAL_VERSION, Proposal
from pipeline.errors import EnvironmentProblemError, InputError
from pipeline.stores.parquet_page import header_end, page_sizes

ROW_GROUPS_KEY = "s4m.row_groups"
MAX_ROWS = 20_000
"""Of an image: the writer would begin a second page after as many."""

_ZSTD_LEVEL = 9
_ZSTD = pa.Codec("zstd")
_PAGE_BYTES = 1 << 30
_NAMES = PROPOSAL_SCHEMA.names
_COLUMN = {name: number for number, name in enumerate(_NAMES)}
_CODES = "rle_counts"
_DTYPES = {field.name: np.dtype(field.type.to_pandas_dtype()) for field in PROPOSAL_SCHEMA if field.name != _CODES}
_LENGTH_BYTES = 4  # before each code of a page
_INDEX = np.dtype(
    [("image_id", "<i8"), ("start", "<u8"), ("rows", "<u4"), ("crc32c", "<u4"), ("ends", "<u4", (len(_NAMES),))]
)


class PageError(ValueError):
    """The bytes are not those that were written."""


@dataclass(frozen=True, slots=True)
class RowGroup:
    """Where one image is in its file."""

    image_id: int
    start: int
    """Byte in the file."""
    rows: int
    crc32c: int
    """Of all its bytes."""
    ends: tuple[int, ...]
    """Where each column ends, in bytes from ``start``."""


class RowGroups:
    """The index of one file, as small as an array: a process holds those of a thousand shards."""

    def __init__(self, table: NDArray[np.void]) -> None:
        """Use :meth:`of_footer`."""
        self._table = table

    @classmethod
    def of_footer(cls, data: bytes) -> "RowGroups":
        """Read the index.

        Args:
            data: The last bytes of a file, its whole footer among them; checked before.

        Raises:
            PageError: There is no such index.
        """
        try:
            metadata = pq.read_metadata(pa.BufferReader(data)).metadata or {}
            text = metadata[ROW_GROUPS_KEY.encode()]
            return cls(np.frombuffer(base64.b64decode(text, validate=True), _INDEX))
        except (pa.ArrowException, OSError, KeyError, ValueError) as error:
            raise PageError(f"no index of row groups: {error!r}") from error

    def __len__(self) -> int:
        """Return the number of row groups."""
        return len(self._table)

    def __getitem__(self, number: int) -> RowGroup:
        """Return row group ``number``; raises IndexError."""
        image_id, start, rows, crc32c, ends = self._table[number].item()
        return RowGroup(image_id, start, rows, crc32c, tuple(ends.tolist()))


def encode_shard(groups: Mapping[int, Sequence[Proposal]], *, shard_id: str) -> bytes:
    """A Parquet file with one row group for each image that has rows; equal input gives equal bytes.

    Args:
        groups: Image id -> proposals in their final order; the images' order is kept.
        shard_id: Written into the file's metadata, so that a file tells where it belongs.

    Raises:
        InputError: An image has more than ``MAX_ROWS`` proposals.
        EnvironmentProblemError: The installed pyarrow lays pages out in another way.
    """
    sink, places = io.BytesIO(), []
    with _writer(sink) as writer:
        for image_id, rows in groups.items():
            if len(rows) > MAX_ROWS:
                raise InputError(
                    "too many proposals",
                    where=f"image {image_id} of shard {shard_id}",
                    expected=f"at most {MAX_ROWS}",
                    got=len(rows),
                    fix=f"keep the best {MAX_ROWS} of this image, then run the same command again",
                )
            if rows:
                start = sink.tell()
                writer.write_table(_table(image_id, rows), row_group_size=len(rows))
                sink.seek(start)
                data = sink.read()
                places.append((image_id, start, len(rows), google_crc32c.value(data), _column_ends(data, rows)))
        index = np.array(places, _INDEX)
        writer.add_key_value_metadata(
            {
                "s4m.shard_id": shard_id,
                "s4m.schema_version": str(PROPOSAL_VERSION),
                ROW_GROUPS_KEY: base64.b64encode(index.tobytes()).decode(),
            }
        )
    return sink.getvalue()


def check_row_group(data: bytes, group: RowGroup) -> None:
    """Raise PageError unless ``data`` are the bytes of this row group."""
    if len(data) != group.ends[-1] or google_crc32c.value(data) != group.crc32c:
        raise PageError(f"{len(data)} bytes at {group.start} that do not have their crc32c")


def numbers_of(data: bytes, group: RowGroup, name: str) -> NDArray:
    """A column of numbers.

    Args:
        data: A checked row group.
        group: Where its columns are.
        name: Of the column.

    Returns:
        [rows], read only, of the column's type.
    """
    column, dtype = _COLUMN[name], _DTYPES[name]
    if name in PLAIN_COLUMNS:
        return np.frombuffer(data, dtype, group.rows, group.ends[column] - group.rows * dtype.itemsize)
    return np.frombuffer(_unpacked(data, group, column), dtype, group.rows)


def codes_of(data: bytes, group: RowGroup) -> tuple[bytes, ...]:
    """The run lengths of all rows of a checked row group, as they were encoded."""
    page, codes, at = _unpacked(data, group, _COLUMN[_CODES]), [], 0
    for _ in range(group.rows):
        start = at + _LENGTH_BYTES
        at = start + int.from_bytes(page[at:start], "little")
        codes.append(page[start:at])
    return tuple(codes)


def _writer(sink: io.BytesIO) -> pq.ParquetWriter:
    packed = [name for name in _NAMES if name not in PLAIN_COLUMNS]
    return pq.ParquetWriter(
        sink,
        PROPOSAL_SCHEMA,
        compression={name: "zstd" if name in packed else "none" for name in _NAMES},
        compression_level=dict.fromkeys(packed, _ZSTD_LEVEL),
        use_dictionary=False,
        # Minima and maxima of long codes would be a third of the file; a filter by image is all that they serve.
        write_statistics=["image_id"],
        data_page_size=_PAGE_BYTES,
        write_page_checksum=True,
        store_schema=False,
    )


def _table(image_id: int, rows: Sequence[Proposal]) -> pa.Table:
    columns: dict[str, Any] = {
        "image_id": [image_id] * len(rows),
        "proposal_id": range(len(rows)),
        **{name: [getattr(row, name) for row in rows] for name in (_CODES, "height", "width", "area")},
        **{f"bbox_{axis}": [row.bbox_xywh[i] for row in rows] for i, axis in enumerate("xywh")},
        "predicted_iou": [row.predicted_iou for row in rows],
        "stability_score": [row.stability_score for row in rows],
        "point_x": [row.point_xy[0] for row in rows],
        "point_y": [row.point_xy[1] for row in rows],
    }
    return pa.table([pa.array(columns[field.name], field.type) for field in PROPOSAL_SCHEMA], schema=PROPOSAL_SCHEMA)


def _column_ends(data: bytes, rows: Sequence[Proposal]) -> tuple[int, ...]:
    """Where each column of a row group ends, after making sure that it is one page of plain values."""
    ends, at = [], 0
    for name in _NAMES:
        if name == _CODES:
            expected = sum(_LENGTH_BYTES + len(row.rle_counts) for row in rows)
        else:
            expected = len(rows) * _DTYPES[name].itemsize
        plain, stored = page_sizes(data, at)
        if plain != expected or (name in PLAIN_COLUMNS and stored != expected):
            raise _unknown_layout(f"a page of {plain} bytes for {expected} of {name}")
        at = header_end(data, at) + stored
        ends.append(at)
    if at != len(data):
        raise _unknown_layout(f"{len(data)} bytes instead of {at} for a row group")
    return tuple(ends)


def _unknown_layout(got: str) -> EnvironmentProblemError:
    return EnvironmentProblemError(
        "this pyarrow writes Parquet pages in another way",
        where=f"pyarrow {pa.__version__}",
        expected="one page for each column of a row group",
        got=got,
        fix="install another version of pyarrow",
    )


def _unpacked(data: bytes, group: RowGroup, column: int) -> bytes:
    plain, stored = page_sizes(data, group.ends[column - 1] if column else 0)
    end = group.ends[column]
    return bytes(_ZSTD.decompress(data[end - stored : end], plain, asbytes=True))
