"""``correction-stats``: how often each way to refine makes a teacher's masks better or worse (SemiRES, Figure 6).

No network runs: a teacher's masks come from files, proposals from a store, and any number of strategies share one pass.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from jobs.config_files import parse_options
from jobs.evaluate import shown
from jobs.labels.teacher_masks import TaughtImage, instances, referred
from jobs.progress import Progress
from jobs.provenance import provenance
from pipeline.data.coco import load_coco, write_json
from pipeline.data.referring.sets import load_refer_set
from pipeline.errors import ConfigError, InputError
from pipeline.evaluation.correction_statistics import CorrectionStatistics, OracleStatistics, corrections, oracle
from pipeline.refine.build import LIBRARY_REFINERS, refuse_unknown_settings
from pipeline.stores.proposal_store import ProposalStore

STRATEGIES = tuple(LIBRARY_REFINERS)
"""Counted where none is named."""
_SHARES = ("positive", "negative", "equal", "uncorrected", "empty")


@dataclass(frozen=True)
class Counted:
    """One pass over a teacher's masks."""

    by_strategy: Mapping[str, CorrectionStatistics]
    limits: OracleStatistics
    num_images: int = 0
    num_without_object: int = 0
    """Masks that are about no annotated object; they count nowhere else."""
    not_stored: tuple[int, ...] = ()
    """Images that the store does not have."""


def run(
    labels: Path,
    *,
    store: str,
    annotations: Path,
    image_root: Path,
    out: Path,
    expressions: Path | None = None,
    split: str = "all",
    strategies: Sequence[str] = STRATEGIES,
    with_oracle: bool = True,
    limit: int | None = None,
    overwrite: bool = False,
) -> dict[str, Any]:
    """Do the command; see ``s4m-pipeline correction-stats --help``.

    Args:
        labels: The teacher's masks: run directory of ``pseudo-label`` or COCO results; with ``expressions`` a JSON
            list of {ref_id, segmentation}, one entry a sentence.
        store: Proposal library.
        annotations: COCO file with the ground truth.
        image_root: Folder of the images.
        out: JSON to write.
        expressions: Referring expressions that the masks answer; None: the masks are a detector's.
        split: Of the expressions.
        strategies: Each ``NAME`` or ``NAME:key=value,key=value``: a refiner that matches, and its settings.
        with_oracle: Also look for the best proposal and the best union for each object.
        limit: Only so many images.
        overwrite: Replace what is there.

    Returns:
        What was written.

    Raises:
        PipelineError: Of whatever kind the input gives reason to.
    """
    if out.exists() and not overwrite:
        raise InputError("this file is there already", where=out, fix="another --out, or --overwrite")
    chosen = parse_strategies(strategies or STRATEGIES)
    proposals = ProposalStore.open(store)
    images, total = _source(labels, annotations, image_root, expressions, split)
    with Progress("correction-stats", min(total, limit or total)) as progress:
        counted = count(_some(images, limit, progress), proposals, chosen, with_oracle=with_oracle)
    if not counted.num_images:
        raise InputError("the store has none of these images", where=store, got=f"{len(counted.not_stored)} others")
    report = _report(counted, chosen, with_oracle=with_oracle)
    names = {"labels": labels, "store": store, "annotations": annotations, "expressions": expressions, "split": split}
    inputs = {name: None if value is None else str(value) for name, value in names.items()}
    write_json(report | {"inputs": inputs, "provenance": provenance()}, out)
    print(table(report))
    print(f"written: {out}")
    return report


