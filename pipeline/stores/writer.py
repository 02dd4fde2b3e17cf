"""``StoreWriter``: open a store for writing, refuse one that does not fit, say what is missing."""

from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from types import TracebackType

from data_schemas.image_list import ImageList
from data_schemas.manifest import (
    SCHEMA_VERSIONS,
    FileEntry,
    ImageKey,
    Manifest,
    ShardRecord,
    StoreIdentity,
    StorePart,
    identity_differences,
)
from data_schemas.similarity import SimilarityLayout
from pipeline.errors import InputError, StoreMismatchError
from pipeline.stores.consolidated import publish_index
from pipeline.stores.files import StoreFiles, open_files
from pipeline.stores.lock import LEASE_SECONDS, StoreLock
from pipeline.stores.shards import (
    MANIFEST,
    ShardPlan,
    ShardTask,
    Work,
    data_paths,
    image_list_path,
    index_path,
    is_done,
    layout_json,
    library_versions,
    plan_shards,
    read_manifest,
    read_records,
    record_path,
    shard_paths,
)

_MANIFEST_WAIT_SECONDS = 2 * LEASE_SECONDS
_NAMED = 20
"""Images that were set aside are named up to so many, of each reason."""
_NAMES = {"similarity": "similarity targets", "pseudo_labels": "pseudo-labels"}
"""Of kinds, in messages."""


@dataclass(frozen=True)
class StoreCounts:
    """What the finished shards of a store hold."""

    images_planned: int
    images_ok: int
    images_quarantined: int
    rows: int
    quarantined: Mapping[str, tuple[int, ...]]
    """``stage: reason`` -> ids of images."""

    @property
    def quarantined_by_reason(self) -> dict[str, int]:
        """``stage: reason`` -> images."""
        return {reason: len(ids) for reason, ids in self.quarantined.items()}

    def reasons(self, name_of: Callable[[int], str]) -> list[str]:
        """``N x stage: reason: name, name`` of what was set aside, with the first 20 names of each reason."""
        lines = []
        for reason, ids in self.quarantined.items():
            # Half a character in a name may be the reason, and could not be printed.
            names = [name_of(image_id).encode(errors="backslashreplace").decode() for image_id in ids[:_NAMED]]
            more = f" and {len(ids) - _NAMED} more" if len(ids) > _NAMED else ""
            lines.append(f"{len(ids)} x {reason}: {', '.join(names)}{more}")
        return lines


class StoreWriter:
    """The one job that writes a kind of artefact into a store; a context manager that gives the lock back.

    Workers publish shards through ``commit_proposals`` / ``commit_similarity`` with a task from :meth:`missing`.
    """

    def __init__(self, files: StoreFiles, part: StorePart, plans: tuple[ShardPlan, ...], lock: StoreLock) -> None:
        """Use :meth:`create_or_open`."""
        self.files, self.part, self.plans, self._lock = files, part, plans, lock

    @classmethod
    def create_or_open(
        cls,
        uri: str | Path,
        identity: StoreIdentity,
        images: Sequence[ImageKey],
        *,
        images_per_shard: int,
        layout: SimilarityLayout | None = None,
        lock_timeout: float = 0.0,
    ) -> "StoreWriter":
        """Start a store, or go on with one that was made of the same things.

        Args:
            uri: Local folder or address (``s3://...``).
            identity: Who makes it and with what.
            images: All images of the store, in any order.
            images_per_shard: Images that are computed and published together.
            layout: Sizes of the similarity arrays; for that kind only.
            lock_timeout: Seconds to wait for another job on the same store and kind.

        Raises:
            StoreMismatchError: The store was made of other things.
            StoreBusyError: Another job is writing it.
            StoreDamagedError: Its manifest is damaged.
            InputError: The images or the layout make no store.
        """
        files = open_files(uri)
        plans, part, static = _plan(identity, images, images_per_shard, layout)
        _refuse_other_parts(files, read_manifest(files), part)  # before a lock file is left in a foreign store
        lock = StoreLock(files, identity.kind).acquire(lock_timeout)
        try:
            with StoreLock(files, "manifest").acquire(_MANIFEST_WAIT_SECONDS):
                part = _join(files, part, static)
                files.sweep(_own_paths(part, plans))
        except BaseException:
            lock.release()
            raise
        return cls(files, part, plans, lock)

    @property
    def token(self) -> str:
        """Of the lock; workers show it when they publish."""
        return self._lock.token

    def missing(self, *, retry_quarantined: bool = False) -> Work:
        """Which shards are done and which are to be computed.

        Args:
            retry_quarantined: Count shards with a quarantined image as to be redone.
        """
        work = _sort_work(self.files, self.part, self.plans, retry_quarantined=retry_quarantined)
        return Work(*(tuple(replace(task, token=self.token) for task in tasks) for tasks in _lists(work)))

    def counts(self) -> StoreCounts:
        """Images and rows of the finished shards, for the end of a run."""
        return count_images(self.part, self.records())

    def records(self) -> list[ShardRecord]:
        """Of the finished shards, in the plan's order; damaged ones are left out."""
        found = read_records(self.files, self.part.shard_ids)
        records = [found.get(shard_id) for shard_id in self.part.shard_ids]
        return [record for record in records if isinstance(record, ShardRecord)]

    def close(self) -> None:
        """Put the records together in one index, for readers, and give the lock back."""
        try:
            publish_index(self.files, self.part, self._lock)
        finally:
            self._lock.release()

    def __enter__(self) -> "StoreWriter":
        """The writer itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close; after an error only the lock is given back, and readers take the records one by one."""
        if error is None:
            self.close()
        else:
            self._lock.release()


