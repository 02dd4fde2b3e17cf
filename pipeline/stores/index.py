"""Where each image of a store is, from the manifest and the index (or the records); opens no data file."""

from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np

from data_schemas.image_list import ImageList
from data_schemas.manifest import NOUNS, SCHEMA_VERSIONS, FileEntry, ImageOutcome, Kind, StoreIdentity, StorePart
from data_schemas.manifest import identity_differences as differences
from data_schemas.shard_index import ShardIndex
from pipeline.errors import InputError, StoreDamagedError
from pipeline.stores.cache import Lru
from pipeline.stores.consolidated import read_images, read_shards
from pipeline.stores.files import StoreFiles, open_files
from pipeline.stores.shards import read_manifest
from pipeline.stores.writer import mismatch

Expectation = StoreIdentity | Mapping[str, object]
"""A whole identity, or only the fields that matter: ``{"sam_sha256": ..., "settings": {"points_per_side": 32}}``."""
_CACHED_SHARDS = 4096


class ImageNotStoredError(InputError, LookupError):
    """An image was asked for that the store does not have (exit 3)."""


class StoredImage(NamedTuple):
    """An image of the store; its name is read from the list of images when one is asked for."""

    image_id: int
    height: int
    width: int
    origin: "StoreIndex"

    @property
    def file_name(self) -> str:
        """Relative to the image root."""
        return self.origin.file_name(self.image_id)


class ImageEntry(NamedTuple):
    """Where the rows of one image are."""

    image: StoredImage
    shard_index: int
    slot: int
    """Position of the image in its shard."""
    group: int
    """Number of the images with rows before it in its shard: its row group in the Parquet file."""
    outcome: ImageOutcome
    row: int
    """Of its shard among the finished ones."""

    @property
    def files(self) -> tuple[FileEntry, ...]:
        """Files of its shard."""
        return self.image.origin.files_of(self.row)


