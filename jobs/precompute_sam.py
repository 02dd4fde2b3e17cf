"""``precompute-sam``: list the missing shards, run the stages, publish, count."""

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from mmengine.config import Config

from data_schemas.manifest import SCHEMA_VERSIONS, ImageKey, Kind, StoreIdentity
from data_schemas.similarity import SimilarityLayout
from jobs.config_files import load_config
from jobs.progress import Progress
from jobs.ray_runner import LOCAL, run_sharded
from jobs.settings import PrecomputeSettings, known_keys, load_settings
from jobs.stages import STAGES, MakeBackend, ShardJob, ShardReport, build_sam
from jobs.store_checks import image_keys
from pipeline.data.coco import CocoSet, check_image_files, load_images, make_coco, subset
from pipeline.data.splits import load_split
from pipeline.errors import ConfigError, InputError, TooManyQuarantinedError
from pipeline.masks.rle import Rle
from pipeline.sam.interface import SamBackend
from pipeline.stores.files import open_files
from pipeline.stores.shards import ShardTask, Work
from pipeline.stores.writer import StoreCounts, StoreWriter, preview, remove_part

RESOLVED_CONFIG = "precompute_sam.py"
_PROPOSAL_BYTES = 20_000
"""Of one image, Parquet, zstd: a rule of thumb for --dry-run (60 proposals of about 300 bytes)."""


@dataclass(frozen=True)
class StorePlan:
    """One kind of artefact: of which images, and what a store of it must be."""

    identity: StoreIdentity
    images: tuple[ImageKey, ...]
    layout: SimilarityLayout | None
    objects: Mapping[int, tuple[Rle, ...]]
    """Image id -> masks of the ground truth; similarity only."""

    @property
    def kind(self) -> Kind:
        """Of the artefact."""
        return self.identity.kind

    @property
    def bytes_per_image(self) -> int:
        """Roughly, on disk; similarity rows hardly compress."""
        if self.layout is None:
            return _PROPOSAL_BYTES
        return self.layout.num_points * (self.layout.grid_hw[0] * self.layout.grid_hw[1] + 9)


def run(
    config_path: Path,
    *,
    cfg_options: Sequence[str] = (),
    work_dir: Path | None = None,
    resume: bool = False,
    overwrite: bool = False,
    dry_run: bool = False,
    limit: int | None = None,
    ray_address: str = LOCAL,
) -> None:
    """Do the command; see ``s4m-pipeline precompute-sam --help``.

    Args:
        config_path: A configuration with the keys of ``PrecomputeSettings``.
        cfg_options: Overrides, ``key=value``.
        work_dir: Replaces ``store`` of the configuration.
        resume: Nothing: a store is always gone on with.
        overwrite: Remove what is there of the kinds to be computed.
        dry_run: Print what would be done and write nothing.
        limit: Only so many images, the first labelled and the first unlabelled ones.
        ray_address: See ``jobs/ray_runner.py``.

    Raises:
        PipelineError: Of whatever kind the input, the store or the machine gives reason to.
    """
    config = load_config(config_path, cfg_options, also_known=known_keys())
    if work_dir is not None:
        config.store = str(work_dir)
    settings = load_settings(config.to_dict(), where=config_path)
    precompute(settings, config=config, overwrite=overwrite, dry_run=dry_run, limit=limit, ray_address=ray_address)


def precompute(
    settings: PrecomputeSettings,
    *,
    config: Config | None = None,
    overwrite: bool = False,
    dry_run: bool = False,
    limit: int | None = None,
    ray_address: str = LOCAL,
    make_backend: MakeBackend = build_sam,
) -> None:
    """The command without its configuration file; ``make_backend`` replaces the SAM, for tests.

    Raises:
        PipelineError: As :func:`run`.
    """
    coco, labelled = load_inputs(settings, limit=limit)
    is_local = ray_address == LOCAL
    # The driver of a cluster may have no GPU, and needs only the SAM's digest and grid.
    backend = make_backend(settings.sam if is_local else replace(settings.sam, device="cpu", precision="fp32"))
    plans = [_plan(kind, settings, coco, labelled, backend) for kind in settings.targets]
    if dry_run:
        _print_dry_run(plans, settings, overwrite=overwrite)
        return
    if overwrite:
        for plan in plans:
            remove_part(settings.store, plan.kind)
    works = [_preview(plan, settings) for plan in plans]
    if any(work.tasks for work in works):
        # Before anything is written: a wrong image_root is found in seconds and leaves no store of failures.
        check_image_files(coco, max_broken_share=settings.max_broken_share)
    for_stages = (lambda _: backend) if is_local else make_backend
    totals = [_fill(plan, settings, coco, for_stages, ray_address) for plan in plans]
    if config is not None:
        open_files(settings.store).write(RESOLVED_CONFIG, config.pretty_text.encode())
    _report(plans, totals, settings)


