"""What fewer clicks cost in recall: grids of several sizes, and coarse-to-fine grids, on scenes with ground truth.

python -m jobs.measurements.prompt_budget --out docs/results/prompt_budget.json [--scenes N] [--seeds N]
"""

import argparse
import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from jobs.bench.stock_generator import our_codes
from jobs.config_files import load_config
from jobs.training.runs import provenance
from pipeline.masks import rle
from pipeline.sam.generator_settings import GeneratorSettings
from pipeline.sam.interface import ConfidentMasks, ImageEmbedding
from pipeline.sam.sam2_backend import Sam2Backend, build_backend
from pipeline.sam.segment_everything import segment_everything
from pipeline.scenes.cache import draw_by_index
from pipeline.scenes.render import SceneStyle

SEED = 7_500_000
GRIDS: Sequence[tuple[int, int | None]] = (
    (4, None),
    (6, None),
    (8, None),
    (12, None),
    (16, None),
    (24, None),
    (32, None),
    (16, 6),
    (16, 8),
    (32, 8),
    (32, 16),
)
"""points_per_side, coarse_points_per_side; the first ones are the reference's way."""


class Counting(Sam2Backend):
    """Counts the clicks that it decodes."""

    clicks = 0

    def decode_confident(
        self, embedding: ImageEmbedding, points_xy: torch.Tensor, labels: torch.Tensor, threshold: float
    ) -> ConfidentMasks:
        """As its base."""
        self.clicks += len(points_xy)
        return super().decode_confident(embedding, points_xy, labels, threshold)


def measure(backend: Counting, settings: GeneratorSettings, *, num_scenes: int, seed: int) -> dict[str, float]:
    """Recall at IoU 0.5 and 0.75 over all objects, clicks, seconds and proposals an image."""
    best: list[float] = []
    backend.clicks, proposals, seconds = 0, 0, 0.0
    for index in range(num_scenes):
        scene = draw_by_index(index, group="benchmark", style=SceneStyle(), seed=seed)
        started = time.perf_counter()
        found = segment_everything(backend, scene.image, settings)
        seconds += time.perf_counter() - started
        proposals += len(found)
        truth = rle.encode_many(np.stack([each.mask for each in scene.instances]))
        ious = rle.pairwise_iou(truth, our_codes(found))
        best += ious.max(axis=1, initial=0.0).tolist()
    recalls = {f"recall at {at}": 100 * float(np.mean(np.array(best) >= at)) for at in (0.5, 0.75)}
    return {
        **recalls,
        "clicks": backend.clicks / num_scenes,
        "seconds": seconds / num_scenes,
        "proposals": proposals / num_scenes,
    }


def main() -> None:
    """Measure every grid, seed by seed; write means and deviations."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])  # type: ignore[union-attr]
    parser.add_argument("--out", type=Path, required=True, help="a .json file")
    parser.add_argument("--scenes", type=int, default=20, help="of each seed")
    parser.add_argument("--seeds", type=int, default=3)
    args = parser.parse_args()
    torch.set_num_threads(1)
    config = load_config(Path(__file__).parents[2] / "configs/sam/scenes.py", [])
    base = build_backend("scenes-nano")
    backend = Counting(base.model, name=base.name, sha256=base.sha256)
    rows: list[dict[str, Any]] = []
    for points, coarse in GRIDS:
        changes = {"points_per_side": points, "coarse_points_per_side": coarse}
        settings = GeneratorSettings(**{**config.proposals, **changes})
        runs = [measure(backend, settings, num_scenes=args.scenes, seed=SEED + k) for k in range(args.seeds)]
        row = {
            name: [float(np.mean([run[name] for run in runs])), float(np.std([run[name] for run in runs]))]
            for name in runs[0]
        }
        rows.append({**changes, **row})
        told = ", ".join(f"{name} {mean:.4g} +- {deviation:.2g}" for name, (mean, deviation) in row.items())
        print(f"{points} x {points}{f' after {coarse} x {coarse}' if coarse else ''}: {told}", flush=True)
    about = {key: value for key, value in provenance().items() if key != "command"}
    result = {"scenes of each seed": args.scenes, "seeds": args.seeds, "mean and deviation over seeds": rows, **about}
    args.out.write_text(json.dumps({**result, "threads": 1}, indent=1) + "\n")


if __name__ == "__main__":
    main()
