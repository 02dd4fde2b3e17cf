"""What a store says about itself: who made it, from what, and what each finished shard holds.

``manifest.json`` is one :class:`Manifest`; it changes only when a part is added. ``records/<shard id>.json`` is one
:class:`ShardRecord`, written after the data of its shard: no record, no shard. Both carry a checksum of themselves.
The images of a part are in a file of their own (``image_list.py``), which the part names with its checksum.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from typing import Any, Literal

from data_schemas.proposals import PROPOSAL_VERSION
from data_schemas.pseudo_labels import PSEUDO_LABEL_VERSION
from data_schemas.similarity import SIMILARITY_VERSION, SimilarityLayout

MANIFEST_VERSION = 2
Kind = Literal["proposals", "similarity", "pseudo_labels"]
SCHEMA_VERSIONS: dict[str, int] = {
    "proposals": PROPOSAL_VERSION,
    "similarity": SIMILARITY_VERSION,
    "pseudo_labels": PSEUDO_LABEL_VERSION,
}
NOUNS: Mapping[str, str] = {
    "similarity": "similarity targets",
    "proposals": "proposals",
    "pseudo_labels": "pseudo-labels",
}
"""Kind -> what messages call its content."""
IMPORTED = "import:"
"""How ``sam_name`` begins where masks were made elsewhere."""


@dataclass(frozen=True)
class StoreIdentity:
    """Everything that must be equal for two runs to share a store."""

    kind: Kind
    schema_version: int
    dataset_fingerprint: str
    sam_name: str
    sam_sha256: str
    settings: Mapping[str, object] = field(default_factory=dict)
    """Generator or target settings; plain JSON values."""

    @property
    def command(self) -> str:
        """That makes such an artefact and goes on with it: what a message tells to run."""
        if self.kind == "pseudo_labels":
            return "pseudo-label"
        return "import-proposals" if self.sam_name.startswith(IMPORTED) else "precompute-sam"

    def to_json(self) -> dict[str, Any]:
        """As plain JSON values (tuples become lists); raises TypeError or ValueError where that cannot be."""
        values: dict[str, Any] = json.loads(json.dumps(asdict(self), allow_nan=False))
        return values

    def flat(self) -> dict[str, object]:
        """Field name -> value, settings as ``settings.<name>``: what a mismatch is reported by."""
        values = self.to_json()
        settings = values.pop("settings")
        return {**values, **{f"settings.{name}": value for name, value in settings.items()}}


@dataclass(frozen=True)
class ImageKey:
    """An image as far as the plan of a store knows it."""

    image_id: int
    file_name: str
    height: int
    width: int


@dataclass(frozen=True)
class FileEntry:
    """A published file."""

    path: str
    """Relative to the store, with forward slashes."""
    num_bytes: int
    sha256: str
    footer_bytes: int = 0
    """Parquet only: length of the tail (footer, its length, magic) ..."""
    footer_sha256: str = ""
    """... and its checksum, because page checksums do not cover the footer."""

    @classmethod
    def of(cls, path: str, data: bytes, *, footer_bytes: int = 0) -> "FileEntry":
        """Describe ``data``, to be published as ``path``."""
        footer = hashlib.sha256(data[-footer_bytes:]).hexdigest() if footer_bytes else ""
        return cls(path, len(data), hashlib.sha256(data).hexdigest(), footer_bytes, footer)


@dataclass(frozen=True)
class ImageOutcome:
    """How one image ended: with rows, or set aside with the stage that failed and why."""

    image_id: int
    status: Literal["ok", "quarantined"]
    rows: int = 0
    stage: str = ""
    reason: str = ""
    retries: int = 0

    @classmethod
    def quarantined(cls, image_id: int, *, stage: str, reason: str, retries: int = 0) -> "ImageOutcome":
        """An image that could not be done."""
        return cls(image_id, "quarantined", 0, stage, reason, retries)


@dataclass(frozen=True)
class ShardRecord:
    """One finished shard."""

    shard_id: str
    kind: Kind
    files: tuple[FileEntry, ...]
    outcomes: tuple[ImageOutcome, ...]
    """One for each image of the shard, in the plan's order."""
    library_versions: Mapping[str, str]

    @property
    def rows(self) -> int:
        """Rows of all its images."""
        return sum(outcome.rows for outcome in self.outcomes)

    def to_bytes(self) -> bytes:
        """As a sealed JSON file."""
        return seal(asdict(self) | {"rows": self.rows})

    @classmethod
    def from_bytes(cls, data: bytes) -> "ShardRecord":
        """The reverse of :meth:`to_bytes`.

        Raises:
            ValueError: Not JSON, not sealed, damaged, or not a record.
        """
        values = unseal(data)
        try:
            files = tuple(FileEntry(**entry) for entry in values["files"])
            outcomes = tuple(ImageOutcome(**outcome) for outcome in values["outcomes"])
            record = cls(values["shard_id"], values["kind"], files, outcomes, values["library_versions"])
        except (KeyError, TypeError) as error:
            raise ValueError(f"not a shard record: {error!r}") from error
        if record.rows != values.get("rows"):
            raise ValueError(f"rows of its images sum to {record.rows}, stated {values.get('rows')}")
        return record


