"""The proposal library: every mask that SAM found in every image, as Parquet, read one image at a time.

Each image with proposals is one row group, so reading it touches one contiguous piece of one file. Its checksum is in
the footer, and the footer's in the shard's record.
"""

import logging
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np

from data_schemas.manifest import FileEntry, ImageKey, ImageOutcome, ShardRecord, StoreIdentity
from data_schemas.proposals import PROPOSAL_SCHEMA, Proposal, check_proposal, proposal_order
from pipeline.errors import InputError
from pipeline.masks.library import MaskLibrary
from pipeline.stores.cache import Lru
from pipeline.stores.index import Expectation, ImageEntry, ImageNotStoredError, StoreIndex
from pipeline.stores.proposal_pages import (
    PageError,
    RowGroup,
    RowGroups,
    check_row_group,
    codes_of,
    encode_shard,
    numbers_of,
)
from pipeline.stores.shards import ShardTask, data_paths, publish

_LOG = logging.getLogger(__name__)
_OPEN_SHARDS = 1024
"""Indices of row groups that are held, some 20 KB each."""


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


class ProposalStore:
    """Reads the library by image id. One object per process; it may be pickled into another."""

    def __init__(self, index: StoreIndex, *, quarantined_is_empty: bool = False) -> None:
        """Use :meth:`open`."""
        self._index = index
        self._row_groups: Lru[RowGroups] = Lru(_OPEN_SHARDS)
        self._quarantined_is_empty = quarantined_is_empty
        self._told: set[int] = set()

    @classmethod
    def open(
        cls, uri: str | Path, *, expect: Expectation | None = None, quarantined_is_empty: bool = False
    ) -> "ProposalStore":
        """Open for reading.

        Args:
            uri: Local folder or address.
            expect: What the store must have been made of.
            quarantined_is_empty: To :meth:`read_masks` an image that SAM could not do is one without proposals, told
                once: nothing matches there, and a training goes on.

        Raises:
            PipelineError: see ``StoreIndex.open``.
        """
        return cls(StoreIndex.open(uri, "proposals", expect=expect), quarantined_is_empty=quarantined_is_empty)

    @property
    def identity(self) -> StoreIdentity:
        """Who made it and with what."""
        return self._index.part.identity

    def image_ids(self) -> list[int]:
        """Images that can be read, rising; images without proposals included."""
        return self._index.image_ids

    def images(self) -> list[ImageKey]:
        """Those images with their names and sizes.

        Raises:
            StoreDamagedError: The list of images is missing or damaged.
        """
        planned, readable = self._index.images, set(self.image_ids())
        return [image for image in planned.between(0, len(planned)) if image.image_id in readable]

    def quarantined(self) -> dict[int, ImageOutcome]:
        """Images that were tried and set aside."""
        return self._index.quarantined

    def read(self, image_id: int) -> list[Proposal]:
        """All proposals of an image, best score first, with everything that is known of them.

        Returns:
            A new list; empty where SAM found nothing.

        Raises:
            ImageNotStoredError: Quarantined, not computed yet, or never planned.
            StoreDamagedError: The file is missing or does not pass its checksums.
        """
        entry = self._index.find(image_id)
        return _proposals(*self._row_group(entry)) if entry.outcome.rows else []

    def read_masks(self, image_id: int) -> MaskLibrary:
        """What training needs of an image's proposals, in the same order and with the same errors as :meth:`read`."""
        try:
            entry = self._index.find(image_id)
        except ImageNotStoredError:
            if not self._quarantined_is_empty or image_id not in self.quarantined():
                raise
            return self._empty(image_id)
        size_hw = entry.image.height, entry.image.width
        if entry.outcome.rows == 0:
            return MaskLibrary.from_rles([], size_hw=size_hw)
        data, group = self._row_group(entry)
        boxes = np.empty((group.rows, 4), np.float32)
        for place, axis in enumerate("xywh"):
            boxes[:, place] = numbers_of(data, group, f"bbox_{axis}")
        return MaskLibrary(size_hw, numbers_of(data, group, "area"), boxes, codes_of(data, group))

    def _empty(self, image_id: int) -> MaskLibrary:
        """The library of a quarantined image."""
        image = self._index.images.get(image_id)
        assert image is not None  # it was planned
        if image_id not in self._told:
            self._told.add(image_id)
            reason = self.quarantined()[image_id].reason
            _LOG.warning("%s has no proposals, nothing matches there: %s", image.file_name, reason)
        return MaskLibrary.from_rles([], size_hw=(image.height, image.width))

    def _row_group(self, entry: ImageEntry) -> tuple[bytes, RowGroup]:
        """The checked bytes of one image and what lies where in them: one range of one file."""
        file, image_id = entry.files[0], entry.image.image_id
        try:
            group = self._row_groups.get(file.path, lambda: self._open(file))[entry.group]
            if (group.image_id, group.rows) != (image_id, entry.outcome.rows):
                raise PageError(f"{group.rows} rows of image {group.image_id}, not {entry.outcome.rows}")
            data = self._index.files.read_range(file.path, group.start, group.start + group.ends[-1])
            check_row_group(data, group)
        except (OSError, PageError, IndexError) as error:
            raise self._index.damaged(file.path, image_id=image_id, got=str(error) or repr(error)) from error
        return data, group

    def _open(self, file: FileEntry) -> RowGroups:
        # One byte more than there should be, so that a longer file shows.
        end = self._index.files.read_range(file.path, file.num_bytes - file.footer_bytes, file.num_bytes + 1)
        got = FileEntry.of(file.path, end).sha256
        if got != file.footer_sha256:
            raise PageError(f"a footer with sha256 {got}, not {file.footer_sha256}")
        return RowGroups.of_footer(end)


def _rows(image: ImageKey, proposals: Sequence[Proposal]) -> list[Proposal]:
    try:
        for proposal in proposals:
            check_proposal(proposal, height=image.height, width=image.width)
    except ValueError as error:
        raise InputError(
            "a proposal does not fit its image", where=f"image {image.image_id} ({image.file_name})", got=error
        ) from error
    return sorted(proposals, key=proposal_order)


def _proposals(data: bytes, group: RowGroup) -> list[Proposal]:
    columns = {name: numbers_of(data, group, name).tolist() for name in PROPOSAL_SCHEMA.names if name != "rle_counts"}
    rows = zip(
        (code.decode() for code in codes_of(data, group)),
        *(columns[name] for name in ("height", "width", "area")),
        zip(*(columns[f"bbox_{axis}"] for axis in "xywh"), strict=True),
        columns["predicted_iou"],
        columns["stability_score"],
        zip(columns["point_x"], columns["point_y"], strict=True),
        strict=True,
    )
    return [Proposal(*row) for row in rows]
