"""What the networks of several runs find in the same evaluation images, side by side: S4M's figures 5 and A.3.

    python -m jobs.measurements.predictions docs/pictures/s4m_fig5.png \
        "labels only=RUN_DIR" "Guided Distillation=RUN_DIR" "S4M=RUN_DIR"

A run directory is one of train-teacher, train-student, ``demo`` or ``ablate`` (``ablation/runs/``). Of a student the
network is shown that its training validates. Images are not chosen by eye: they are taken evenly from the evaluation
set.
"""

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from jobs.measurements.figure_pages import Panel, Pixels, outlined, page, save
from jobs.measurements.finished_runs import Run, refuse_other_images
from jobs.networks import build_transforms, load_network, pack, validated
from pipeline.errors import ConfigError, PipelineError
from pipeline.evaluation.pseudo_label_quality import quality_of_image
from pipeline.masks.overlap import pairwise_iou

SIDE = 216
"""Longest side of a panel, in pixels."""


@dataclass(frozen=True)
class Instances:
    """Objects of one image."""

    masks: NDArray[np.bool_]
    """[N, H, W] canonical."""
    labels: NDArray[np.int64]
    """[N]."""


def compare(runs: Sequence[Run], *, num_images: int, min_score: float) -> Pixels:
    """Ground truth and every run's detections, a row for each image.

    Args:
        runs: Trained for the same classes and validated on the same images.
        num_images: Taken evenly from the first run's evaluation set.
        min_score: Detections with a lower score are not shown.

    Returns:
        [H, W, 3] uint8 RGB.

    Raises:
        ConfigError: another evaluation set, or too few images.
    """
    dataset = runs[0].evaluation_images()
    refuse_other_images(runs, dataset)
    if not 1 <= num_images <= len(dataset):
        raise ConfigError("how many images?", where="--images", expected=f"1 to {len(dataset)}", got=num_images)
    chosen = np.linspace(0, len(dataset) - 1, num_images).round().astype(int).tolist()
    records = [dataset.record(index) for index in chosen]
    truths = [Instances(each["gt_masks"].masks.astype(bool), each["gt_bboxes_labels"]) for each in records]
    columns: list[list[Panel]] = [
        [
            (_drawn(each["img"], truth), f"{len(truth.labels)} objects")
            for each, truth in zip(records, truths, strict=True)
        ]
    ]
    for run in runs:
        found = _detections(run, records, min_score=min_score)
        columns.append(
            [
                (_drawn(each["img"], seen), _score(seen, truth))
                for each, seen, truth in zip(records, found, truths, strict=True)
            ]
        )
    note = (
        f"Detections with a score of at least {min_score:g} at the last checkpoint; outlines have the colour of the "
        "class. Found: an object that a detection of its class overlaps by more than half (IoU), one to one; wrong: "
        "detections that find none. Images taken evenly from the evaluation set."
    )
    rows = [list(row) for row in zip(*columns, strict=True)]
    return page(("ground truth", *(run.name for run in runs)), rows, note)


def _detections(run: Run, records: Sequence[dict[str, Any]], *, min_score: float) -> list[Instances]:
    """mmdet's detections in each record's image."""
    network = load_network(run.config, run.checkpoint, which=validated(run.config))
    ready = build_transforms(run.config)
    return [detect(network, ready, each["img"], min_score=min_score) for each in records]


@torch.no_grad()
def detect(network: Any, ready: Any, image: Pixels, *, min_score: float) -> Instances:
    """mmdet's detections in an image [H, W, 3] uint8 RGB; those below ``min_score`` and empty masks are left out."""
    batch = network.data_preprocessor({k: [v] for k, v in pack(ready, image, image_id=0).items()}, False)
    (sample,) = network.predict(batch["inputs"], batch["data_samples"])
    found = sample.pred_instances
    masks = found.masks.cpu().numpy().astype(bool)
    kept = (found.scores.cpu().numpy() >= min_score) & masks.any(axis=(1, 2))
    return Instances(masks[kept], found.labels.cpu().numpy()[kept])


def _drawn(image: Pixels, objects: Instances) -> Pixels:
    return outlined(image, objects.masks, objects.labels, side=SIDE)


def _score(seen: Instances, truth: Instances) -> str:
    """How many objects are found, and how many detections find none."""
    iou = pairwise_iou(seen.masks, truth.masks) * (seen.labels[:, None] == truth.labels[None])
    found = quality_of_image(iou, seen.labels, truth.labels).num_matched
    return f"{found} of {len(truth.labels)} found, {len(seen.labels) - found} wrong"


def main() -> None:
    """Draw a page and write it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])  # type: ignore[union-attr]
    parser.add_argument("out", type=Path, metavar="OUT.png")
    parser.add_argument("runs", nargs="+", metavar="NAME=RUN_DIR", help="a column; the name is its title")
    parser.add_argument("--images", type=int, default=4, help="rows of the page (%(default)s)")
    parser.add_argument("--min-score", type=float, default=0.5, help="of a detection (%(default)s)")
    args = parser.parse_args()
    torch.set_num_threads(1)
    try:
        runs = [Run.parse(argument) for argument in args.runs]
        save(compare(runs, num_images=args.images, min_score=args.min_score), args.out)
    except PipelineError as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main()