def _own_paths(part: StorePart, plans: Sequence[ShardPlan]) -> set[str]:
    """Files that only the holder of this kind's lock (and of the manifest's) writes."""
    kind = part.identity.kind
    own = {MANIFEST, index_path(kind), *(entry.path for entry in part.files)}
    return own.union(*((record_path(plan.shard_id), *data_paths(kind, plan)) for plan in plans))


def preview(
    uri: str | Path,
    identity: StoreIdentity,
    images: Sequence[ImageKey],
    *,
    images_per_shard: int,
    layout: SimilarityLayout | None = None,
    retry_quarantined: bool = False,
    replaced: Collection[str] = (),
) -> Work:
    """What :meth:`StoreWriter.missing` would say, without a lock and without writing: for ``--dry-run``.

    Args:
        uri: As the other arguments, see :meth:`StoreWriter.create_or_open`.
        identity: Who would make it and with what.
        images: All images of the store.
        images_per_shard: Images that are published together.
        layout: Of the similarity kind.
        retry_quarantined: Count shards with a quarantined image as to be redone.
        replaced: Kinds that are going to be removed first (``--overwrite``): what the store holds of them refuses
            nothing and counts as not done. Ask this before :func:`remove_part`: what stays may refuse the new part.

    Raises:
        StoreMismatchError, StoreDamagedError, InputError: As :meth:`StoreWriter.create_or_open`.
    """
    files = open_files(uri)
    plans, part, _ = _plan(identity, images, images_per_shard, layout)
    _refuse_other_parts(files, read_manifest(files), part, replaced)
    if identity.kind in replaced:
        return Work((), (), tuple(_task(files, part, plan) for plan in plans))
    return _sort_work(files, part, plans, retry_quarantined=retry_quarantined)


def remove_part(uri: str | Path, *kinds: str, lock_timeout: float = 0.0) -> None:
    """Forget kinds of artefacts, all or none of them, and delete their files: for ``--overwrite``.

    Other files are not touched.

    Raises:
        StoreBusyError: A job is writing one of them.
        StoreDamagedError: The manifest is damaged.
    """
    files = open_files(uri)
    manifest = read_manifest(files)
    chosen = [kind for kind in kinds if manifest is not None and kind in manifest.parts]
    if not chosen:
        return  # and no lock file is left where there is no store
    with ExitStack() as locks:
        for kind in chosen:
            locks.enter_context(StoreLock(files, kind).acquire(lock_timeout))
        locks.enter_context(StoreLock(files, "manifest").acquire(_MANIFEST_WAIT_SECONDS))
        # Read again: another job may have added its part, or removed one, until the lock was ours.
        manifest = read_manifest(files) or Manifest({})
        removed = [part for kind in chosen if (part := manifest.parts.get(kind)) is not None]
        for part in removed:
            _delete_shards(files, part)
        left = {kind: part for kind, part in manifest.parts.items() if kind not in chosen}
        if left:
            files.write(MANIFEST, Manifest(left).to_bytes())
        else:
            files.delete(MANIFEST)
        # Last, because a plan whose list of images is missing is damaged.
        for entry in (entry for part in removed for entry in part.files):
            files.delete(entry.path)


