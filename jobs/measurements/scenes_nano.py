"""Measure the embedded SAM on scenes it has not seen: ``python -m jobs.measurements.scenes_nano --out FILE.json``.

Clicks (mean IoU from one and three random clicks, error and bias of the predicted IoU), and the proposal library of
configs/sam/scenes.py (recall at IoU 0.5 and 0.75, proposals and seconds an image), on several seeds.
"""

import argparse
import statistics
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from jobs.config_files import load_config
from jobs.provenance import provenance
from pipeline.data.coco import write_json
from pipeline.evaluation.library_recall import LibraryRecall, library_recall
from pipeline.masks import rle
from pipeline.sam.generator_settings import GeneratorSettings
from pipeline.sam.nano_training import click_quality
from pipeline.sam.sam2_backend import Sam2Backend, build_backend
from pipeline.sam.segment_everything import segment_everything
from pipeline.scenes.cache import SceneArrays, draw_arrays
from pipeline.scenes.render import SceneStyle

FIRST_SEED = 7_100_000
"""Neither the benchmark's (below 5,000,000) nor the trainings'."""


def main() -> None:
    """Parse the command line, measure every seed, write the file, print the means."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--scenes", type=int, default=30, help="for each seed")
    parser.add_argument("--sam", default="scenes-nano", help="an embedded name or a local checkpoint")
    parser.add_argument("--cfg-options", action="append", default=[], metavar="KEY=VALUE", help="of the SAM config")
    args = parser.parse_args()
    config = load_config(Path(__file__).parents[2] / "configs/sam/scenes.py", args.cfg_options)
    settings = GeneratorSettings(**config.proposals)
    backend = build_backend(args.sam)
    rows = [measure(backend, FIRST_SEED + k, args.scenes, settings) for k in range(args.seeds)]
    names = [name for name in rows[0] if name != "seed"]
    means = {name: round(statistics.fmean(row[name] for row in rows), 4) for name in names}
    spread = {name: round(statistics.pstdev([row[name] for row in rows]), 4) for name in names}
    result = {
        "sam": backend.name,
        "sha256": backend.sha256,
        "settings": dict(config.proposals),
        "threads": torch.get_num_threads(),
        "machine": provenance(),
        "mean": means,
        "deviation": spread,
        "seeds": rows,
    }
    write_json(result, args.out)
    for name in names:
        print(f"{name:>20}: {means[name]:.4f} (deviation over seeds {spread[name]:.4f})")


def measure(backend: Sam2Backend, seed: int, num: int, settings: GeneratorSettings) -> dict[str, Any]:
    """All figures on ``num`` benchmark-style scenes of one seed."""
    scenes = draw_arrays(num, group="benchmark", style=SceneStyle(), seed=seed)
    clicks = click_quality(backend.model, scenes, seed=seed)
    return {"seed": seed, **clicks, **library_quality(backend, scenes, settings)}


def library_quality(backend: Sam2Backend, scenes: SceneArrays, settings: GeneratorSettings) -> dict[str, float]:
    """Recall of the instances by the proposals, proposals and seconds per image, and how good the proposals are."""
    recall, seconds = LibraryRecall((), ()), []
    for image, owner in zip(scenes.images, scenes.owners, strict=True):
        started = time.perf_counter()
        proposals = segment_everything(backend, image, settings)
        seconds.append(time.perf_counter() - started)
        truth = rle.encode_many(np.stack([owner == k + 1 for k in range(int(owner.max()))]))
        recall += library_recall(truth, [rle.of_proposal(p) for p in proposals])
    return {
        "recall_50": recall.at(0.5) or 0.0,
        "recall_75": recall.at(0.75) or 0.0,
        "proposals_per_image": len(recall.best_of_proposals) / len(seconds),
        "proposals_on_objects": recall.proposals_on_objects or 0.0,
        "seconds_per_image": statistics.median(seconds),
    }


if __name__ == "__main__":
    main()
