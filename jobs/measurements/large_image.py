"""How much more memory an image of 24 megapixels takes than a small one, each time in a process of its own.

python -m jobs.measurements.large_image --out docs/results/large_image.json
"""

import argparse
import json
import multiprocessing
import resource
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch

from jobs.provenance import provenance
from pipeline.sam.generator_settings import GeneratorSettings
from pipeline.sam.sam2_backend import build_backend
from pipeline.sam.segment_everything import segment_everything

CAP_MB = 600
"""What the generator may take more for 6000 x 4000 pixels than for a small image; a test holds it to that."""
_SETTINGS = GeneratorSettings(points_per_side=16, pred_iou_threshold=0.2, stability_score_threshold=0.2)
_BLOCKS_HW = (12, 18)
_SMALL, _LARGE = 16, 333
"""Pixels of a block's side."""


@dataclass(frozen=True)
class Peak:
    """The most memory that a process had taken, MB, after a small image and then after a large one."""

    small: int
    large: int
    masks: int
    """Of the large image."""

    @property
    def more(self) -> int:
        """What the large image took beyond the small one."""
        return self.large - self.small


def measure(runs: int) -> list[Peak]:
    """Segment both images, once in each of so many fresh processes: a process never gives its peak back."""
    fresh = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=fresh, max_tasks_per_child=1) as pool:
        return list(pool.map(_once, range(runs)))


def _once(seed: int) -> Peak:
    torch.set_num_threads(1)
    backend = build_backend("scenes-nano")
    blocks = np.random.default_rng(seed).integers(0, 256, (*_BLOCKS_HW, 3), np.uint8)
    peaks, masks = [], 0
    for side in (_SMALL, _LARGE):
        masks = len(segment_everything(backend, np.kron(blocks, np.ones((side, side, 1), np.uint8)), _SETTINGS))
        peaks.append(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024)
    return Peak(peaks[0], peaks[1], masks)


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])  # type: ignore[union-attr]
    parser.add_argument("--out", type=Path, required=True, help="a .json file")
    parser.add_argument("--runs", type=int, default=5, help="processes")
    args = parser.parse_args(arguments)
    if args.runs < 1:
        parser.error("--runs must be 1 or more")
    peaks = measure(args.runs)
    more = sorted(peak.more for peak in peaks)
    height, width = (_LARGE * blocks for blocks in _BLOCKS_HW)
    print(f"{width} x {height}: {more[0]} to {more[-1]} MB more than a small image, median {more[len(more) // 2]}")
    result = {
        "what": "peak memory of a process in MB, after a small image and then a large one of the same blocks",
        "large image, pixels": [width, height],
        "MB more": {"lowest": more[0], "median": more[len(more) // 2], "highest": more[-1], "cap": CAP_MB},
        "runs": [asdict(peak) for peak in peaks],
        **{name: value for name, value in provenance().items() if name != "command"},
        "threads": 1,
    }
    args.out.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