def _delete_shards(files: StoreFiles, part: StorePart) -> None:
    files.delete(index_path(part.identity.kind))
    # Records first: a reader then says "not computed", never "damaged".
    for shard_id in part.shard_ids:
        files.delete(record_path(shard_id))
    for number, shard_id in enumerate(part.shard_ids):
        for path in shard_paths(part.identity.kind, number, shard_id):
            files.delete(path)


def count_images(part: StorePart, records: Sequence[ShardRecord]) -> StoreCounts:
    """Sum up the outcomes of ``records``."""
    outcomes = [outcome for record in records for outcome in record.outcomes]
    bad: defaultdict[str, list[int]] = defaultdict(list)
    for outcome in outcomes:
        if outcome.status == "quarantined":
            bad[f"{outcome.stage}: {outcome.reason}"].append(outcome.image_id)
    num_bad = sum(map(len, bad.values()))
    return StoreCounts(
        images_planned=part.num_images,
        images_ok=len(outcomes) - num_bad,
        images_quarantined=num_bad,
        rows=sum(record.rows for record in records),
        quarantined={reason: tuple(ids) for reason, ids in sorted(bad.items())},
    )


def _plan(
    identity: StoreIdentity, images: Sequence[ImageKey], images_per_shard: int, layout: SimilarityLayout | None
) -> tuple[tuple[ShardPlan, ...], StorePart, list[tuple[FileEntry, bytes]]]:
    if identity.schema_version != SCHEMA_VERSIONS.get(identity.kind):
        raise InputError(
            "this program writes another schema version",
            expected=SCHEMA_VERSIONS,
            got=f"{identity.kind} version {identity.schema_version}",
        )
    if (layout is not None) != (identity.kind == "similarity"):
        raise InputError("a layout is for the similarity kind, and needed there", got=f"{identity.kind}, {layout}")
    plans = plan_shards(identity, images, images_per_shard=images_per_shard, layout=layout)
    try:
        listed = ImageList.of([image for plan in plans for image in plan.images])
    except ValueError as error:
        raise InputError("images that cannot be listed", got=error, fix="correct their ids in the COCO file") from error
    made = [(image_list_path(identity.kind), listed.to_parquet())]
    made += _array_metadata(layout, num_images=len(images), images_per_shard=images_per_shard)
    static = [(FileEntry.of(path, data), data) for path, data in made]
    part = StorePart(
        identity=identity,
        num_images=len(listed),
        images_digest=listed.digest,
        images_per_shard=images_per_shard,
        shard_ids=tuple(plan.shard_id for plan in plans),
        layout=layout,
        files=tuple(entry for entry, _ in static),
        library_versions=library_versions(),
    )
    return plans, part, static


def _array_metadata(
    layout: SimilarityLayout | None, *, num_images: int, images_per_shard: int
) -> list[tuple[str, bytes]]:
    if layout is None:
        return []
    from pipeline.stores.similarity_arrays import metadata_files

    return list(metadata_files(layout, num_images=num_images, images_per_shard=images_per_shard))


def _join(files: StoreFiles, part: StorePart, static: list[tuple[FileEntry, bytes]]) -> StorePart:
    """Write the manifest part, or take the one that is there; its static files exist before any worker starts."""
    manifest = read_manifest(files) or Manifest({})
    _refuse_other_parts(files, manifest, part)
    stored = manifest.parts.get(part.identity.kind)
    trusted = {entry.path: entry for entry in (stored or part).files}
    present = files.read_many(trusted)
    for entry, data in static:
        # Other versions of zarr and pyarrow write other bytes: what is there and sound stays what it is.
        if entry.path not in present or FileEntry.of(entry.path, present[entry.path]) != trusted[entry.path]:
            files.write(entry.path, data)
            trusted[entry.path] = entry
    joined = replace(stored or part, files=tuple(trusted.values()))
    if joined != stored:
        files.write(MANIFEST, Manifest({**manifest.parts, part.identity.kind: joined}).to_bytes())
    return joined


