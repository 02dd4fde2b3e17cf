"""The proposal library: every mask that SAM found in every image, as Parquet, read one image at a time.

Each image with proposals is one row group, so reading it touches one contiguous piece of one file. Page checksums are
written and verified; the footer, which they do not cover, has its checksum in the shard's record.
"""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from data_schemas.manifest import FileEntry, ImageKey, ImageOutcome, ShardRecord, StoreIdentity
from data_schemas.proposals import PROPOSAL_SCHEMA, PROPOSAL_VERSION, Proposal, check_proposal, proposal_order
from pipeline.errors import InputError
from pipeline.stores.cache import Lru
from pipeline.stores.index import Expectation, ImageEntry, StoreIndex
from pipeline.stores.shards import ShardTask, data_paths, publish

_OPEN_FILES, _DECODED_IMAGES = 64, 128


def commit_proposals(
    task: ShardTask,
    proposals: Mapping[int, Sequence[Proposal]],
    quarantined: Iterable[ImageOutcome] = (),
    *,
    retries: Mapping[int, int] | None = None,
) -> ShardRecord:
    """Publish one shard of the library.

    Args:
        task: From ``StoreWriter.missing``.
        proposals: Image id -> its proposals in any order; an empty list is legal.
        quarantined: The images of the shard that are not in ``proposals``.
        retries: Image id -> how often an image had to be tried again.

    Returns:
        The record, as written.

    Raises:
        InputError: An image of the shard is missing, or a proposal does not fit its image.
        StoreBusyError, EnvironmentProblemError: As ``publish``.
    """
    groups = {image.image_id: _rows(image, proposals.get(image.image_id, ())) for image in task.plan.images}
    ok = [ImageOutcome(i, "ok", rows=len(groups.get(i, ())), retries=(retries or {}).get(i, 0)) for i in proposals]
    data = encode_shard(groups, shard_id=task.plan.shard_id)
    footer_bytes = int.from_bytes(data[-8:-4], "little") + 8
    entry = FileEntry.of(data_paths("proposals", task.plan)[0], data, footer_bytes=footer_bytes)
    return publish(task, [(entry, data)], [*ok, *quarantined])


def encode_shard(groups: Mapping[int, Sequence[Proposal]], *, shard_id: str) -> bytes:
    """A Parquet file with one row group for each image that has rows; equal input gives equal bytes.

    Args:
        groups: Image id -> proposals in their final order; the images' order is kept.
        shard_id: Written into the file's metadata, so that a file tells where it belongs.
    """
    sink = pa.BufferOutputStream()
    with pq.ParquetWriter(
        sink,
        PROPOSAL_SCHEMA,
        compression="zstd",
        use_dictionary=False,
        write_page_checksum=True,
        store_schema=False,
    ) as writer:
        for image_id, rows in groups.items():
            if rows:
                writer.write_table(_table(image_id, rows), row_group_size=len(rows))
        writer.add_key_value_metadata({"s4m.shard_id": shard_id, "s4m.schema_version": str(PROPOSAL_VERSION)})
    return bytes(sink.getvalue())


