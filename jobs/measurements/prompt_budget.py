"""What fewer clicks and smaller SAMs cost in recall: grids of several sizes, coarse-to-fine grids, several backbones.

On scenes, or on the labelled images of a configuration of ``precompute-sam``:

    python -m jobs.measurements.prompt_budget --out docs/results/prompt_budget.json
    python -m jobs.measurements.prompt_budget --out FILE.json --config configs/sam/coco.py --grid 32 --grid 16 \
        --sam sam2.1_hiera_tiny --sam sam2.1_hiera_large [--cfg-options KEY=VALUE] [--images N] [--seeds N]
"""

import argparse
import json
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from jobs.bench.stock_generator import our_codes, synchronise
from jobs.config_files import load_config
from jobs.precompute_sam import load_inputs
from jobs.provenance import provenance
from jobs.settings import PrecomputeSettings, SamSettings, known_keys, load_settings
from pipeline.data.coco import CocoSet
from pipeline.errors import ConfigError, InputError, PipelineError
from pipeline.images import read_image, resolve_inside
from pipeline.masks import rle
from pipeline.sam.generator_settings import GeneratorSettings
from pipeline.sam.interface import ConfidentMasks, ImageEmbedding
from pipeline.sam.sam2_backend import Sam2Backend, build_backend
from pipeline.sam.segment_everything import segment_everything
from pipeline.scenes.cache import draw_by_index
from pipeline.scenes.render import SceneStyle

SEED = 7_500_000
SCENES = Path(__file__).parents[2] / "configs/sam/scenes.py"
GRIDS = ("4", "6", "8", "12", "16", "24", "32", "16:6", "16:8", "32:8", "32:16")
"""Clicks per side, and after a colon those of a coarser grid before; without one it is the reference's way."""
Sample = tuple[NDArray[np.uint8], Sequence[rle.Rle]]
"""An image [H, W, 3] uint8 RGB and the masks of its objects."""
Draw = Callable[[int, int], Iterator[Sample]]
"""(how many images, seed) -> so many, the same each time."""


class Counting(Sam2Backend):
    """Counts the clicks that it decodes."""

    clicks = 0

    def decode_confident(
        self, embedding: ImageEmbedding, points_xy: torch.Tensor, labels: torch.Tensor, threshold: float
    ) -> ConfidentMasks:
        """As its base."""
        self.clicks += len(points_xy)
        return super().decode_confident(embedding, points_xy, labels, threshold)


def counting(sam: SamSettings) -> Counting:
    """The SAM of the settings. Errors: see ``build_backend``."""
    base = build_backend(sam.name, device=sam.device, config=sam.config, sha256=sam.sha256, precision=sam.precision)
    return Counting(base.model, name=base.name, sha256=base.sha256, device=base.device, precision=base.precision)


def scenes(num: int, seed: int) -> Iterator[Sample]:
    """Scenes that are drawn for this alone."""
    for index in range(num):
        scene = draw_by_index(index, group="benchmark", style=SceneStyle(), seed=SEED + seed)
        yield scene.image, rle.encode_many(np.stack([each.mask for each in scene.instances]))


def labelled_images(coco: CocoSet) -> Draw:
    """Images of a data set that have objects, drawn anew for each seed.

    Raises:
        InputError: there is none.
    """
    ids = sorted(coco.taught_ids)
    if not ids:
        raise InputError(
            "recall needs objects to find",
            where=coco.image_root,
            got=f"{len(coco.images)} labelled images without any",
            fix="name a COCO file with annotations: --cfg-options images=FILE",
        )

    def draw(num: int, seed: int) -> Iterator[Sample]:
        for image_id in np.random.default_rng([SEED, seed]).permutation(ids)[:num].tolist():
            image = read_image(resolve_inside(coco.image_root, coco.by_id[image_id].file_name))
            yield image, [each.rle for each in coco.annotations[image_id] if not each.iscrowd]

    return draw


