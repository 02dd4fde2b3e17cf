"""The end of ``pseudo-label``: a COCO results list and a summary from the rows of all shards."""

import json
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from data_schemas.pseudo_labels import OUTCOMES, PseudoLabel
from jobs.evaluate import shown
from jobs.labels.sentences import quality, questions_of, write_answers
from jobs.labels.settings import Source
from pipeline.data.coco import subset, write_json
from pipeline.data.referring.dataset import ReferDataset
from pipeline.evaluation.pseudo_label_quality import pseudo_label_quality
from pipeline.masks import rle
from pipeline.stores.pseudo_label_store import read_pseudo_labels
from pipeline.stores.writer import StoreCounts, StoreWriter

RESULTS, SUMMARY = "results.json", "summary.json"


def write_outputs(
    folder: Path,
    source: Source,
    writer: StoreWriter,
    *,
    about: Mapping[str, Any],
    started: float,
    sentences: ReferDataset | None = None,
) -> None:
    """Write ``results.json`` and then ``summary.json``, each complete or not at all.

    Args:
        folder: The run directory.
        source: The images and, where known, their ground truth.
        writer: Of the run, all shards published.
        about: Goes into the summary as it is.
        started: ``time.monotonic()`` at the start.
        sentences: What was asked, where the network reads sentences.

    Raises:
        StoreDamagedError: A shard is not what was written.
    """
    records = writer.records()
    rows = list(read_pseudo_labels(writer.files, records))
    done = [o.image_id for record in records for o in record.outcomes if o.status == "ok"]
    if sentences is not None:
        results = write_answers(folder, rows, questions_of(sentences))
    else:
        results = as_results(rows, "refined")
        write_json(results, folder / RESULTS)
    summary = {
        **_counts(rows, len(results), writer.counts()),
        "left_out": [{"file_name": entry.file_name, "reason": entry.reason} for entry in source.broken],
        "quality": _quality(rows, source, done) if sentences is None else quality(rows, sentences),
        "categories": [{"id": c.category_id, "name": c.name} for c in source.categories],
        "wall_seconds": round(time.monotonic() - started, 3),
        **about,
    }
    write_json(summary, folder / SUMMARY)


def as_results(rows: Sequence[PseudoLabel], which: Literal["network", "refined"]) -> list[dict[str, Any]]:
    """COCO results entries of the masks before or after refinement; masks without a pixel are left out."""
    entries = []
    for row in rows:
        code = rle.Rle(size=[row.height, row.width], counts=getattr(row, f"{which}_rle"))
        if getattr(row, f"{which}_area"):
            entries.append(
                {
                    "image_id": row.image_id,
                    "category_id": row.category_id,
                    "segmentation": code,
                    "score": row.score,
                    "bbox": list(rle.bbox_xywh(code)),
                    "area": getattr(row, f"{which}_area"),
                }
            )
    return entries


def _counts(rows: Sequence[PseudoLabel], num_results: int, counts: StoreCounts) -> dict[str, Any]:
    outcomes = Counter(row.outcome for row in rows)
    return {
        "images": {
            "planned": counts.images_planned,
            "labelled": counts.images_ok,
            "set_aside": counts.images_quarantined,
            "reasons": counts.quarantined_by_reason,
        },
        "rows": len(rows),
        "pseudo_labels": num_results,
        "mean_per_image": num_results / counts.images_ok if counts.images_ok else None,
        "outcomes": {name: outcomes[name] for name in OUTCOMES},
    }


def _quality(rows: Sequence[PseudoLabel], source: Source, done: Sequence[int]) -> dict[str, Any] | None:
    """CA and SQ on the images that were labelled; None without ground truth."""
    if source.truth is None or not done:
        return None
    truth = subset(source.truth, done)
    return {
        "before": pseudo_label_quality(truth, as_results(rows, "network")).as_dict(),
        "after": pseudo_label_quality(truth, as_results(rows, "refined")).as_dict(),
    }


def print_summary(folder: Path, *, already: bool, set_aside: Sequence[str]) -> None:
    """What ``summary.json`` says, for people, with the images that were set aside (``StoreCounts.reasons``)."""
    summary = json.loads((folder / SUMMARY).read_bytes())
    images, outcomes = summary["images"], summary["outcomes"]
    if already:
        print("already finished; nothing was written")
    print(f"{images['labelled']} images, {summary['pseudo_labels']} pseudo-labels, {images['set_aside']} set aside")
    if summary["left_out"]:
        first = summary["left_out"][0]
        print(f"  {len(summary['left_out'])} left out at loading, such as {first['file_name']}: {first['reason']}")
    for line in set_aside:
        print(f"  {line}")
    print("  " + ", ".join(f"{number} {name}" for name, number in outcomes.items()))
    if summary["quality"] and "corrections" in summary["quality"]:
        _print_answers(summary["quality"])
    elif summary["quality"]:
        print(f"  {'':6}  {'CA':>6}  {'SQ':>6}  {'prec':>6}  {'recall':>6}")
        for name, quality in summary["quality"].items():
            keys = ("class_accuracy", "segmentation_quality", "matched_share", "found_share")
            print(f"  {name:6}  " + "  ".join(shown(quality[key]) for key in keys))
    print(f"results: {folder / RESULTS}")


def _print_answers(quality: Mapping[str, Any]) -> None:
    names = list(quality["before"])
    print(f"  {'':6}  " + "  ".join(f"{name:>6}" for name in names))
    for when in ("before", "after"):
        print(f"  {when:6}  " + "  ".join(shown(quality[when][name]) for name in names))
    changed = quality["corrections"]
    print(
        "  "
        + ", ".join(f"{changed[f'num_{name}']} {name}" for name in ("positive", "negative", "equal", "uncorrected"))
    )
