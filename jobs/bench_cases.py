"""What is timed by ``python -m jobs.bench``: for every name, cases of two ways to the same result.

Imports the libraries that users would call instead, which nothing else may.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
from numpy.typing import NDArray
from sam2.automatic_mask_generator import SAM2AutomaticMaskGenerator

from data_schemas.manifest import SCHEMA_VERSIONS, ImageKey, StoreIdentity
from data_schemas.proposals import Proposal
from jobs.config_files import load_config
from pipeline.masks import rle
from pipeline.masks.overlap import RunTable, intersections
from pipeline.sam.sam2_backend import Sam2Backend, build_backend
from pipeline.sam.segment_everything import GeneratorSettings, segment_everything
from pipeline.scenes.cache import draw_arrays
from pipeline.scenes.render import SceneStyle
from pipeline.stores.proposal_store import ProposalStore, commit_proposals
from pipeline.stores.writer import StoreWriter

SEED = 7_200_000
"""Of the scenes; neither the benchmark's nor the trainings'."""
_STRIDES = (4, 8, 16)


@dataclass(frozen=True)
class Case:
    """Two ways to one result."""

    ours: Callable[[], Any]
    other: Callable[[], Any]
    other_name: str
    sizes: Mapping[str, Any]
    check: Callable[[Any, Any], None]
    """Raises AssertionError where ours (first) and the other's result do not agree."""
    calls: int = 1
    """Of each way in a round."""


def generator_cpu_nano(_: Path) -> list[Case]:
    """Segment everything with the embedded SAM: image in, encoded masks out."""
    config = load_config(Path(__file__).parents[1] / "configs/sam/scenes.py", [])
    settings = GeneratorSettings(**config.proposals)
    backend = build_backend("scenes-nano")
    image = draw_arrays(1, group="benchmark", style=SceneStyle(), seed=SEED).images[0]
    sizes = {"image": f"{image.shape[0]} x {image.shape[1]}", "clicks": settings.points_per_side**2}
    return [
        Case(
            ours=lambda: segment_everything(backend, image, settings),
            other=partial(_stock_generator(backend, settings, points_per_batch).generate, image),
            other_name=f"SAM2AutomaticMaskGenerator, {points_per_batch} points a batch",
            sizes=sizes,
            check=_same_masks,
        )
        for points_per_batch in (64, 256)
    ]


