"""How good masks get by how SAM is asked (S4M, Table A.2), on a network's masks and without any training.

    python -m jobs.measurements.prompts configs/student/scenes_points.py TEACHER.pth --limit 60 --out FILE.json

All ways refine the same masks of the config's unlabelled images, whose ground truth only measures: CA, SQ and shares
as ``pseudo-label`` gives them, and seconds an image. ``--cfg-options`` sets data, SAM and filter as elsewhere.
"""

import argparse
import statistics
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from mmengine.config import Config
from numpy.typing import NDArray

from data_schemas.pseudo_labels import OUTCOMES, PseudoLabel
from jobs.labels.instances import as_rows
from jobs.labels.settings import KEYS, refiner_of
from jobs.labels.summary import as_results
from jobs.networks import build_transforms, file_sha256, label, load_network, open_config, pack
from jobs.progress import Progress
from jobs.provenance import provenance
from jobs.pseudo_label import Plan, make_plan
from pipeline.data.coco import write_json
from pipeline.errors import InputError, PipelineError
from pipeline.evaluation.pseudo_label_quality import pseudo_label_quality
from pipeline.images import read_image
from pipeline.models.pseudo_labels import PseudoLabelFilter
from pipeline.refine.build import SOURCE_SETTINGS, build_refiner
from pipeline.refine.embedding_cache import EmbeddingCache
from pipeline.refine.interface import Refiner, TeacherMasks
from pipeline.sam.sam2_backend import build_backend

WAYS: Mapping[str, Mapping[str, Any]] = {
    "point": {"prompt": "points", "num_points": 1},
    "points_3": {"prompt": "points", "num_points": 3},
    "points_5": {"prompt": "points", "num_points": 5},
    "points_10": {"prompt": "points", "num_points": 10},
    "points_20": {"prompt": "points", "num_points": 20},
    "box": {"prompt": "box"},
    "mask": {"prompt": "mask"},
}
"""Name -> settings of the refiner ``points``; what the config's own refiner says of these does not count."""
T = TypeVar("T")
_FIGURES = ("class_accuracy", "segmentation_quality", "matched_share", "found_share")


@dataclass
class Way:
    """One way to refine, with one seed, and what came of it."""

    name: str
    settings: Mapping[str, Any]
    seed: int
    refiner: Refiner
    rows: list[PseudoLabel] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    """Of every image, without its embedding."""


class Network:
    """The network whose masks are refined."""

    def __init__(self, config: Config, checkpoint: Path) -> None:
        self._model = load_network(config, checkpoint, which="teacher")
        self._transforms = build_transforms(config)

    def label(self, image_id: int, image: NDArray[np.uint8], settings: PseudoLabelFilter) -> TeacherMasks:
        """Its pseudo-labels of an image [H, W, 3] uint8 RGB."""
        return label(self._model, [pack(self._transforms, image, image_id=image_id)], settings)[0]


