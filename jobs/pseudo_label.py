"""``pseudo-label``: a network and a refiner over images without labels, shard by shard.

The run directory is a store of the kind ``pseudo_labels`` (manifest, records, ``pseudo_labels/*.parquet``); when all
shards are there, ``results.json`` (COCO, refined masks) and then ``summary.json`` are made from them.
"""

import copy
import time
from collections.abc import Collection, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

from mmengine.config import Config

from data_schemas.manifest import SCHEMA_VERSIONS, ImageKey, StoreIdentity, digest
from jobs.cluster.ray_runner import LOCAL, room_for_a_worker, run_sharded
from jobs.config_files import as_text, write_resolved
from jobs.labels.answers import NETWORK
from jobs.labels.instances import Labeller, PseudoLabelStage
from jobs.labels.sentences import (
    ReferLabeller,
    ReferLabelStage,
    as_source,
    find_sentences,
    network_digest,
    questions_of,
)
from jobs.labels.settings import KEYS, LabelSettings, Source, find_source, load_label_settings, refiner_of
from jobs.labels.summary import RESULTS, SUMMARY, print_summary, write_outputs
from jobs.networks import (
    Which,
    class_names,
    file_sha256,
    filter_of,
    load_network,
    num_classes,
    open_config,
    transforms_digest,
)
from jobs.precompute.stages import ShardJob, ShardReport
from jobs.progress import Progress
from jobs.provenance import provenance
from jobs.refer_networks import is_referring
from jobs.store_checks import image_keys, refuse_other_images
from jobs.training.devices import refuse_missing_device
from pipeline.data.coco import check_image_files, make_coco
from pipeline.data.referring.dataset import ReferDataset
from pipeline.errors import TooManyQuarantinedError
from pipeline.refine.build import SOURCE_SETTINGS, build_refiner
from pipeline.sam.sam2_backend import build_backend
from pipeline.stores.proposal_store import ProposalStore
from pipeline.stores.shards import Work
from pipeline.stores.writer import StoreCounts, StoreWriter, preview, remove_part

RESOLVED_CONFIG = "pseudo_label.py"
KIND = "pseudo_labels"


@dataclass(frozen=True)
class Plan:
    """What is to be labelled, by what, and where to."""

    folder: Path
    settings: LabelSettings
    source: Source
    labeller: Labeller
    identity: StoreIdentity
    images: tuple[ImageKey, ...]
    sentences: ReferDataset | None = None
    """What is asked, where the network reads sentences."""


def run(
    config_path: Path,
    checkpoint: Path,
    *,
    cfg_options: Sequence[str] = (),
    network: Which = "teacher",
    work_dir: Path | None = None,
    resume: bool = False,
    overwrite: bool = False,
    dry_run: bool = False,
    limit: int | None = None,
    ray_address: str = LOCAL,
) -> None:
    """Do the command; see ``s4m-pipeline pseudo-label --help``.

    Args:
        config_path: Config of a teacher or student. Its unlabelled images are labelled and its refiner is used,
            unless overridden: ``pseudo_label.*`` (see ``LabelSettings``), ``model.refiner.*``.
        checkpoint: Weights of either.
        cfg_options: Overrides, ``key=value``.
        network: Network of a student's checkpoint.
        work_dir: The run directory; ``work_dirs/pseudo_labels_<folder>_<name>`` by default.
        resume: Nothing: a run is always gone on with.
        overwrite: Remove an earlier run's files first.
        dry_run: Print what would be done and write nothing.
        limit: Only the first so many images (by id).
        ray_address: See ``jobs/cluster/ray_runner.py``.

    Raises:
        PipelineError: Of whatever kind the input, the run directory or the machine gives reason to.
    """
    config = open_config(config_path, cfg_options, also_known=KEYS)
    folder = work_dir or Path("work_dirs") / f"pseudo_labels_{config_path.resolve().parent.name}_{config_path.stem}"
    refiner = refiner_of(config, config_path, cfg_options)
    is_local = ray_address == LOCAL
    plan = make_plan(config, checkpoint, network, folder, refiner=refiner, limit=limit, is_local=is_local)
    # With what stays in the folder: another part may refuse the labels, which is told before anything is removed.
    work = _preview(plan, replaced=[KIND] if overwrite else [])
    if dry_run:
        _print_dry_run(plan, work, overwrite=overwrite)
    if work.tasks:
        # Before anything is written or removed: a wrong image folder is found in seconds and leaves things as they are.
        check_image_files(plan.source.coco, max_broken_share=plan.settings.max_broken_share)
    if dry_run:
        return
    with room_for_a_worker(ray_address, plan.settings.workers) if work.tasks else nullcontext():
        if overwrite:
            remove_part(folder, KIND)
            for name in (SUMMARY, RESULTS, NETWORK):
                (folder / name).unlink(missing_ok=True)
        counts = label_images(plan, config, ray_address=ray_address)
    _refuse_many_broken(counts, plan)