@dataclass(frozen=True)
class StorePart:
    """The plan of one kind of artefact in a store."""

    identity: StoreIdentity
    num_images: int
    images_digest: str
    """Of ids, names and sizes (``ImageList.digest``): tells lists apart without reading them."""
    images_per_shard: int
    shard_ids: tuple[str, ...]
    layout: SimilarityLayout | None
    files: tuple[FileEntry, ...]
    """Files made before the fan-out: the list of images, the Zarr metadata."""
    library_versions: Mapping[str, str]

    @cached_property
    def fingerprint(self) -> str:
        """sha256 (hex) of what decides which image is where; equal only for the same plan."""
        return digest([self.identity.kind, self.images_digest, self.images_per_shard, list(self.shard_ids)])

    def to_json(self) -> dict[str, object]:
        """As plain JSON values."""
        return {
            "identity": self.identity.to_json(),
            "num_images": self.num_images,
            "images_digest": self.images_digest,
            "images_per_shard": self.images_per_shard,
            "shard_ids": list(self.shard_ids),
            "layout": self.layout.to_json() if self.layout else None,
            "files": [asdict(entry) for entry in self.files],
            "library_versions": dict(self.library_versions),
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> "StorePart":
        """The reverse of :meth:`to_json`; raises KeyError, TypeError or ValueError."""
        return cls(
            identity=StoreIdentity(**data["identity"]),
            num_images=data["num_images"],
            images_digest=data["images_digest"],
            images_per_shard=data["images_per_shard"],
            shard_ids=tuple(data["shard_ids"]),
            layout=SimilarityLayout.from_json(data["layout"]) if data["layout"] else None,
            files=tuple(FileEntry(**entry) for entry in data["files"]),
            library_versions=data["library_versions"],
        )


@dataclass(frozen=True)
class Manifest:
    """All parts of one store."""

    parts: Mapping[str, StorePart]

    def to_bytes(self) -> bytes:
        """As a sealed JSON file."""
        parts = {kind: part.to_json() for kind, part in self.parts.items()}
        return seal({"manifest_version": MANIFEST_VERSION, "parts": parts})

    @classmethod
    def from_bytes(cls, data: bytes) -> "Manifest":
        """The reverse of :meth:`to_bytes`.

        Raises:
            ValueError: Not JSON, not sealed, damaged, of another version, or not a manifest.
        """
        values = unseal(data)
        version = values.get("manifest_version")
        if version != MANIFEST_VERSION:
            raise ValueError(f"manifest version {version}, this program reads {MANIFEST_VERSION}")
        try:
            return cls({kind: StorePart.from_json(part) for kind, part in values["parts"].items()})
        except (KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"not a store manifest: {error!r}") from error


def digest(values: object) -> str:
    """sha256 (hex) of JSON values, independent of key order and white space."""
    text = json.dumps(values, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


def seal(values: Mapping[str, object]) -> bytes:
    """JSON with a checksum of itself; equal values give equal bytes."""
    sealed = {**values, "checksum": digest(values)}
    return (json.dumps(sealed, sort_keys=True, indent=1, ensure_ascii=True) + "\n").encode()


def unseal(data: bytes) -> dict[str, Any]:
    """The reverse of :func:`seal`; raises ValueError when a single bit of the values is not what was sealed."""
    try:
        values = json.loads(data)
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ValueError(f"not JSON: {error}") from error
    if not isinstance(values, dict) or "checksum" not in values:
        raise ValueError("not a JSON object with a checksum")
    stated = values.pop("checksum")
    if digest(values) != stated:
        raise ValueError(f"its checksum is {digest(values)[:12]}, stated {str(stated)[:12]}")
    return values


def identity_differences(
    stored: StoreIdentity, wanted: "StoreIdentity | Mapping[str, object]"
) -> list[tuple[str, object, object]]:
    """Where a store is not what a reader or writer wants.

    Args:
        stored: Of the store.
        wanted: A whole identity, or some of its fields by name; ``settings`` may hold some settings only, and a
            single setting may also be named ``settings.<name>``.

    Returns:
        (field, stored value, wanted value), sorted by field; a value that is not there is ``None``.

    Raises:
        ValueError: ``wanted`` names a field that identities do not have.
    """
    have = stored.flat()
    want = wanted.flat() if isinstance(wanted, StoreIdentity) else _flat_expectation(wanted)
    names: Sequence[str] = sorted({*have, *want} if isinstance(wanted, StoreIdentity) else want)
    return [(name, have.get(name), want.get(name)) for name in names if have.get(name) != want.get(name)]


def _flat_expectation(wanted: Mapping[str, object]) -> dict[str, object]:
    plain = json.loads(json.dumps(dict(wanted)))
    settings = plain.pop("settings", {})
    fields = {"kind", "schema_version", "dataset_fingerprint", "sam_name", "sam_sha256"}
    unknown = [name for name in plain if name not in fields and not name.startswith("settings.")]
    if unknown:
        raise ValueError(f"an identity has no field {unknown}, only {sorted(fields)} and settings")
    return {**plain, **{f"settings.{name}": value for name, value in settings.items()}}