def measure(backend: Counting, settings: GeneratorSettings, samples: Iterator[Sample]) -> dict[str, float]:
    """Recall at IoU 0.5 and 0.75 over all objects, in percent; clicks, seconds and proposals an image."""
    best: list[float] = []
    backend.clicks, proposals, seconds, count = 0, 0, 0.0, 0
    for image, truth in samples:
        started = time.perf_counter()
        found = segment_everything(backend, image, settings)
        synchronise()
        seconds += time.perf_counter() - started
        proposals += len(found)
        count += 1
        best += rle.pairwise_iou(truth, our_codes(found)).max(axis=1, initial=0.0).tolist()
    recalls = {f"recall at {at}": 100 * float(np.mean(np.array(best) >= at)) for at in (0.5, 0.75)}
    return {
        **recalls,
        "clicks": backend.clicks / count,
        "seconds": seconds / count,
        "proposals": proposals / count,
    }


def with_grid(settings: GeneratorSettings, text: str) -> GeneratorSettings:
    """The settings with the clicks of ``16`` or ``16:8``.

    Raises:
        ConfigError: neither, or numbers that no grid has.
    """
    fine, _, coarse = text.partition(":")
    if not fine.isdecimal() or not (coarse.isdecimal() or fine == text):
        expected = "CLICKS or CLICKS:COARSE, as in 16 or 32:8"
        raise ConfigError("no such grid", where="--grid", expected=expected, got=text)
    return replace(settings, points_per_side=int(fine), coarse_points_per_side=int(coarse) if coarse else None)


def rows(
    settings: PrecomputeSettings, sams: Sequence[str], grids: Sequence[str], draw: Draw, *, images: int, seeds: int
) -> Iterator[dict[str, Any]]:
    """A row for each SAM and grid, told as it comes; figures are mean and deviation over seeds.

    Raises:
        PipelineError: a SAM, a grid or an image that cannot be used; grids are looked at before anything is computed.
    """
    choices = [with_grid(settings.proposals, grid) for grid in grids]
    for named in sams:
        name, _, architecture = named.partition("=")
        # A digest that the configuration gives is of its own SAM.
        other = replace(settings.sam, name=name, sha256=None, config=architecture or None)
        backend = counting(settings.sam if named == settings.sam.name else other)
        for choice in choices:
            runs = [measure(backend, choice, draw(images, seed)) for seed in range(seeds)]
            figures = {
                key: [float(np.mean([run[key] for run in runs])), float(np.std([run[key] for run in runs]))]
                for key in runs[0]
            }
            points, coarse = choice.points_per_side, choice.coarse_points_per_side
            told = ", ".join(f"{key} {mean:.4g} +- {deviation:.2g}" for key, (mean, deviation) in figures.items())
            after = f" after {coarse} x {coarse}" if coarse else ""
            print(f"{name}, {points} x {points}{after}: {told}", flush=True)
            yield {"sam": Path(name).name, "points_per_side": points, "coarse_points_per_side": coarse, **figures}


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure every SAM with every grid, seed by seed; write means and deviations."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])  # type: ignore[union-attr]
    parser.add_argument("--out", type=Path, required=True, help="a .json file")
    parser.add_argument("--config", type=Path, help="as of precompute-sam: its labelled images, SAM and thresholds")
    parser.add_argument("--cfg-options", action="append", default=[], metavar="KEY=VALUE")
    parser.add_argument("--sam", action="append", metavar="NAME", help="a name, a file, or FILE=ARCHITECTURE")
    parser.add_argument("--grid", action="append", metavar="N[:COARSE]", help=f"clicks per side; {', '.join(GRIDS)}")
    parser.add_argument("--images", type=int, default=20, help="of each seed")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1, help="of torch")
    args = parser.parse_args(arguments)
    if min(args.images, args.seeds, args.threads) < 1:
        parser.error("--images, --seeds and --threads must be 1 or more")
    torch.set_num_threads(args.threads)
    try:
        file = args.config or SCENES
        config: Any = load_config(file, args.cfg_options, also_known=known_keys())
        settings = load_settings(config.to_dict(), where=file)
        draw = labelled_images(load_inputs(settings)[1]) if args.config else scenes
        names, grids = args.sam or [settings.sam.name], args.grid or GRIDS
        found = list(rows(settings, names, grids, draw, images=args.images, seeds=args.seeds))
    except PipelineError as error:
        sys.exit(str(error))
    about = {key: value for key, value in provenance().items() if key != "command"}
    result = {
        "images": str(settings.images) if args.config else "scenes",
        "images of each seed": args.images,
        "seeds": args.seeds,
        "mean and deviation over seeds": found,
        **about,
        "threads": args.threads,
    }
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
