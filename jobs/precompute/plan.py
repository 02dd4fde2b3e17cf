"""The plan of ``precompute-sam``: which stores of which images, what is missing, and what that will cost."""

import math
import shutil
from collections.abc import Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from data_schemas.manifest import SCHEMA_VERSIONS, ImageKey, Kind, StoreIdentity
from data_schemas.similarity import SimilarityLayout
from jobs.precompute.cost_model import (
    Estimate,
    Row,
    device_name,
    find_row,
    load_table,
    measured_so_far,
    proposals_cost,
    similarity_cost,
)
from jobs.precompute.reuse import known_images
from jobs.settings import PrecomputeSettings
from jobs.store_checks import image_keys
from pipeline.data.coco import CocoSet, make_coco
from pipeline.errors import ConfigError, InputError
from pipeline.masks.rle import Rle
from pipeline.sam.interface import SamBackend, SamFacts
from pipeline.stores.files import open_files
from pipeline.stores.shards import Work
from pipeline.stores.writer import preview

_PROPOSAL_BYTES = 20_000
"""Of one image, Parquet, zstd, where nothing was measured: 60 proposals of about 300 bytes."""


@dataclass(frozen=True)
class StorePlan:
    """One kind of artefact: of which images, and what a store of it must be."""

    identity: StoreIdentity
    images: tuple[ImageKey, ...]
    layout: SimilarityLayout | None
    objects: Mapping[int, tuple[Rle, ...]]
    """Image id -> masks of the ground truth; similarity only."""
    known: Mapping[int, int] = field(default_factory=dict)
    """Image id -> its id in the library of ``reuse``, whose proposals are copied."""

    @property
    def kind(self) -> Kind:
        """Of the artefact."""
        return self.identity.kind


def plan_store(
    kind: str, settings: PrecomputeSettings, coco: CocoSet, labelled: CocoSet, sam: SamBackend | SamFacts
) -> StorePlan:
    """One kind of artefact for the images of a data set; ConfigError where it makes no sense."""
    # Proposals do not depend on annotations: correcting one must not make a library useless.
    chosen = labelled if kind == "similarity" else make_coco(coco.image_root, coco.images, (), ())
    if not chosen.images:
        raise ConfigError(
            "similarity targets need labelled images",
            where="split, targets",
            got=f"no labelled image in {settings.split or settings.images}",
            fix="name a split with --cfg-options split=FILE, or ask for targets=[proposals] alone",
        )
    layout = None
    if kind == "similarity":
        points = settings.similarity.num_inside + settings.similarity.num_uniform
        layout = SimilarityLayout(points, sam.grid_hw, settings.similarity.rows_per_chunk)
    identity = StoreIdentity(
        kind="similarity" if kind == "similarity" else "proposals",
        schema_version=SCHEMA_VERSIONS[kind],
        dataset_fingerprint=chosen.fingerprint,
        # The weights' digest tells files apart; where a file lies must not.
        sam_name=Path(sam.name).name,
        sam_sha256=sam.sha256,
        settings=settings.identity_settings(kind),
    )
    images = image_keys(chosen.images)
    objects = {
        i: tuple(entry.rle for entry in entries if not entry.iscrowd) for i, entries in chosen.annotations.items()
    }
    known = (
        known_images(settings.reuse, settings.store, identity, images)
        if settings.reuse is not None and kind == "proposals"
        else {}
    )
    return StorePlan(identity, images, layout, objects, known)


def preview_store(plan: StorePlan, settings: PrecomputeSettings, replaced: Collection[str] = ()) -> Work:
    """What is missing, once the kinds of ``replaced`` are removed; nothing is written. Errors: see ``preview``."""
    return preview(
        settings.store,
        plan.identity,
        plan.images,
        images_per_shard=settings.images_per_shard,
        layout=plan.layout,
        retry_quarantined=settings.retry_quarantined,
        replaced=replaced,
    )


def images_of(work: Work) -> list[ImageKey]:
    """Images of the shards that a run would compute."""
    return [image for task in work.tasks for image in task.plan.images]


