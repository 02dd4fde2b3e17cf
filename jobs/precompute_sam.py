"""``precompute-sam``: list the missing shards, run the stages, publish, count."""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing, nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path

from mmengine.config import Config

from jobs.cluster.ray_runner import LOCAL, room_for_a_worker, run_sharded
from jobs.config_files import laid_out, load_config
from jobs.precompute.overlap import run_overlapped
from jobs.precompute.plan import (
    StorePlan,
    duration,
    expected_seconds,
    images_of,
    plan_store,
    preview_store,
    print_dry_run,
    told_copied,
)
from jobs.precompute.stages import STAGES, MakeBackend, ShardJob, ShardReport, build_sam, describe_sam
from jobs.progress import Progress
from jobs.settings import PrecomputeSettings, SamSettings, known_keys, load_settings
from pipeline.data.coco import CocoSet, check_image_files, load_images, subset
from pipeline.data.splits import load_split
from pipeline.errors import ConfigError, InputError, TooManyQuarantinedError
from pipeline.sam.interface import SamBackend, SamFacts
from pipeline.stores.files import open_files
from pipeline.stores.shards import ShardTask, Work
from pipeline.stores.writer import StoreCounts, StoreWriter, remove_part

RESOLVED_CONFIG = "precompute_sam.py"
KEYS_OF_TRAININGS = {
    "annotations": "images=FILE, whose images all get proposals; split=FILE says which are labelled",
    "split_file": "split=FILE",
    "percent": "split=DIR/split.json, a split of that percentage (s4m-pipeline split)",
}
"""What the configurations of teachers and students call otherwise."""


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
    gpu: str | None = None,
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
        ray_address: See ``jobs/cluster/ray_runner.py``.
        gpu: For a dry run: the kind of GPU that the work will be done on, by its name or a part of it.

    Raises:
        PipelineError: Of whatever kind the input, the store or the machine gives reason to.
    """
    if gpu is not None and not dry_run:
        raise ConfigError("a GPU is named for an estimate only", where="--gpu", got=gpu, fix="add --dry-run")
    config = load_config(config_path, cfg_options, also_known=known_keys(), elsewhere=KEYS_OF_TRAININGS)
    if work_dir is not None:
        config.store = str(work_dir)
    settings = load_settings(config.to_dict(), where=config_path)
    precompute(
        settings,
        config=config,
        overwrite=overwrite,
        dry_run=dry_run,
        limit=limit,
        ray_address=ray_address,
        gpu=gpu,
    )


def precompute(
    settings: PrecomputeSettings,
    *,
    config: Config | None = None,
    overwrite: bool = False,
    dry_run: bool = False,
    limit: int | None = None,
    ray_address: str = LOCAL,
    gpu: str | None = None,
    make_backend: MakeBackend = build_sam,
) -> None:
    """The command without its configuration file; ``make_backend`` replaces the SAM, for tests.

    Raises:
        PipelineError: As :func:`run`.
    """
    is_local = ray_address == LOCAL
    if dry_run:
        # A login node has neither the GPU nor the checkpoint.
        describe = describe_sam if make_backend is build_sam else make_backend
        _dry_run(settings, describe, overwrite=overwrite, limit=limit, is_local=is_local, gpu=gpu)
        return
    _refuse_missing_inputs(settings)
    coco, labelled = load_inputs(settings, limit=limit)
    # The driver of a cluster may have no GPU, and needs only the SAM's digest and grid.
    on_driver = replace(settings.sam, device="cpu", precision="fp32", compile=False)
    backend = make_backend(settings.sam if is_local else on_driver)
    plans, works = _plan(settings, coco, labelled, backend, overwrite=overwrite)
    missing = [images_of(work) for work in works]
    if any(missing):
        # Before anything is written or removed: a wrong image_root is found in seconds and leaves things as they are.
        check_image_files(coco, max_broken_share=settings.max_broken_share)
    for_stages = (lambda _: backend) if is_local else make_backend
    expected, started = expected_seconds(plans, missing, settings, is_local=is_local), time.monotonic()
    # A cluster that is not there is found before anything is removed.
    with room_for_a_worker(ray_address, settings.workers) if any(missing) else nullcontext():
        if overwrite:
            remove_part(settings.store, *(plan.kind for plan in plans))
        totals = [_fill(plan, settings, coco, for_stages, ray_address) for plan in plans]
    if config is not None:
        open_files(settings.store).write(RESOLVED_CONFIG, laid_out(config).encode())
    if any(missing):
        estimated = f" (estimated: {duration(expected)})" if expected is not None else ""
        print(f"time: {duration(time.monotonic() - started)}{estimated}")
    if coco.broken:
        print(f"left out: {len(coco.broken)} image files whose header cannot be read, in no store")
    _report(plans, totals, settings)


def _refuse_missing_inputs(settings: PrecomputeSettings) -> None:
    """Say how a file that is not there is made; what is wrong inside of one, its reader says."""
    images, split = Path(settings.images), Path(settings.split) if settings.split else None
    missing = [("images", images)] if not images.exists() else []
    missing += [("split", split)] if split is not None and not split.exists() else []
    for key, path in missing:
        if path.parts[:1] == ("demo",):
            fix = "the demo writes it: run s4m-pipeline demo (or make demo) first, or correct the path"
        elif key == "split":
            root = f" --image-root {settings.image_root}" if settings.image_root else ""
            fix = (
                f"draw it as the head of the configuration says (s4m-pipeline split {images}{root} --percent P "
                f"--out {path.parent}), or name another one with --cfg-options split=FILE"
            )
        else:
            fix = f"see the head of the configuration for how the data are prepared, or correct {key}"
        expected = "a COCO file or a folder" if key == "images" else "a file of s4m-pipeline split"
        raise InputError(f"{key} not found", where=path, expected=expected, fix=fix)


def _dry_run(
    settings: PrecomputeSettings,
    describe: Callable[[SamSettings], SamFacts | SamBackend],
    *,
    overwrite: bool = False,
    limit: int | None = None,
    is_local: bool = True,
    gpu: str | None = None,
) -> None:
    """Say what :func:`precompute` would do and what it takes; ``describe`` tells of the SAM, which is not used.

    Raises:
        PipelineError: What the input or the store gives reason to, or too many images that cannot be read.
    """
    _refuse_missing_inputs(settings)
    coco, labelled = load_inputs(settings, limit=limit)
    plans, works = _plan(settings, coco, labelled, describe(settings.sam), overwrite=overwrite)
    print_dry_run(plans, works, settings, overwrite=overwrite, is_local=is_local, gpu=gpu)
    if any(images_of(work) for work in works):
        # The run would refuse them: it should not wait in a queue to do so.
        check_image_files(coco, max_broken_share=settings.max_broken_share)


def load_inputs(settings: PrecomputeSettings, *, limit: int | None = None) -> tuple[CocoSet, CocoSet]:
    """All images, and those that count as labelled.

    Raises:
        InputError: Files that are not there or wrong, or a split of other images.
    """
    source = Path(settings.images)
    if not source.exists():
        raise InputError("images not found", where=source, expected="a COCO file or a folder", fix="correct the path")
    coco = load_images(source, Path(settings.image_root) if settings.image_root else source.parent)
    # What a teacher reads, whichever way the labelled images are named: those with an object.
    chosen = set(coco.taught_ids)
    if settings.split is not None:
        named = set(load_split(Path(settings.split), coco, source=[source]).labelled)
        chosen = named & chosen if chosen else named  # a folder of images has no annotations at all
    if limit is not None:
        # Of both sorts, or a small trial of a large data set would have no labelled image.
        labelled, others = sorted(chosen), sorted(set(coco.by_id) - chosen)
        half = max((limit + 1) // 2, limit - len(others))
        coco = subset(coco, [*labelled[:half], *others[: limit - len(labelled[:half])]])
    return coco, subset(coco, chosen & set(coco.by_id))


def _plan(
    settings: PrecomputeSettings, coco: CocoSet, labelled: CocoSet, sam: SamBackend | SamFacts, *, overwrite: bool
) -> tuple[list[StorePlan], list[Work]]:
    """Each kind of artefact and what is missing of it."""
    plans = [plan_store(kind, settings, coco, labelled, sam) for kind in settings.targets]
    # What stays in the store may refuse the new parts: told before anything is removed, and by a dry run too.
    replaced = [plan.kind for plan in plans] if overwrite else []
    return plans, [preview_store(plan, settings, replaced) for plan in plans]


def _fill(
    plan: StorePlan, settings: PrecomputeSettings, coco: CocoSet, make_backend: MakeBackend, ray_address: str
) -> StoreCounts:
    """Compute the missing shards of one kind; returns what the store holds then."""
    with StoreWriter.create_or_open(
        settings.store, plan.identity, plan.images, images_per_shard=settings.images_per_shard, layout=plan.layout
    ) as writer:
        work = writer.missing(retry_quarantined=settings.retry_quarantined)
        copied = told_copied(plan, images_of(work), settings)
        print(f"{plan.kind}: {work.summary()} shards of up to {settings.images_per_shard} images{copied}", flush=True)
        jobs = [_job(task, plan, coco) for task in work.tasks]
        total = sum(len(job.task.plan.images) for job in jobs)
        if jobs:
            with Progress(plan.kind, total) as progress:
                _run(jobs, plan, settings, make_backend, ray_address, progress)
        return writer.counts()


def _job(task: ShardTask, plan: StorePlan, coco: CocoSet) -> ShardJob:
    ids = [image.image_id for image in task.plan.images]
    objects = {i: plan.objects[i] for i in ids if plan.objects.get(i)}
    known = {i: plan.known[i] for i in ids if i in plan.known}
    return ShardJob(task, str(coco.image_root.absolute()), objects, known)


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

    bad, is_local = 0, ray_address == LOCAL
    if settings.reuse is not None:  # workers run in other folders
        settings = replace(settings, reuse=open_files(settings.reuse).uri)
    make_stage = partial(STAGES[plan.kind], settings, make_backend)
    with ExitStack() as stack:
        if is_local:
            compute = partial(make_stage().compute, tell=tell)
            # Closed, and so written to its end, before the store is given back.
            reports: Iterator[ShardReport] = stack.enter_context(closing(run_overlapped(compute, jobs)))
        else:
            workers, retries = settings.workers, settings.retries
            reports = run_sharded(make_stage, jobs, address=ray_address, workers=workers, retries=retries)
        for report in reports:
            bad += sum(outcome.status == "quarantined" for outcome in report.outcomes)
            note = f"{bad} set aside" if bad else ""
            progress.advance(0 if is_local else len(report.outcomes), note=note)


def _report(plans: Sequence[StorePlan], totals: Sequence[StoreCounts], settings: PrecomputeSettings) -> None:
    for plan, counts in zip(plans, totals, strict=True):
        print(f"{plan.kind}: {counts.images_ok} images, {counts.rows} rows, {counts.images_quarantined} set aside")
        for line in _set_aside(plan, counts):
            print(f"  {line}")
    print(f"store: {settings.store}")
    mend = "mend the images and run again with --cfg-options retry_quarantined=True"
    for plan, counts in zip(plans, totals, strict=True):
        if counts.images_quarantined > settings.max_broken_share * counts.images_planned:
            raise TooManyQuarantinedError(
                f"{counts.images_quarantined} of {counts.images_planned} images were set aside",
                where=f"{plan.kind} of {settings.store}",
                expected=f"at most {100 * settings.max_broken_share:g} % (max_broken_share)",
                got="; ".join(_set_aside(plan, counts)),
                fix=f"{mend}, or allow more",
            )
    if any(counts.images_quarantined for counts in totals):
        print(f"for the images that were set aside: {mend}")


def _set_aside(plan: StorePlan, counts: StoreCounts) -> list[str]:
    names = {image.image_id: image.file_name for image in plan.images}
    return counts.reasons(names.__getitem__)
