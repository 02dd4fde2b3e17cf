"""Where the time of segment everything goes, in the stock generator and here: figures and a picture.

python -m jobs.measurements.generator_profile --out docs/results/generator_stages.json --picture FILE.png

On images of yours: ``--config configs/sam/nuclei.py --images DIR [DIR ...] --limit 4``; a pair of bars for each folder,
seconds an image.
"""

import argparse
import json
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from numpy.typing import NDArray

from jobs.bench.generators import scene
from jobs.bench.stock_generator import stage_times, stock_generator
from jobs.config_files import load_config
from jobs.measurements.stage_table import Clock, segment_in_stages
from jobs.provenance import provenance
from pipeline.data.coco import load_images
from pipeline.errors import InputError
from pipeline.images import read_image
from pipeline.sam.generator_settings import GeneratorSettings
from pipeline.sam.interface import SamBackend
from pipeline.sam.sam2_backend import Sam2Backend, build_backend

STAGES = {
    "encode image": ("encode_image", "encode"),
    "decode clicks": ("decode_clicks", "decode"),
    "to full resolution, filter": ("filter", "upsample", "filter"),
    "run-length encode": ("encode_masks", "rle"),
    "other": ("other",),
}
"""What is shown -> our stages and the stock one's that it sums."""


def profile(backend: Sam2Backend, image: NDArray[Any], settings: GeneratorSettings, *, repeats: int) -> dict[str, Any]:
    """Seconds by stage of both ways, means of ``repeats`` after one that is not counted."""
    ours, stock = dict.fromkeys(STAGES, 0.0), dict.fromkeys(STAGES, 0.0)
    for number in range(repeats + 1):
        for totals, one in ((ours, _ours(backend, image, settings)), (stock, _stock(backend, image, settings))):
            for name, parts in STAGES.items():
                totals[name] += sum(one.get(part, 0.0) for part in parts) / repeats if number else 0.0
    return {"image": f"{image.shape[0]} x {image.shape[1]}", "ours": ours, "stock": stock}


def profile_many(
    backend: Sam2Backend, images: Sequence[NDArray[Any]], settings: GeneratorSettings, *, name: str, repeats: int
) -> dict[str, Any]:
    """Means over images of what :func:`profile` gives; ``name`` says of which."""
    each = [profile(backend, image, settings, repeats=repeats) for image in images]
    megapixels = sum(image.shape[0] * image.shape[1] for image in images) / 1e6 / len(images)
    means = {
        way: {stage: sum(one[way][stage] for one in each) / len(each) for stage in STAGES} for way in ("ours", "stock")
    }
    return {"image": f"{len(images)} images of {name}, {megapixels:.2f} megapixels each on average", **means}


def first_images(folder: Path, limit: int) -> list[NDArray[Any]]:
    """The first images of a folder by name, RGB [H, W, 3] uint8.

    Raises:
        InputError: no image that can be read.
    """
    coco = load_images(folder, folder)
    if not coco.images:
        raise InputError("no images", where=folder, expected="image files", got="none")
    return [read_image(coco.path_of(image)) for image in coco.images[:limit]]


def _ours(backend: SamBackend, image: NDArray[Any], settings: GeneratorSettings) -> dict[str, float]:
    clock, started = Clock(), time.perf_counter()
    segment_in_stages(backend, image, settings, clock)
    return clock.seconds | {"other": time.perf_counter() - started - sum(clock.seconds.values())}


def _stock(backend: Sam2Backend, image: NDArray[Any], settings: GeneratorSettings) -> dict[str, float]:
    generator = stock_generator(backend.model, settings)
    with stage_times(generator) as seconds:
        started = time.perf_counter()
        generator.generate(image)
        whole = time.perf_counter() - started
    return seconds | {"other": whole - sum(seconds.values())}


def draw(rows: Sequence[Mapping[str, Any]], out: Path) -> None:
    """Two bars for each image size, each of its own sort's stages; seconds on a logarithmic axis would hide shares."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(len(rows), 1, figsize=(9, 1.9 * len(rows)), constrained_layout=True)
    colours = ["#4477aa", "#66ccee", "#ee6677", "#ccbb44", "#bbbbbb"]
    for axis, row in zip([axes] if len(rows) == 1 else axes, rows, strict=True):
        for height, way in ((1, "stock"), (0, "ours")):
            left = 0.0
            for (name, seconds), colour in zip(row[way].items(), colours, strict=True):
                axis.barh(height, seconds, left=left, color=colour, label=name if way == "stock" else None)
                left += seconds
            axis.text(left, height, f"  {left:.2f} s", va="center")
        axis.set_yticks([0, 1], ["here", "stock"])
        axis.set_title(
            row["image"] if "images of" in row["image"] else f"{row['image']} pixels", loc="left", fontsize=10
        )
        axis.set_xlim(0, 1.12 * max(sum(row[way].values()) for way in ("stock", "ours")))
        axis.spines[["top", "right"]].set_visible(False)
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=5, frameon=False, fontsize=9)
    axes[-1].set_xlabel("seconds an image")
    out.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(out, dpi=110)


def main() -> None:
    """Profile the embedded SAM on a scene at three sizes, or on the first images of folders."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])  # type: ignore[union-attr]
    parser.add_argument("--out", type=Path, required=True, help="a .json file")
    parser.add_argument("--picture", type=Path, required=True, help="a .png file")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--config", type=Path, default=Path(__file__).parents[2] / "configs/sam/scenes.py")
    parser.add_argument("--images", type=Path, nargs="+", help="folders; default: a scene at three sizes")
    parser.add_argument("--limit", type=int, default=4, help="images of each folder")
    args = parser.parse_args()
    torch.set_num_threads(1)
    backend = build_backend("scenes-nano")
    settings = GeneratorSettings(**load_config(args.config, []).proposals)
    if args.images:
        rows = [
            profile_many(
                backend,
                first_images(folder, args.limit),
                settings,
                name=(folder.parent if folder.name == "images" else folder).name,
                repeats=args.repeats,
            )
            for folder in args.images
        ]
    else:
        sizes = ((192, 192), (480, 640), (1080, 1920))
        rows = [profile(backend, scene(size_hw), settings, repeats=args.repeats) for size_hw in sizes]
    about = {key: value for key, value in provenance().items() if key != "command"}
    result = {"sam": "scenes-nano", "clicks": settings.points_per_side**2, "sizes": rows, **about, "threads": 1}
    args.out.write_text(json.dumps(result, indent=1) + "\n")
    draw(rows, args.picture)
    for row in rows:
        for way in ("stock", "ours"):
            told = ", ".join(f"{name} {1e3 * seconds:.0f} ms" for name, seconds in row[way].items())
            print(f"{row['image']}, {way}: {told}")


if __name__ == "__main__":
    main()
