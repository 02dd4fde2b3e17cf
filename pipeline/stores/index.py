"""Where each image of a store is, from the manifest and the records alone; opens no data file."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from data_schemas.manifest import SCHEMA_VERSIONS, FileEntry, ImageKey, ImageOutcome, Kind, StoreIdentity, StorePart
from data_schemas.manifest import identity_differences as differences
from pipeline.errors import InputError, StoreDamagedError
from pipeline.stores.files import StoreFiles, open_files
from pipeline.stores.shards import read_manifest, read_records, record_path
from pipeline.stores.writer import mismatch, plans_of

Expectation = StoreIdentity | Mapping[str, object]
"""A whole identity, or only the fields that matter: ``{"sam_sha256": ..., "settings": {"points_per_side": 32}}``."""


class ImageNotStoredError(InputError, LookupError):
    """An image was asked for that the store does not have (exit 3)."""


@dataclass(frozen=True, slots=True)
class ImageEntry:
    """Where the rows of one image are."""

    image: ImageKey
    shard_index: int
    slot: int
    """Position of the image in its shard."""
    group: int
    """Number of the images with rows before it in its shard: its row group in the Parquet file."""
    outcome: ImageOutcome
    files: tuple[FileEntry, ...]


class StoreIndex:
    """Images of one kind in one store; immutable, so it sees shards that were finished when it was opened."""

    def __init__(self, files: StoreFiles, part: StorePart, entries: Mapping[int, ImageEntry]) -> None:
        """Use :meth:`open`."""
        self.files, self.part, self._entries = files, part, entries

    @classmethod
    def open(cls, uri: str | Path, kind: Kind, *, expect: Expectation | None = None) -> "StoreIndex":
        """Read the manifest and the records.

        Args:
            uri: Local folder or address.
            kind: Which artefact.
            expect: What the store must have been made of.

        Raises:
            InputError: There is no store, or it has no such artefact.
            StoreMismatchError: It was made of other things, or by another schema version.
            StoreDamagedError: The manifest or a record is damaged.
        """
        files = open_files(uri)
        manifest = read_manifest(files)
        if manifest is None or kind not in manifest.parts:
            raise InputError(
                f"no {kind} are stored here",
                where=files.uri,
                got=f"a store of {', '.join(manifest.parts)}" if manifest and manifest.parts else "no manifest.json",
                fix="s4m-pipeline precompute-sam CONFIG, or correct the path of the store",
            )
        part = manifest.parts[kind]
        _refuse_unexpected(files, part, expect)
        return cls(files, part, _entries(files, part))

    @property
    def image_ids(self) -> list[int]:
        """Images that can be read, rising; those with no rows included."""
        return [i for i, entry in self._entries.items() if entry.outcome.status == "ok"]

    @property
    def quarantined(self) -> dict[int, ImageOutcome]:
        """Images that were tried and set aside."""
        return {i: entry.outcome for i, entry in self._entries.items() if entry.outcome.status != "ok"}

    def find(self, image_id: int) -> ImageEntry:
        """Where an image is.

        Raises:
            ImageNotStoredError: It is not in the plan, not computed yet, or quarantined; the message says which.
        """
        entry = self._entries.get(image_id)
        if entry is not None and entry.outcome.status == "ok":
            return entry
        raise self._not_stored(image_id, entry)

    def damaged(self, path: str, *, image_id: int, got: object, expected: object = None) -> StoreDamagedError:
        """The error for a file that cannot be trusted."""
        return StoreDamagedError(
            f"the {self.part.identity.kind} of image {image_id} are damaged",
            where=self.files.name(path),
            expected=expected or "the bytes that were written",
            got=got,
            fix=f"s4m-pipeline doctor {self.files.uri}",
        )

    def _not_stored(self, image_id: int, entry: ImageEntry | None) -> ImageNotStoredError:
        kind, where = self.part.identity.kind, self.files.uri
        if entry is not None:
            outcome = entry.outcome
            return ImageNotStoredError(
                f"image {image_id} ({entry.image.file_name}) was quarantined, so it has no {kind}",
                where=where,
                got=f"{outcome.stage}: {outcome.reason}",
                fix="repair the image and try the quarantined ones again with s4m-pipeline precompute-sam CONFIG, "
                "or leave it out of the training set",
            )
        if any(image.image_id == image_id for image in self.part.images):
            return ImageNotStoredError(
                f"the {kind} of image {image_id} were not computed yet",
                where=where,
                got=f"{len(self._entries)} of {len(self.part.images)} images done",
                fix="run the same s4m-pipeline precompute-sam CONFIG again: it does only what is missing",
            )
        return ImageNotStoredError(
            f"image {image_id} was never part of this store",
            where=where,
            expected=f"one of its {len(self.part.images)} images",
            fix="precompute a store for the data set of this config, or correct the path of the store",
        )


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


def _entries(files: StoreFiles, part: StorePart) -> dict[int, ImageEntry]:
    records = read_records(files, part.shard_ids)
    entries: dict[int, ImageEntry] = {}
    for plan in plans_of(part):
        record = records.get(plan.shard_id)
        if record is None:
            continue
        ids = [image.image_id for image in plan.images]
        if isinstance(record, ValueError) or [o.image_id for o in record.outcomes] != ids:
            raise StoreDamagedError(
                "the record of a shard is damaged",
                where=files.name(record_path(plan.shard_id)),
                expected=f"the outcomes of images {ids[:4]} ...",
                got=record if isinstance(record, ValueError) else "other images",
                fix=f"s4m-pipeline doctor {files.uri}",
            )
        group = 0
        for slot, (image, outcome) in enumerate(zip(plan.images, record.outcomes, strict=True)):
            entries[image.image_id] = ImageEntry(image, plan.index, slot, group, outcome, record.files)
            group += outcome.rows > 0
    return entries