class StoreIndex:
    """Images of one kind in one store; immutable, so it sees shards that were finished when it was opened.

    A copy in another process is opened there anew.
    """

    def __init__(self, files: StoreFiles, part: StorePart, shards: ShardIndex) -> None:
        """Use :meth:`open`."""
        self.files, self.part, self._shards = files, part, shards
        self._files: Lru[tuple[FileEntry, ...]] = Lru(_CACHED_SHARDS)
        self._images: ImageList | None = None

    @classmethod
    def open(cls, uri: str | Path, kind: Kind, *, expect: Expectation | None = None) -> "StoreIndex":
        """Read the manifest and the index, or the records where there is no index.

        Args:
            uri: Local folder or address.
            kind: Which artefact.
            expect: What the store must have been made of.

        Raises:
            InputError: There is no store, or it has no such artefact.
            StoreMismatchError: It was made of other things, or by another schema version.
            StoreDamagedError: The manifest, or a record that was read, is damaged.
        """
        files = open_files(uri)
        manifest = read_manifest(files)
        if manifest is None or kind not in manifest.parts:
            raise InputError(
                f"no {NOUNS[kind]} are stored here",
                where=files.uri,
                got=f"a store of {', '.join(manifest.parts)}" if manifest and manifest.parts else "no manifest.json",
                fix="s4m-pipeline precompute-sam CONFIG, or correct the path of the store",
            )
        part = manifest.parts[kind]
        _refuse_unexpected(files, part, expect)
        return cls(files, part, read_shards(files, part))

    def __reduce__(self) -> tuple[object, ...]:
        """Open it again, and refuse a store that was made of other things meanwhile."""
        return _reopen, (self.files.uri, self.part.identity)

    @property
    def image_ids(self) -> list[int]:
        """Images that can be read, rising; those with no rows included."""
        ids: list[int] = self._shards.image_id[self._shards.is_ok].tolist()
        return ids

    @property
    def quarantined(self) -> dict[int, ImageOutcome]:
        """Images that were tried and set aside."""
        outcomes = [self._shards.outcome(place) for place in self._shards.bad_places.tolist()]
        return {outcome.image_id: outcome for outcome in outcomes}

    @property
    def images(self) -> ImageList:
        """All images of the plan, those not computed yet included; read at the first use.

        Raises:
            StoreDamagedError: The list is missing or damaged.
        """
        if self._images is None:
            self._images = read_images(self.files, self.part)
        return self._images

    def file_name(self, image_id: int) -> str:
        """Of an image of the plan; errors as :attr:`images`, KeyError for another image."""
        if (image := self.images.get(image_id)) is None:
            raise KeyError(image_id)
        return image.file_name

    def find(self, image_id: int) -> ImageEntry:
        """Where an image is.

        Raises:
            ImageNotStoredError: It is not in the plan, not computed yet, or quarantined; the message says which.
        """
        shards = self._shards
        place = shards.find(image_id)
        if place is None or not shards.is_ok[place]:
            raise self._not_stored(image_id, place)
        row = shards.shard_at(place)
        start = shards.starts.item(row)
        return ImageEntry(
            image=StoredImage(shards.image_id.item(place), shards.height.item(place), shards.width.item(place), self),
            shard_index=shards.shard_index.item(row),
            slot=place - start,
            group=int(np.count_nonzero(shards.rows[start:place])),
            outcome=shards.outcome(place),
            row=row,
        )

    def files_of(self, row: int) -> tuple[FileEntry, ...]:
        """Files of the finished shard number ``row``."""
        return self._files.get(row, lambda: self._shards.files(row))

    def damaged(self, path: str, *, image_id: int, got: object, expected: object = None) -> StoreDamagedError:
        """The error for a file that cannot be trusted."""
        return StoreDamagedError(
            f"the {self.part.identity.kind} of image {image_id} are damaged",
            where=self.files.name(path),
            expected=expected or "the bytes that were written",
            got=got,
            fix=f"s4m-pipeline doctor {self.files.uri}",
        )

    def _not_stored(self, image_id: int, place: int | None) -> ImageNotStoredError:
        noun, where = NOUNS[self.part.identity.kind], self.files.uri
        if place is not None:
            outcome = self._shards.outcome(place)
            return ImageNotStoredError(
                f"image {image_id} ({self.file_name(image_id)}) was quarantined, so it has no {noun}",
                where=where,
                got=f"{outcome.stage}: {outcome.reason}",
                fix="repair the image and try the quarantined ones again with s4m-pipeline precompute-sam CONFIG, "
                "or leave it out of the training set",
            )
        if self.images.get(image_id) is not None:
            return ImageNotStoredError(
                f"the {noun} of image {image_id} were not computed yet",
                where=where,
                got=f"{len(self._shards.image_id)} of {self.part.num_images} images done",
                fix="run the same s4m-pipeline precompute-sam CONFIG again: it does only what is missing",
            )
        return ImageNotStoredError(
            f"image {image_id} was never part of this store",
            where=where,
            expected=f"one of its {self.part.num_images} images",
            fix="precompute a store for the data set of this config, or correct the path of the store",
        )


def _reopen(uri: str, identity: StoreIdentity) -> StoreIndex:
    return StoreIndex.open(uri, identity.kind, expect=identity)


def _refuse_unexpected(files: StoreFiles, part: StorePart, expect: Expectation | None) -> None:
    version = SCHEMA_VERSIONS[part.identity.kind]
    found = differences(part.identity, {"schema_version": version})
    try:
        found += differences(part.identity, expect) if expect is not None else []
    except ValueError as error:
        raise InputError("a store cannot be checked against this expectation", where=files.uri, got=error) from error
    if found:
        unique = list({name: (name, stored, wanted) for name, stored, wanted in found}.values())
        fix = "give the config the store that belongs to it, or s4m-pipeline precompute-sam CONFIG with another path"
        raise mismatch(files, unique, fix_new=fix)
