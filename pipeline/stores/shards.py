"""The plan of a store: which images make up a shard, what it is called, which files it has and what is done.

A shard's id is a hash of everything that decides its content, so a record found on disk under the planned id proves
itself: no other inputs could have made it.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache
from importlib.metadata import PackageNotFoundError, version
from itertools import pairwise

from data_schemas.manifest import (
    FileEntry,
    ImageKey,
    ImageOutcome,
    Kind,
    Manifest,
    ShardRecord,
    StoreIdentity,
    digest,
)
from data_schemas.similarity import SimilarityLayout
from pipeline.errors import InputError, StoreDamagedError
from pipeline.stores.files import StoreFiles, open_files
from pipeline.stores.lock import check_token

MANIFEST = "manifest.json"
SIMILARITY_ARRAYS = {"points_xy": 3, "point_kind": 2, "similarity": 4}
"""Name -> dimensions of the Zarr arrays."""
_RECORDS_AT_ONCE = 256
_PACKAGES = ("numpy", "pyarrow", "zarr", "numcodecs", "torch", "SAM-2", "RF-SAM-2", "pycocotools")


@dataclass(frozen=True)
class ShardPlan:
    """One unit of work: the images of one shard."""

    index: int
    shard_id: str
    images: tuple[ImageKey, ...]


@dataclass(frozen=True)
class ShardTask:
    """All that a worker in another process needs to publish one shard; picklable."""

    uri: str
    kind: Kind
    plan: ShardPlan
    images_per_shard: int
    layout: SimilarityLayout | None
    token: str | None = None
    """Of the job's lock; ``None`` publishes unguarded."""


@dataclass(frozen=True)
class Work:
    """What a run has to do."""

    done: tuple[ShardTask, ...]
    redo: tuple[ShardTask, ...]
    """Started once: some files or a record are there, but not all, or damaged, or to be tried again."""
    new: tuple[ShardTask, ...]

    @property
    def tasks(self) -> tuple[ShardTask, ...]:
        """Shards to be computed, in the plan's order."""
        return tuple(sorted(self.redo + self.new, key=lambda task: task.plan.index))

    def summary(self) -> str:
        """One line for the user; counts are shards."""
        return f"skipped {len(self.done)}, redo {len(self.redo)}, new {len(self.new)}"


def plan_shards(
    identity: StoreIdentity,
    images: Sequence[ImageKey],
    *,
    images_per_shard: int,
    layout: SimilarityLayout | None = None,
) -> tuple[ShardPlan, ...]:
    """Cut the images, by rising id, into shards.

    Args:
        identity: Who makes the store and with what.
        images: In any order.
        images_per_shard: The last shard may have fewer.
        layout: Sizes of the similarity arrays.

    Raises:
        InputError: No image, an id twice, or ``images_per_shard`` below 1.
    """
    if images_per_shard < 1:
        raise InputError("a shard needs at least one image", expected="images_per_shard >= 1", got=images_per_shard)
    if not images:
        raise InputError("no image to precompute", fix="check the image folder or the COCO file")
    ordered = sorted(images, key=lambda image: image.image_id)
    twice = [a.image_id for a, b in pairwise(ordered) if a.image_id == b.image_id]
    if twice:
        raise InputError("an image id is given twice", got=twice[:5], fix="give every image its own id")
    chunks = [tuple(ordered[i : i + images_per_shard]) for i in range(0, len(ordered), images_per_shard)]
    return tuple(ShardPlan(i, shard_id(identity, chunk, layout), chunk) for i, chunk in enumerate(chunks))


def shard_id(identity: StoreIdentity, images: Sequence[ImageKey], layout: SimilarityLayout | None = None) -> str:
    """20 hex digits of the hash of everything that decides a shard's content."""
    keys = [[image.image_id, image.file_name, image.height, image.width] for image in images]
    return digest([identity.to_json(), layout.to_json() if layout else None, keys])[:20]


def record_path(name: str) -> str:
    """Where the record of shard ``name`` lies."""
    return f"records/{name}.json"


def image_list_path(kind: str) -> str:
    """Where the images of a part are listed."""
    return f"plan/{kind}.parquet"


def index_path(kind: str) -> str:
    """Where the records of a part lie together; what is there is never older than a record."""
    return f"index/{kind}.arrows"


def data_paths(kind: Kind, plan: ShardPlan) -> tuple[str, ...]:
    """The data files of a shard."""
    return shard_paths(kind, plan.index, plan.shard_id)


def shard_paths(kind: Kind, index: int, name: str) -> tuple[str, ...]:
    """The data files of shard number ``index``, called ``name``."""
    if kind != "similarity":
        return (f"{kind}/{name}.parquet",)
    return tuple(array_shard_path(array, index) for array in SIMILARITY_ARRAYS)