def main() -> None:
    """Parse the command line, measure, write the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config", type=Path, help="a config of configs/student whose refiner is `points`")
    parser.add_argument("checkpoint", type=Path, help="weights of a teacher or student")
    parser.add_argument("--cfg-options", action="append", default=[], metavar="KEY=VALUE")
    parser.add_argument("--limit", type=int, help="only the first so many images (by id)")
    parser.add_argument("--seeds", type=int, default=3, help="of the points; a box or a mask has nothing to draw")
    parser.add_argument("--min-iou", type=float, help="every way once more, with this min_iou_with_teacher")
    parser.add_argument("--out", type=Path, required=True, help="JSON to write")
    args = parser.parse_args()
    try:
        gates = [None, args.min_iou] if args.min_iou is not None else [None]
        found = compare(
            args.config, args.checkpoint, args.cfg_options, limit=args.limit, num_seeds=args.seeds, gates=gates
        )
    except PipelineError as error:
        parser.exit(error.exit_code, f"error: {error}\n")
    write_json(found, args.out)
    print(as_table(found))


def compare(
    config_path: Path,
    checkpoint: Path,
    cfg_options: Sequence[str],
    *,
    limit: int | None = None,
    num_seeds: int = 3,
    gates: Sequence[float | None] = (None,),
) -> dict[str, Any]:
    """Refine a network's masks in every way of :data:`WAYS`, and not at all.

    Args:
        config_path: Of a student whose refiner is ``points``; names images, filter and SAM.
        checkpoint: Of a teacher or a student (whose teacher is taken).
        cfg_options: Overrides.
        limit: Only the first so many images.
        num_seeds: Seeds of the points, 0 and up.
        gates: ``min_iou_with_teacher`` of the refiner; every way is tried with each.

    Returns:
        Figures for JSON: ``rows`` by way, and how they were made. Seconds are medians; those of a row are without
        network and embedding, which all ways share.

    Raises:
        PipelineError: what the images, the checkpoint or the settings give reason to; or there is no ground truth.
    """
    config = open_config(config_path, cfg_options, also_known=KEYS)
    refiner = refiner_of(config, config_path, cfg_options)
    if refiner["name"] != "points":
        fix = "take configs/student/scenes_points.py or a copy"
        raise InputError("this config prompts no SAM", where=config_path, got=f"refiner {refiner['name']}", fix=fix)
    plan = make_plan(config, checkpoint, "teacher", Path(), refiner=refiner, limit=limit)
    if plan.source.truth is None:
        raise InputError(
            "prompts are compared on images with ground truth",
            where=plan.source.coco.image_root,
            got="no object of the network's classes",
            fix="name a COCO file with objects: --cfg-options pseudo_label.images=FILE",
        )
    backend = build_backend(refiner["sam"], device=refiner.get("device", "cpu"), config=refiner.get("sam_config"))
    cache = EmbeddingCache(backend, size=1)
    ways = [Way("none", {}, 0, build_refiner("none"))]
    for gate in gates:
        ways += _ways(refiner, partial(build_refiner, "points", sam=backend, embed=cache), num_seeds, gate)
    shared = _refine_all(plan, Network(config, checkpoint), cache, ways)
    return {
        "images": len(plan.images),
        "dataset_fingerprint": plan.identity.dataset_fingerprint,
        "sam": {"name": backend.name, "sha256": backend.sha256},
        "checkpoint_sha256": file_sha256(checkpoint),
        "threads": torch.get_num_threads(),
        "seconds_per_image": shared,
        "rows": [_row([way for way in ways if way.name == name], plan) for name in dict.fromkeys(w.name for w in ways)],
        "provenance": provenance(),
    }


def _ways(
    configured: Mapping[str, Any], build: Callable[..., Refiner], num_seeds: int, gate: float | None
) -> Iterator[Way]:
    """Every way of :data:`WAYS` with every seed that makes a difference."""
    others = {key: value for key, value in configured.items() if key != "name" and key not in SOURCE_SETTINGS}
    for name, own in WAYS.items():
        settings = {**others, **own, "min_iou_with_teacher": gate}
        for seed in range(1 if own["prompt"] in ("box", "mask") else num_seeds):
            yield Way(name if gate is None else f"{name}, IoU >= {gate:g}", settings, seed, build(**settings))


def _refine_all(plan: Plan, network: Network, cache: EmbeddingCache, ways: Sequence[Way]) -> dict[str, float]:
    """Label every image once and refine it in all ways; median seconds an image of what they share."""
    seconds: dict[str, list[float]] = {"network": [], "embedding": []}
    with Progress("images", len(plan.images)) as progress:
        for key in plan.images:
            image = read_image(plan.source.coco.image_root / key.file_name)
            masks = _timed(seconds["network"], network.label, key.image_id, image, plan.labeller.filter)
            _timed(seconds["embedding"], cache, key.image_id, image)
            for way in ways:
                rng = np.random.default_rng([way.seed, key.image_id])
                refined = _timed(way.seconds, way.refiner.refine, key.image_id, image, masks, rng)
                way.rows += as_rows(key, masks, refined, plan.labeller.category_ids)
            progress.advance()
    return {name: statistics.median(values) for name, values in seconds.items()}


def _timed(seconds: list[float], call: Callable[..., T], *arguments: Any) -> T:
    """What a call returns; how long it took is added to ``seconds``."""
    started = time.perf_counter()
    result = call(*arguments)
    seconds.append(time.perf_counter() - started)
    return result


def _row(ways: Sequence[Way], plan: Plan) -> dict[str, Any]:
    """Mean over the seeds of one way, and their standard deviation where there are several."""
    assert plan.source.truth is not None
    each = [pseudo_label_quality(plan.source.truth, as_results(way.rows, "refined")).as_dict() for way in ways]
    values = {name: [quality[name] for quality in each] for name in _FIGURES}
    whole = {name: [float(v) for v in found if v is not None] for name, found in values.items()}
    outcomes = Counter(row.outcome for row in ways[0].rows)
    return {
        "name": ways[0].name,
        "settings": {key: value for key, value in ways[0].settings.items() if value is not None},
        "seeds": [way.seed for way in ways],
        "pseudo_labels": len(ways[0].rows),
        "mean": {name: statistics.mean(found) if found else None for name, found in whole.items()},
        "deviation": {name: statistics.stdev(found) if len(found) > 1 else None for name, found in whole.items()},
        "outcomes": {name: outcomes[name] for name in OUTCOMES},
        "seconds_per_image": statistics.median(value for way in ways for value in way.seconds),
    }


def as_table(found: Mapping[str, Any]) -> str:
    """The rows as a Markdown table, figures in percent."""
    lines = [
        "| prompt | precision | recall | right class (CA) | mean IoU (SQ) | SAM's mask taken | ms an image |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in found["rows"]:
        order = ("matched_share", "found_share", "class_accuracy", "segmentation_quality")
        cells = [_percent(row["mean"][name], row["deviation"][name]) for name in order]
        taken = 100 * row["outcomes"]["matched"] / max(row["pseudo_labels"], 1)
        cells += [f"{taken:.0f}", f"{1000 * row['seconds_per_image']:.0f}"]
        lines.append(f"| {row['name']} | {' | '.join(cells)} |")
    shared = found["seconds_per_image"]
    return "\n".join(
        [*lines, "", ", ".join(f"{name}: {1000 * value:.0f} ms an image" for name, value in shared.items())]
    )


def _percent(mean: float | None, deviation: float | None) -> str:
    if mean is None:
        return "-"
    return f"{100 * mean:.1f}" + ("" if deviation is None else f" ± {100 * deviation:.1f}")


if __name__ == "__main__":
    main()