def _stock_generator(
    backend: Sam2Backend, settings: GeneratorSettings, points_per_batch: int
) -> SAM2AutomaticMaskGenerator:
    generator = SAM2AutomaticMaskGenerator(
        backend.model,
        points_per_side=settings.points_per_side,
        points_per_batch=points_per_batch,
        pred_iou_thresh=settings.pred_iou_threshold,
        stability_score_thresh=settings.stability_score_threshold,
        stability_score_offset=settings.stability_score_offset,
        box_nms_thresh=settings.box_nms_threshold,
        output_mode="coco_rle",
    )
    # The stock predictor takes every input for 1024 pixels wide.
    generator.predictor._bb_feat_sizes = [(backend.model.image_size // stride,) * 2 for stride in _STRIDES]
    return generator


def _same_masks(ours: Sequence[Proposal], stock: Sequence[Mapping[str, Any]]) -> None:
    """As many masks, and at least 99 % of them with a twin of IoU 0.999."""
    theirs = [rle.Rle(size=each["segmentation"]["size"], counts=each["segmentation"]["counts"]) for each in stock]
    mine = [rle.Rle(size=[each.height, each.width], counts=each.rle_counts) for each in ours]
    assert len(mine) == len(theirs) > 0, f"{len(mine)} masks against {len(theirs)}"
    twins = rle.pairwise_iou(mine, theirs).max(axis=1) >= 0.999
    assert twins.mean() >= 0.99, f"{(~twins).sum()} of {len(twins)} masks differ"


def match_1x200_1080p(_: Path) -> list[Case]:
    """One teacher mask against a library of 200 at 1080 x 1920: all IoUs."""
    height, width, num = 1080, 1920, 200
    rng = np.random.default_rng(0)
    codes = rle.encode_many(np.stack([blob(rng, height, width) for _ in range(num)]))
    mask = blob(rng, height, width)
    table = RunTable.from_rles(codes, size_hw=(height, width))
    areas = np.array([rle.area(code) for code in codes])
    sizes = {"proposals": num, "image": f"{height} x {width}"}

    def ours(*, is_unpacked: bool) -> NDArray[np.float64]:
        runs = table if is_unpacked else RunTable.from_rles(codes, size_hw=(height, width))
        shared = intersections(runs, mask)
        return shared / (areas + np.count_nonzero(mask) - shared)

    def dense() -> NDArray[np.float64]:
        masks = np.stack([rle.decode(code) for code in codes])
        shared = (masks & mask).sum(axis=(1, 2))
        return np.asarray(shared / (masks | mask).sum(axis=(1, 2)))

    first = partial(ours, is_unpacked=False)
    again = partial(ours, is_unpacked=True)
    ways = {"pycocotools 1 x N": (lambda: rle.pairwise_iou([rle.encode(mask)], codes)[0], 5), "decode all": (dense, 1)}
    return [
        Case(way, other, other_name, {**sizes, "runs": runs}, np.testing.assert_allclose, calls)
        for other_name, (other, calls) in ways.items()
        for runs, way in (("unpacked in the call", first), ("unpacked before", again))
    ]


def blob(rng: np.random.Generator, height: int, width: int) -> NDArray[np.bool_]:
    """A wavy ellipse [height, width] bool, between a thousandth and a tenth of the image."""
    radius = np.sqrt(height * width * 10 ** rng.uniform(-3, -1) / np.pi)
    stretch = np.sqrt(rng.uniform(0.5, 2))
    centre = rng.uniform(0, height), rng.uniform(0, width)
    phases = rng.uniform(0, 2 * np.pi, 7)
    reach = int(3 * radius)
    top, left = max(0, int(centre[0]) - reach), max(0, int(centre[1]) - reach)
    mask = np.zeros((height, width), bool)
    window = mask[top : int(centre[0]) + reach, left : int(centre[1]) + reach]
    rows, columns = np.ogrid[: window.shape[0], : window.shape[1]]
    y = np.float32(stretch) * (rows + np.float32(top - centre[0]))
    x = np.float32(1 / stretch) * (columns + np.float32(left - centre[1]))
    angle = np.arctan2(y, x)
    edge = 1 + sum(0.3 / k * np.sin(k * angle + phase) for k, phase in enumerate(phases, start=2))
    window[:] = np.hypot(x, y) < radius * edge
    return mask


def library_read(scratch: Path) -> list[Case]:
    """The proposals of one image by id, from a library of 5,000 images, every time another image."""
    num_images, side = 5_000, 192
    store = write_library(scratch / "store", num_images=num_images, proposals_per_image=30, side=side)
    files = sorted((scratch / "store").rglob("*.parquet"))
    reader = ProposalStore.open(store)
    order = np.random.default_rng(1).permutation(num_images)
    turns = {"ours": iter(np.tile(order, 50).tolist()), "other": iter(np.tile(order, 50).tolist())}

    def table() -> list[str]:
        found = pq.read_table(files, filters=[("image_id", "=", next(turns["other"]))])
        return sorted(found.column("rle_counts").to_pylist())

    def same(mine: Sequence[Proposal], theirs: Sequence[str]) -> None:
        assert sorted(each.rle_counts for each in mine) == theirs

    sizes = {"images": num_images, "proposals an image": 30, "image": f"{side} x {side}", "files": len(files)}
    return [
        Case(lambda: reader.read(next(turns["ours"])), table, "pyarrow read_table with a filter", sizes, same, calls=5)
    ]


def write_library(uri: Path, *, num_images: int, proposals_per_image: int, side: int) -> Path:
    """A store of synthetic proposals; the images share 60 masks."""
    rng = np.random.default_rng(2)
    masks = [blob(rng, side, side) for _ in range(60)]
    codes = rle.encode_many(np.stack(masks))
    images = [ImageKey(i, f"{i:06d}.png", side, side) for i in range(num_images)]
    identity = StoreIdentity("proposals", SCHEMA_VERSIONS["proposals"], "0" * 64, "synthetic", "0" * 64)
    with StoreWriter.create_or_open(uri, identity, images, images_per_shard=256) as writer:
        for task in writer.missing().tasks:
            found = {}
            for image in task.plan.images:
                picks = rng.integers(len(masks), size=proposals_per_image)
                found[image.image_id] = [_proposal(codes[k], masks[k], float(rng.random())) for k in picks]
            commit_proposals(task, found)
    return uri


def _proposal(code: rle.Rle, mask: NDArray[np.bool_], score: float) -> Proposal:
    rows, columns = np.nonzero(mask)
    box = rle.bbox_xywh(code)
    point = (float(columns[0]), float(rows[0])) if len(rows) else (0.0, 0.0)
    height, width = mask.shape
    return Proposal(code["counts"], height, width, int(mask.sum()), box, score, 0.9, point)


BENCHES: Mapping[str, Callable[[Path], list[Case]]] = {
    "generator_cpu_nano": generator_cpu_nano,
    "match_1x200_1080p": match_1x200_1080p,
    "library_read": library_read,
}
"""By name; each builds its cases, in a folder that is deleted afterwards."""