def load_inputs(settings: PrecomputeSettings, *, limit: int | None = None) -> tuple[CocoSet, CocoSet]:
    """All images, and those that count as labelled.

    Raises:
        InputError: Files that are not there or wrong, or a split of other images.
    """
    source = Path(settings.images)
    if not source.exists():
        raise InputError("images not found", where=source, expected="a COCO file or a folder", fix="correct the path")
    coco = load_images(source, Path(settings.image_root) if settings.image_root else source.parent)
    if settings.split is not None:
        chosen = set(load_split(Path(settings.split), coco).labelled)
    else:
        chosen = {image_id for image_id, entries in coco.annotations.items() if entries}
    if limit is not None:
        # Of both sorts, or a small trial of a large data set would have no labelled image.
        labelled, others = sorted(chosen), sorted(set(coco.by_id) - chosen)
        half = max((limit + 1) // 2, limit - len(others))
        coco = subset(coco, [*labelled[:half], *others[: limit - len(labelled[:half])]])
    return coco, subset(coco, chosen & set(coco.by_id))


def _plan(kind: str, settings: PrecomputeSettings, coco: CocoSet, labelled: CocoSet, backend: SamBackend) -> StorePlan:
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
        layout = SimilarityLayout(points, backend.grid_hw, settings.similarity.rows_per_chunk)
    identity = StoreIdentity(
        kind="similarity" if kind == "similarity" else "proposals",
        schema_version=SCHEMA_VERSIONS[kind],
        dataset_fingerprint=chosen.fingerprint,
        # The weights' digest tells files apart; where a file lies must not.
        sam_name=Path(backend.name).name,
        sam_sha256=backend.sha256,
        settings=settings.identity_settings(kind),
    )
    images = image_keys(chosen.images)
    objects = {
        i: tuple(entry.rle for entry in entries if not entry.iscrowd) for i, entries in chosen.annotations.items()
    }
    return StorePlan(identity, images, layout, objects)


def _preview(plan: StorePlan, settings: PrecomputeSettings) -> Work:
    return preview(
        settings.store, plan.identity, plan.images, images_per_shard=settings.images_per_shard, layout=plan.layout
    )


def _fill(
    plan: StorePlan, settings: PrecomputeSettings, coco: CocoSet, make_backend: MakeBackend, ray_address: str
) -> StoreCounts:
    """Compute the missing shards of one kind; returns what the store holds then."""
    with StoreWriter.create_or_open(
        settings.store, plan.identity, plan.images, images_per_shard=settings.images_per_shard, layout=plan.layout
    ) as writer:
        work = writer.missing(retry_quarantined=settings.retry_quarantined)
        print(f"{plan.kind}: {work.summary()} shards of up to {settings.images_per_shard} images", flush=True)
        jobs = [_job(task, plan, coco) for task in work.tasks]
        total = sum(len(job.task.plan.images) for job in jobs)
        if jobs:
            with Progress(plan.kind, total) as progress:
                _run(jobs, plan, settings, make_backend, ray_address, progress)
        return writer.counts()


def _job(task: ShardTask, plan: StorePlan, coco: CocoSet) -> ShardJob:
    ids = [image.image_id for image in task.plan.images]
    objects = {i: plan.objects[i] for i in ids if plan.objects.get(i)}
    return ShardJob(task, str(coco.image_root.absolute()), objects)


def _run(
    jobs: Sequence[ShardJob],
    plan: StorePlan,
    settings: PrecomputeSettings,
    make_backend: MakeBackend,
    ray_address: str,
    progress: Progress,
) -> None:
    started: set[int] = set()

    def tell(image_id: int | None) -> None:
        # An image counts when the next one starts; the last of a shard with the shard.
        if started:
            progress.advance()
        started.clear()
        started.update([] if image_id is None else [image_id])

    bad = 0
    make_stage = partial(STAGES[plan.kind], settings, make_backend)
    workers, retries = settings.workers, settings.retries
    for report in run_sharded(make_stage, jobs, address=ray_address, workers=workers, retries=retries, tell=tell):
        assert isinstance(report, ShardReport)
        bad += sum(outcome.status == "quarantined" for outcome in report.outcomes)
        note = f"{bad} set aside" if bad else ""
        progress.advance(0 if ray_address == LOCAL else len(report.outcomes), note=note)


def _report(plans: Sequence[StorePlan], totals: Sequence[StoreCounts], settings: PrecomputeSettings) -> None:
    for plan, counts in zip(plans, totals, strict=True):
        print(f"{plan.kind}: {counts.images_ok} images, {counts.rows} rows, {counts.images_quarantined} set aside")
        for reason, number in counts.quarantined_by_reason.items():
            print(f"  {number} x {reason}")
    print(f"store: {settings.store}")
    for plan, counts in zip(plans, totals, strict=True):
        if counts.images_quarantined > settings.max_broken_share * counts.images_planned:
            raise TooManyQuarantinedError(
                f"{counts.images_quarantined} of {counts.images_planned} images were set aside",
                where=f"{plan.kind} of {settings.store}",
                expected=f"at most {100 * settings.max_broken_share:g} % (max_broken_share)",
                got="; ".join(f"{number} x {reason}" for reason, number in counts.quarantined_by_reason.items()),
                fix="mend the images and run again with --cfg-options retry_quarantined=True, or allow more",
            )


def _print_dry_run(plans: Sequence[StorePlan], settings: PrecomputeSettings, *, overwrite: bool) -> None:
    needed = 0
    for plan in plans:
        if overwrite:
            shards, summary = -(-len(plan.images) // settings.images_per_shard), "all anew"
            images = len(plan.images)
        else:
            work = _preview(plan, settings)
            shards, summary = len(work.tasks), work.summary()
            images = sum(len(task.plan.images) for task in work.tasks)
        size = images * plan.bytes_per_image
        needed += size
        print(f"{plan.kind}: {shards} shards to compute ({summary}), {images} images, about {_megabytes(size)}")
    print(f"store: {settings.store}, about {_megabytes(needed)} more{_free_disk(settings.store)}")
    print("dry run: nothing was written")


def _free_disk(store: str) -> str:
    files = open_files(store)
    if not files.is_local:
        return ""
    there = next(folder for folder in [Path(files.uri), *Path(files.uri).parents] if folder.exists())
    return f", {_megabytes(shutil.disk_usage(there).free)} free"


def _megabytes(size: int) -> str:
    return f"{size / 1e9:.1f} GB" if size >= 1e9 else f"{size / 1e6:.1f} MB"