def make_plan(
    config: Config,
    checkpoint: Path,
    network: Which,
    folder: Path,
    *,
    refiner: Mapping[str, Any],
    limit: int | None = None,
    is_local: bool = True,
) -> Plan:
    """Check everything that can be checked before the work.

    Args:
        config: From ``open_config``.
        checkpoint: Weights.
        network: Which one of a student's checkpoint.
        folder: The run directory.
        refiner: Arguments of ``make_refiner``.
        limit: Only the first so many images (by id).
        is_local: This process does the work; otherwise it needs no GPU.

    Raises:
        InputError: A wrong checkpoint, config, data set or library.
        EnvironmentProblemError: No GPU where one is asked for.
    """
    settings = load_label_settings(config)
    if is_local:
        refuse_missing_device(config)
    # A wrong checkpoint is told here, in one message, and it knows the classes.
    on_cpu = copy.deepcopy(config)
    on_cpu.device = "cpu"
    model = load_network(on_cpu, checkpoint, which=network)
    about: dict[str, Any] = {
        "config_text": as_text(config),
        "checkpoint": str(checkpoint.absolute() if checkpoint.exists() else checkpoint),
        "network": network,
        "refiner": refiner,
        "seed": settings.seed,
        "retries": settings.retries,
    }
    if is_referring(config):
        sentences = find_sentences(config, settings, limit=limit)
        source = as_source(sentences)
        labeller: Labeller = ReferLabeller(
            **about, questions=questions_of(sentences), network_digest=network_digest(config)
        )
    else:
        sentences, names = None, class_names(model)
        source = find_source(config, settings, names=names, num_classes=num_classes(model), limit=limit)
        ids = tuple(category.category_id for category in source.categories)
        labeller = Labeller(**about, category_ids=ids, filter=filter_of(config))
    images = image_keys(source.coco.images)
    identity = _identity(labeller, source, images, transforms=transforms_digest(config))
    return Plan(folder, settings, source, labeller, identity, images, sentences)


def _identity(labeller: Labeller, source: Source, images: Sequence[ImageKey], *, transforms: str) -> StoreIdentity:
    """All that decides the labels: a run directory takes no others."""
    sam_name, sam_sha256, refiner = _guide(labeller.refiner, images)
    return StoreIdentity(
        kind="pseudo_labels",
        schema_version=SCHEMA_VERSIONS[KIND],
        # Annotations only measure: correcting one must not make the labels useless.
        dataset_fingerprint=make_coco(source.coco.image_root, source.coco.images, (), ()).fingerprint,
        sam_name=sam_name,
        sam_sha256=sam_sha256,
        settings={
            "checkpoint_sha256": file_sha256(labeller.checkpoint),
            "network": labeller.network,
            **_asked(labeller),
            "refiner": refiner,
            "transforms": transforms,
            "seed": labeller.seed,
        },
    )


def _asked(labeller: Labeller) -> dict[str, Any]:
    if isinstance(labeller, ReferLabeller):
        return {"questions": labeller.digest(), "model": labeller.network_digest}
    chosen = asdict(labeller.filter)
    chosen.pop("unsure_threshold")  # of what becomes no label
    return {"category_ids": list(labeller.category_ids), "filter": chosen}


def _guide(refiner: Mapping[str, Any], images: Sequence[ImageKey]) -> tuple[str, str, dict[str, Any]]:
    """Name and digest of the SAM behind a refiner, and the settings that decide what it does.

    The refiner is built here for its complaints, before anything is written; workers build their own.
    """
    name, store, sam = (refiner.get(key) for key in ("name", "store", "sam"))
    own = {key: value for key, value in refiner.items() if key not in SOURCE_SETTINGS}
    if name == "points" and sam is not None:
        backend = build_backend(sam, device="cpu", config=refiner.get("sam_config"))
        build_refiner(**own, sam=backend)
        half = {"precision": "bf16"} if refiner.get("precision") == "bf16" else {}
        return Path(backend.name).name, backend.sha256, own | half
    if name not in ("points", "none") and store is not None:
        library = ProposalStore.open(store)
        build_refiner(**own, proposals=library)
        refuse_other_images(str(store), "proposals", images)
        identity = library.identity
        return identity.sam_name, identity.sam_sha256, own | {"library": digest(identity.to_json())[:16]}
    build_refiner(**own)
    return "none", "", own