def print_dry_run(
    plans: Sequence[StorePlan],
    works: Sequence[Work],
    settings: PrecomputeSettings,
    *,
    overwrite: bool,
    is_local: bool,
    gpu: str | None = None,
) -> None:
    """Tell what a run would do (``works``, one for each plan) and what that takes, on ``gpu`` if it is named."""
    row = _measured(settings, gpu)
    needed, seconds = 0.0, 0.0
    for plan, work in zip(plans, works, strict=True):
        images = images_of(work)
        shards, summary = len(work.tasks), "all anew" if overwrite else work.summary()
        cost = estimate(plan, images, settings, row)
        needed, seconds = needed + cost.num_bytes, seconds + cost.seconds
        size = _megabytes(cost.num_bytes)
        time = f", about {duration(cost.seconds)} on one worker" if row else ""
        copied = told_copied(plan, images, settings)
        print(f"{plan.kind}: {shards} shards to compute ({summary}), {len(images)} images{copied}{time}, about {size}")
    print(f"store: {settings.store}, about {_megabytes(needed)} more{_free_disk(settings.store)}")
    print(_how_estimated(row, seconds, settings, is_local=is_local, gpu=gpu))
    print("dry run: nothing was written")


def told_copied(plan: StorePlan, images: Sequence[ImageKey], settings: PrecomputeSettings) -> str:
    """How many of the images another library has; nothing where none is named."""
    if settings.reuse is None or plan.kind != "proposals":
        return ""
    return f"; {sum(image.image_id in plan.known for image in images)} images are copied from {settings.reuse}"


def expected_seconds(
    plans: Sequence[StorePlan],
    missing: Sequence[Sequence[ImageKey]],
    settings: PrecomputeSettings,
    *,
    is_local: bool,
) -> float | None:
    """How long all missing images will take on the workers of the settings; None where nothing was measured."""
    row, count = _measured(settings), _workers(settings, is_local=is_local)
    if row is None or count is None:
        return None
    costs = [estimate(plan, images, settings, row).seconds for plan, images in zip(plans, missing, strict=True)]
    return sum(costs) / count


def _workers(settings: PrecomputeSettings, *, is_local: bool) -> int | None:
    """How many there will be; None where the cluster decides."""
    return 1 if is_local else settings.workers.count


def _measured(settings: PrecomputeSettings, gpu: str | None = None) -> Row | None:
    sam = settings.sam
    try:
        return find_row(Path(sam.name).name, sam.device, sam.precision, load_table(), gpu=gpu)
    except InputError as error:  # an estimate is not worth stopping for
        print(f"no estimate: {error.what} ({error.where})")
        return None


def estimate(plan: StorePlan, images: Sequence[ImageKey], settings: PrecomputeSettings, row: Row | None) -> Estimate:
    """What computing some images of a plan takes; without a measured row only the bytes, roughly."""
    sizes = [(image.height, image.width) for image in images]
    if plan.layout is not None:
        return similarity_cost(row, plan.layout.num_points, plan.layout.grid_hw, sizes)
    if row is None:
        return Estimate(math.nan, len(images) * _PROPOSAL_BYTES)
    new = [(image.height, image.width) for image in images if image.image_id not in plan.known]
    num_bytes = proposals_cost(row, settings.proposals, sizes).num_bytes  # copies need their disk too
    return Estimate(proposals_cost(row, settings.proposals, new).seconds, num_bytes)


def _how_estimated(
    row: Row | None, seconds: float, settings: PrecomputeSettings, *, is_local: bool, gpu: str | None
) -> str:
    sam = settings.sam
    if row is None:
        device = gpu or device_name(sam.device)
        return (
            f"time: nobody measured {Path(sam.name).name} on {device} in {sam.precision} here yet; "
            "python -m jobs.measurements.stage_table CONFIG does, with a dozen images" + _other_rows()
        )
    count = _workers(settings, is_local=is_local)
    where = "one worker, less with as many as the cluster has room for" if count is None else f"{count} at a time"
    return (
        f"time: about {duration(seconds / (count or 1))} with {where}, "
        f"memory: about {_megabytes(row.peak_memory_bytes)} for each "
        f"(measured on {row.device}, on {row.images} images of {row.megapixels:.2f} megapixels "
        f"with {row.threads} threads, {row.provenance.get('machine', 'machine unknown')}; "
        "images with more objects take longer)"
    )


def _other_rows() -> str:
    with suppress(InputError):  # told before
        return f"\n  measured so far: {measured_so_far(load_table())}; a GPU of another machine is named by --gpu NAME"
    return ""


def _free_disk(store: str) -> str:
    files = open_files(store)
    if not files.is_local:
        return ""
    there = next(folder for folder in [Path(files.uri), *Path(files.uri).parents] if folder.exists())
    return f", {_megabytes(shutil.disk_usage(there).free)} free"


def duration(seconds: float) -> str:
    """As a person says it."""
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def _megabytes(size: float) -> str:
    return f"{size / 1e9:.1f} GB" if size >= 1e9 else f"{size / 1e6:.1f} MB"