def parse_strategies(texts: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Arguments of ``build_refiner`` by the text that asks for them.

    Raises:
        ConfigError: an unknown refiner or setting, one that needs a SAM, or the same text twice.
    """
    found: dict[str, dict[str, Any]] = {}
    for text in texts:
        name, _, options = text.partition(":")
        settings = parse_options(options.split(",")) if options else {}
        refuse_unknown_settings(name, **settings)
        if "unmatched" in settings:
            raise ConfigError(
                "counts are of what a match changes; what becomes of the others is not counted",
                where="--strategy",
                got=text,
                fix="leave unmatched out: pseudo-label with model.refiner.unmatched tells how many are dropped",
            )
        if name == "points" or text in found:
            raise ConfigError(
                "a strategy that cannot be counted",
                where="--strategy",
                expected="each once; refiners that match against the library: none | iom | cpi | cpi_u | cpi_o",
                got=text,
                fix="python -m jobs.measurements.prompts compares prompts" if name == "points" else "name it once",
            )
        found[text] = {"name": name, **settings}
    return found


def count(
    images: Iterator[TaughtImage],
    proposals: ProposalStore,
    strategies: Mapping[str, Mapping[str, Any]],
    *,
    with_oracle: bool = True,
) -> Counted:
    """Refine every image's masks in every way, and pool.

    Args:
        images: The teacher's masks; images that the store does not have are named and left out.
        proposals: The library.
        strategies: As :func:`corrections` takes them.
        with_oracle: Also what the proposals could do at best.
    """
    stored = set(proposals.image_ids())
    total = Counted({name: CorrectionStatistics() for name in strategies}, OracleStatistics())
    for image in images:
        if image.image_id not in stored:
            total = replace(total, not_stored=(*total.not_stored, image.image_id))
            continue
        library = proposals.read_masks(image.image_id)
        found = corrections(image.teacher, image.truth, library, strategies)
        total = replace(
            total,
            by_strategy={name: total.by_strategy[name] + found[name] for name in strategies},
            limits=total.limits + (oracle(image.truth, library) if with_oracle else OracleStatistics()),
            num_images=total.num_images + 1,
            num_without_object=total.num_without_object + image.num_without_object,
        )
    return total


def _source(
    labels: Path, annotations: Path, image_root: Path, expressions: Path | None, split: str
) -> tuple[Iterator[TaughtImage], int]:
    """The images with masks, and how many they are."""
    if expressions is None:
        return instances(labels, load_coco(annotations, image_root))
    refer_set = load_refer_set(
        expressions_file=expressions, annotation_file=annotations, image_root=image_root, split=split
    )
    return referred(labels, refer_set)


def _some(images: Iterator[TaughtImage], limit: int | None, progress: Progress) -> Iterator[TaughtImage]:
    for number, image in enumerate(images):
        if limit is not None and number >= limit:
            return
        yield image
        progress.advance()


def _report(counted: Counted, strategies: Mapping[str, Mapping[str, Any]], *, with_oracle: bool) -> dict[str, Any]:
    return {
        "resolution_of_iou": "native",
        "images": counted.num_images,
        "images_not_stored": list(counted.not_stored),
        "masks_without_object": counted.num_without_object,
        "strategies": {
            name: {"settings": dict(settings), **counted.by_strategy[name].as_dict()}
            for name, settings in strategies.items()
        },
        "oracle": counted.limits.as_dict() if with_oracle else None,
    }


def table(report: Mapping[str, Any]) -> str:
    """The report as a person reads it."""
    rows = report["strategies"]
    width = max([len("best proposal"), *(len(name) for name in rows)])
    first = next(iter(rows.values()))
    lines = [
        f"{report['images']} images, {first['total']} pseudo-labels about an object, "
        f"{report['masks_without_object']} about none, {len(report['images_not_stored'])} images not in the store",
        f"{'':{width}}  {'better':>6}  {'worse':>6}  {'equal':>6}  {'kept':>6}  {'empty':>6}  {'IoU':>6}  {'after':>6}",
    ]
    for name, row in rows.items():
        shares = [shown(row[f"share_{kind}"]) for kind in _SHARES]
        lines.append(
            "  ".join([f"{name:{width}}", *shares, shown(row["mean_iou_before"]), shown(row["mean_iou_after"])])
        )
    if report["oracle"]:
        for kind in ("proposal", "union"):
            best = shown(report["oracle"][f"mean_iou_best_{kind}"])
            lines.append(f"{f'best {kind}':{width}}  {'':46}  {best}")
    return "\n".join(lines)
