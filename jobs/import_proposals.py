"""``import-proposals``: masks that were made elsewhere become a proposal library like any other."""

from collections.abc import Sequence
from pathlib import Path

from data_schemas.manifest import IMPORTED, SCHEMA_VERSIONS, ImageKey, StoreIdentity
from jobs.exchange.sources import Source, open_source
from jobs.progress import Progress
from jobs.store_checks import image_keys
from pipeline.data.coco import CocoSet, load_images, make_coco
from pipeline.errors import InputError
from pipeline.stores.proposal_store import commit_proposals
from pipeline.stores.writer import StoreWriter, preview, remove_part

IMAGES_PER_SHARD = 64
_MEGABYTE = 1 << 20


def run(source: Path, store: str, *, images: Path, image_root: Path | None = None, overwrite: bool = False) -> None:
    """Do the command; see ``s4m-pipeline import-proposals --help``.

    Args:
        source: A COCO results file, or a folder of JSON files: SA-1B's, or those of SAM 1's ``amg.py``.
        store: Local folder or address.
        images: A COCO file or a folder: all of its images get into the library, those without masks with none.
        image_root: Folder of the images; beside the COCO file by default.
        overwrite: Remove the library that is there, when the source has been found sound.

    Raises:
        InputError: A source that is malformed, of other images, or no source.
        StoreMismatchError: A library of other things is there.
        PipelineError: Of whatever kind the store gives reason to.
    """
    if not images.exists():
        raise InputError("images not found", where=images, expected="a COCO file or a folder", fix="correct the path")
    # The library is of the images alone; annotations beside them decide nothing.
    loaded = load_images(images, image_root or images.parent)
    coco = make_coco(loaded.image_root, loaded.images, (), ())
    keys = image_keys(coco.images)
    masks = open_source(source, keys)
    identity = identity_of(masks, coco)
    # With what stays in the store: a part beside the library may refuse it, which is told before anything is removed.
    replaced = ["proposals"] if overwrite else []
    if not preview(store, identity, keys, images_per_shard=IMAGES_PER_SHARD, replaced=replaced).tasks:
        print(f"proposals: all {len(keys)} images are imported\nstore: {store}")
        return
    _check(masks)
    if overwrite:
        remove_part(store, "proposals")
    _fill(masks, store, identity, keys)
    print("\n".join(masks.tally.lines()))
    print(f"  {len(keys) - len(masks.tally.images)} images without masks\nstore: {store}")


def identity_of(masks: Source, coco: CocoSet) -> StoreIdentity:
    """Where an imported library comes from; the digest of the source stands where that of a SAM does."""
    return StoreIdentity(
        kind="proposals",
        schema_version=SCHEMA_VERSIONS["proposals"],
        dataset_fingerprint=coco.fingerprint,
        sam_name=f"{IMPORTED}{masks.path.resolve().name}",
        sam_sha256=masks.sha256(),
        settings={"format": masks.form},
    )


def _check(masks: Source) -> None:
    with Progress("checked", masks.num_bytes // _MEGABYTE, unit="MB") as progress:
        left = 0

        def told(num_bytes: int) -> None:
            nonlocal left
            megabytes, left = divmod(left + num_bytes, _MEGABYTE)
            progress.advance(megabytes)

        masks.check(told)
    if not masks.tally.masks:
        raise InputError(
            "there is no mask in it", where=masks.path, expected="at least one", got="\n".join(masks.tally.lines())
        )


def _fill(masks: Source, store: str, identity: StoreIdentity, keys: Sequence[ImageKey]) -> None:
    with StoreWriter.create_or_open(store, identity, keys, images_per_shard=IMAGES_PER_SHARD) as writer:
        work = writer.missing()
        print(f"proposals: {work.summary()} shards of up to {IMAGES_PER_SHARD} images", flush=True)
        with Progress("imported", sum(len(task.plan.images) for task in work.tasks)) as progress:
            for task in work.tasks:
                commit_proposals(task, {image.image_id: masks.read(image) for image in task.plan.images})
                progress.advance(len(task.plan.images))