class ProposalStore:
    """Reads the library by image id. One object per process; it may be pickled into another."""

    def __init__(self, index: StoreIndex) -> None:
        """Use :meth:`open`."""
        self._index = index
        self._open_files: Lru[pq.ParquetFile] = Lru(_OPEN_FILES)
        self._decoded: Lru[list[Proposal]] = Lru(_DECODED_IMAGES)

    @classmethod
    def open(cls, uri: str | Path, *, expect: Expectation | None = None) -> "ProposalStore":
        """Open for reading; see ``StoreIndex.open`` for the errors."""
        return cls(StoreIndex.open(uri, "proposals", expect=expect))

    @property
    def identity(self) -> StoreIdentity:
        """Who made it and with what."""
        return self._index.part.identity

    def image_ids(self) -> list[int]:
        """Images that can be read, rising; images without proposals included."""
        return self._index.image_ids

    def quarantined(self) -> dict[int, ImageOutcome]:
        """Images that were tried and set aside."""
        return self._index.quarantined

    def read(self, image_id: int) -> list[Proposal]:
        """All proposals of an image, best score first.

        Returns:
            A new list; empty where SAM found nothing.

        Raises:
            ImageNotStoredError: Quarantined, not computed yet, or never planned.
            StoreDamagedError: The file is missing or does not pass its checksums.
        """
        entry = self._index.find(image_id)
        if entry.outcome.rows == 0:
            return []
        return list(self._decoded.get(image_id, lambda: self._decode(entry)))

    def _decode(self, entry: ImageEntry) -> list[Proposal]:
        file, image_id = entry.files[0], entry.image.image_id
        try:
            opened = self._open_files.get(file.path, lambda: self._open(file, image_id))
            table = opened.read_row_group(entry.group, use_threads=False)
        except (OSError, pa.ArrowException, IndexError) as error:
            raise self._index.damaged(file.path, image_id=image_id, got=str(error) or repr(error)) from error
        columns = {name: _values(table.column(name)) for name in PROPOSAL_SCHEMA.names}
        if columns["image_id"] != [image_id] * entry.outcome.rows:
            got = f"{table.num_rows} rows of images {sorted(set(columns['image_id']))[:4]}"
            raise self._index.damaged(file.path, image_id=image_id, expected=f"{entry.outcome.rows} rows", got=got)
        return _proposals(columns)

    def _open(self, file: FileEntry, image_id: int) -> pq.ParquetFile:
        files = self._index.files
        if files.is_local:
            end = files.read_range(file.path, file.num_bytes - file.footer_bytes, file.num_bytes + 1)
            got = FileEntry.of(file.path, end).sha256
            expected, source = file.footer_sha256, pa.OSFile(files.name(file.path))
        else:
            # One request for the whole shard, a few megabytes, instead of one for every image.
            data = files.read(file.path)
            got, expected, source = FileEntry.of(file.path, data).sha256, file.sha256, pa.BufferReader(data)
        if got != expected:
            raise self._index.damaged(file.path, image_id=image_id, expected=f"sha256 {expected}", got=f"sha256 {got}")
        return pq.ParquetFile(source, page_checksum_verification=True)


def _rows(image: ImageKey, proposals: Sequence[Proposal]) -> list[Proposal]:
    try:
        for proposal in proposals:
            check_proposal(proposal, height=image.height, width=image.width)
    except ValueError as error:
        raise InputError(
            "a proposal does not fit its image", where=f"image {image.image_id} ({image.file_name})", got=error
        ) from error
    return sorted(proposals, key=proposal_order)


def _table(image_id: int, rows: Sequence[Proposal]) -> pa.Table:
    columns: dict[str, Any] = {
        "image_id": [image_id] * len(rows),
        "proposal_id": range(len(rows)),
        **{name: [getattr(row, name) for row in rows] for name in ("rle_counts", "height", "width", "area")},
        **{f"bbox_{axis}": [row.bbox_xywh[i] for row in rows] for i, axis in enumerate("xywh")},
        "predicted_iou": [row.predicted_iou for row in rows],
        "stability_score": [row.stability_score for row in rows],
        "point_x": [row.point_xy[0] for row in rows],
        "point_y": [row.point_xy[1] for row in rows],
    }
    return pa.table([pa.array(columns[field.name], field.type) for field in PROPOSAL_SCHEMA], schema=PROPOSAL_SCHEMA)


def _values(column: pa.ChunkedArray) -> list[Any]:
    if pa.types.is_string(column.type):
        return column.to_pylist()  # type: ignore[no-any-return]
    return column.to_numpy().tolist()  # type: ignore[no-any-return]


def _proposals(columns: Mapping[str, list[Any]]) -> list[Proposal]:
    boxes = zip(*(columns[f"bbox_{axis}"] for axis in "xywh"), strict=True)
    points = zip(columns["point_x"], columns["point_y"], strict=True)
    names = ("rle_counts", "height", "width", "area")
    rows = zip(
        *(columns[name] for name in names),
        boxes,
        columns["predicted_iou"],
        columns["stability_score"],
        points,
        strict=True,
    )
    return [Proposal(*row) for row in rows]
