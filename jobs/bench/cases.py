"""What a bench is made of: two ways to the same result, what they took, and synthetic things to do it on."""

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from data_schemas.manifest import SCHEMA_VERSIONS, ImageKey, StoreIdentity
from data_schemas.proposals import Proposal
from pipeline.masks import rle
from pipeline.stores.proposal_store import commit_proposals
from pipeline.stores.writer import StoreWriter


@dataclass(frozen=True)
class Timing:
    """What rounds of a case took, in seconds a call."""

    ours: Sequence[float]
    other: Sequence[float]

    @property
    def ratios(self) -> list[float]:
        """How many times longer the other way took, round by round."""
        return [other / ours for ours, other in zip(self.ours, self.other, strict=True)]

    def to_json(self) -> dict[str, Any]:
        """Medians, and the quartiles of the ratio."""
        low, middle, high = quartiles(self.ratios)
        return {
            "ours_ms": 1e3 * statistics.median(self.ours),
            "other_ms": 1e3 * statistics.median(self.other),
            "ratio": middle,
            "ratio_quartiles": [low, high],
            "rounds": len(self.ours),
        }


def quartiles(values: Sequence[float]) -> tuple[float, float, float]:
    """First quartile, median, third quartile; of a single value, that value thrice."""
    if len(values) == 1:
        return values[0], values[0], values[0]
    low, middle, high = statistics.quantiles(values, n=4, method="inclusive")
    return low, middle, high


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
    clock: Callable[[], float] = time.perf_counter
    """Seconds: of the wall, or of this process on its CPUs (``time.process_time``)."""
    timing: Timing | None = None
    """Where the case has been timed already, because a call is not what is to be compared."""


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