def array_shard_path(name: str, index: int) -> str:
    """The file of a Zarr shard: only the first axis is cut."""
    return f"similarity.zarr/{name}/c/{index}" + "/0" * (SIMILARITY_ARRAYS[name] - 1)


def publish(task: ShardTask, files: Sequence[tuple[FileEntry, bytes]], outcomes: Iterable[ImageOutcome]) -> ShardRecord:
    """Write the data of a shard and then, last, its record.

    Args:
        task: The shard.
        files: Description and bytes of each data file.
        outcomes: How each image of the shard ended, in any order.

    Raises:
        InputError: The outcomes are not exactly those of the shard's images.
        StoreBusyError: The job of this task no longer holds the store.
        EnvironmentProblemError: The store cannot be written.
    """
    record = ShardRecord(
        shard_id=task.plan.shard_id,
        kind=task.kind,
        files=tuple(entry for entry, _ in files),
        outcomes=_in_plan_order(task.plan, outcomes),
        library_versions=library_versions(),
    )
    store = open_files(task.uri)
    _check_holder(store, task)
    # Before any record changes, so that an index that is there says what the records say, whoever is killed when.
    store.delete(index_path(task.kind))
    # A shard done again must not stand for a moment under its old record.
    store.delete(record_path(task.plan.shard_id))
    for entry, data in files:
        store.write(entry.path, data)
    _check_holder(store, task)
    store.write(record_path(task.plan.shard_id), record.to_bytes())
    return record


def is_done(record: ShardRecord, kind: Kind, plan: ShardPlan, sizes: Mapping[str, int]) -> bool:
    """Whether a record describes this shard and its files are there with their sizes (contents: ``verify``)."""
    return (
        (record.shard_id, record.kind) == (plan.shard_id, kind)
        and [entry.path for entry in record.files] == list(data_paths(kind, plan))
        and all(sizes.get(entry.path) == entry.num_bytes for entry in record.files)
        and [outcome.image_id for outcome in record.outcomes] == [image.image_id for image in plan.images]
    )


def read_manifest(files: StoreFiles) -> Manifest | None:
    """The manifest, or ``None`` where there is no store.

    Raises:
        StoreDamagedError: It cannot be understood.
    """
    data = files.read_many([MANIFEST]).get(MANIFEST)
    if data is None:
        return None
    try:
        return Manifest.from_bytes(data)
    except ValueError as error:
        raise StoreDamagedError(
            "the manifest of the store is damaged, or of another version",
            where=files.name(MANIFEST),
            expected="the JSON that precompute-sam wrote",
            got=str(error),
            fix=f"s4m-pipeline doctor {files.uri} --repair, then the same precompute-sam: it keeps finished shards, "
            "but not those that an older program wrote in another form",
        ) from error


def read_records(files: StoreFiles, shard_ids: Iterable[str]) -> dict[str, ShardRecord | ValueError]:
    """Shard id -> its record, or what is wrong with it; shards without one are left out."""
    return dict(iterate_records(files, shard_ids))


def iterate_records(files: StoreFiles, shard_ids: Iterable[str]) -> Iterator[tuple[str, ShardRecord | ValueError]]:
    """As :func:`read_records`, in the order given, a few hundred at a time: records are large once they are objects."""
    names = list(shard_ids)
    for start in range(0, len(names), _RECORDS_AT_ONCE):
        yield from _some_records(files, names[start : start + _RECORDS_AT_ONCE])


def _some_records(files: StoreFiles, shard_ids: Sequence[str]) -> Iterator[tuple[str, ShardRecord | ValueError]]:
    found = files.read_many(record_path(name) for name in shard_ids)
    for name in shard_ids:
        if (data := found.get(record_path(name))) is None:
            continue
        try:
            yield name, ShardRecord.from_bytes(data)
        except ValueError as error:
            yield name, error


@lru_cache(maxsize=1)
def library_versions() -> dict[str, str]:
    """Versions of the installed packages that decide what a store holds."""
    found = {}
    for package in _PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def layout_json(layout: SimilarityLayout | None) -> dict[str, object]:
    """Field -> value, for comparing layouts field by field."""
    return asdict(layout) if layout else {}


def _in_plan_order(plan: ShardPlan, outcomes: Iterable[ImageOutcome]) -> tuple[ImageOutcome, ...]:
    given = list(outcomes)
    by_id = {outcome.image_id: outcome for outcome in given}
    wanted = [image.image_id for image in plan.images]
    if len(by_id) != len(given) or set(by_id) != set(wanted):
        raise InputError(
            f"shard {plan.shard_id} must account for each of its images once",
            expected=f"images {wanted[:8]}",
            got=f"images {sorted(outcome.image_id for outcome in given)[:8]}",
            fix="give every image rows or a quarantine outcome",
        )
    return tuple(by_id[image_id] for image_id in wanted)


def _check_holder(store: StoreFiles, task: ShardTask) -> None:
    if task.token is not None:
        check_token(store, task.kind, task.token)