def _refuse_other_parts(
    files: StoreFiles, manifest: Manifest | None, part: StorePart, replaced: Collection[str] = ()
) -> None:
    if manifest is None:
        return
    differences: list[tuple[str, object, object]] = []
    in_the_way: list[StoreIdentity] = []
    for kind, stored in manifest.parts.items():
        if kind in replaced:
            continue
        if kind == part.identity.kind:
            found = _part_differences(stored, part)
        else:
            sams = stored.identity.sam_sha256, part.identity.sam_sha256
            found = [("sam_sha256", *sams)] if sams[0] != sams[1] else []
        if found:
            in_the_way.append(stored.identity)
            differences += [difference for difference in found if difference not in differences]
    if differences:
        what = f"the {_told(identity.kind for identity in in_the_way)} of the store were"
        fix = _way_out(in_the_way, part.identity)
        has_grown = {name for name, _, _ in differences} <= {"dataset_fingerprint", "images"}
        if has_grown and part.identity.kind == "proposals" and part.identity.command == "precompute-sam":
            fix += f"; another store copies what this one has with --cfg-options reuse={files.uri}"
        raise mismatch(files, differences, fix_new=fix, what=what)


def _told(kinds: Iterable[str]) -> str:
    return " and ".join(_NAMES.get(kind, kind) for kind in sorted(kinds))


def _way_out(in_the_way: Sequence[StoreIdentity], own: StoreIdentity) -> str:
    """What to run instead; never what would remove more than is in the way, or than the same command can make anew."""
    others = [identity for identity in in_the_way if identity.kind != own.kind]
    elsewhere = "choose another --work-dir" if own.kind == "pseudo_labels" else "give this run another store path"
    if any(identity.command != own.command for identity in others):
        return f"{elsewhere}: --overwrite leaves what another command made"
    if own.command != "precompute-sam":
        return f"{elsewhere}, or --overwrite to make it anew"
    kinds = sorted({own.kind, *(identity.kind for identity in others)})
    anew = f'--overwrite --cfg-options "targets=[{",".join(kinds)}]"'
    return f"{elsewhere}, or make only the {_told(kinds)} anew: {anew}"


def _part_differences(stored: StorePart, wanted: StorePart) -> list[tuple[str, object, object]]:
    differences = identity_differences(stored.identity, wanted.identity)
    have, want = layout_json(stored.layout), layout_json(wanted.layout)
    differences += [
        (f"layout.{k}", have.get(k), want.get(k)) for k in sorted({*have, *want}) if have.get(k) != want.get(k)
    ]
    if stored.images_per_shard != wanted.images_per_shard:
        differences.append(("images_per_shard", stored.images_per_shard, wanted.images_per_shard))
    if stored.images_digest != wanted.images_digest:
        differences.append(("images", _describe_images(stored), _describe_images(wanted)))
    return differences


def _describe_images(part: StorePart) -> str:
    return f"{part.num_images} images, list {part.images_digest[:8]}"


def mismatch(
    files: StoreFiles,
    differences: Sequence[tuple[str, object, object]],
    *,
    fix_new: str,
    what: str = "the store was",
) -> StoreMismatchError:
    """The error that names every differing field with its stored and its wanted value."""
    return StoreMismatchError(
        f"{what} made with another {', '.join(name for name, _, _ in differences)}",
        where=files.uri,
        expected="; ".join(f"{name} = {wanted!r}" for name, _, wanted in differences),
        got="; ".join(f"{name} = {stored!r}" for name, stored, _ in differences),
        fix=fix_new,
    )


def _sort_work(files: StoreFiles, part: StorePart, plans: Sequence[ShardPlan], *, retry_quarantined: bool) -> Work:
    kind, sizes = part.identity.kind, files.sizes()
    records = read_records(files, [plan.shard_id for plan in plans if record_path(plan.shard_id) in sizes])
    done: list[ShardTask] = []
    redo: list[ShardTask] = []
    new: list[ShardTask] = []
    for plan in plans:
        task = _task(files, part, plan)
        record = records.get(plan.shard_id)
        if isinstance(record, ShardRecord) and is_done(record, kind, plan, sizes):
            is_bad = any(outcome.status == "quarantined" for outcome in record.outcomes)
            (redo if retry_quarantined and is_bad else done).append(task)
        elif record is not None or any(path in sizes for path in data_paths(kind, plan)):
            redo.append(task)
        else:
            new.append(task)
    return Work(tuple(done), tuple(redo), tuple(new))


def _task(files: StoreFiles, part: StorePart, plan: ShardPlan) -> ShardTask:
    return ShardTask(files.uri, part.identity.kind, plan, part.images_per_shard, part.layout)


def _lists(work: Work) -> tuple[tuple[ShardTask, ...], ...]:
    return work.done, work.redo, work.new