def label_images(plan: Plan, config: Config, *, ray_address: str = LOCAL) -> StoreCounts:
    """Label what is not labelled yet, then write results and summary; a finished run is left as it is.

    Raises:
        PipelineError: As :func:`run`.
    """
    started, folder, settings = time.monotonic(), plan.folder, plan.settings
    with StoreWriter.create_or_open(
        folder, plan.identity, plan.images, images_per_shard=settings.images_per_shard
    ) as writer:
        work = writer.missing(retry_quarantined=settings.retry_quarantined)
        print(f"{KIND}: {work.summary()} shards of up to {settings.images_per_shard} images", flush=True)
        finished = not work.tasks and (folder / SUMMARY).exists() and (folder / RESULTS).exists()
        if not finished:
            (folder / SUMMARY).unlink(missing_ok=True)  # it says "finished"
            write_resolved(config, folder / RESOLVED_CONFIG)
            root = str(plan.source.coco.image_root.absolute())
            _run([ShardJob(task, root) for task in work.tasks], plan, ray_address)
            about = {"identity": plan.identity.to_json(), "provenance": provenance()}
            write_outputs(folder, plan.source, writer, about=about, started=started, sentences=plan.sentences)
        counts = writer.counts()
    print_summary(folder, already=finished, set_aside=_set_aside(counts, plan))
    return counts


def _run(jobs: Sequence[ShardJob], plan: Plan, ray_address: str) -> None:
    started: set[int] = set()
    total = sum(len(job.task.plan.images) for job in jobs)
    if not jobs:
        return
    with Progress(KIND, total) as progress:

        def tell(image_id: int | None) -> None:
            # An image counts when the next one starts; the last of a shard with the shard.
            if started:
                progress.advance()
            started.clear()
            started.update([] if image_id is None else [image_id])

        stage = ReferLabelStage if isinstance(plan.labeller, ReferLabeller) else PseudoLabelStage
        bad, make_stage = 0, partial(stage, plan.labeller)
        workers, retries = plan.settings.workers, plan.settings.retries
        for report in run_sharded(make_stage, jobs, address=ray_address, workers=workers, retries=retries, tell=tell):
            assert isinstance(report, ShardReport)
            bad += sum(outcome.status == "quarantined" for outcome in report.outcomes)
            note = f"{bad} set aside" if bad else ""
            progress.advance(0 if ray_address == LOCAL else len(report.outcomes), note=note)


def _preview(plan: Plan, *, replaced: Collection[str] = ()) -> Work:
    size, retries = plan.settings.images_per_shard, plan.settings.retry_quarantined
    return preview(
        plan.folder, plan.identity, plan.images, images_per_shard=size, retry_quarantined=retries, replaced=replaced
    )


def _print_dry_run(plan: Plan, work: Work, *, overwrite: bool) -> None:
    shards, summary = len(work.tasks), "all anew" if overwrite else work.summary()
    images = sum(len(task.plan.images) for task in work.tasks)
    print(f"{KIND}: {shards} shards to label ({summary}), {images} images, refiner {plan.labeller.refiner['name']}")
    print(f"run directory: {plan.folder}")
    print("dry run: nothing was written")


def _set_aside(counts: StoreCounts, plan: Plan) -> list[str]:
    names = {image.image_id: image.file_name for image in plan.images}
    return counts.reasons(names.__getitem__)


def _refuse_many_broken(counts: StoreCounts, plan: Plan) -> None:
    allowed = plan.settings.max_broken_share
    mend = "mend the images and run again with --cfg-options pseudo_label.retry_quarantined=True"
    if counts.images_quarantined > allowed * counts.images_planned:
        raise TooManyQuarantinedError(
            f"{counts.images_quarantined} of {counts.images_planned} images were set aside",
            where=plan.folder,
            expected=f"at most {100 * allowed:g} % (pseudo_label.max_broken_share)",
            got="; ".join(_set_aside(counts, plan)),
            fix=f"{mend}, or allow more",
        )
    if counts.images_quarantined:
        print(f"for the images that were set aside: {mend}")
