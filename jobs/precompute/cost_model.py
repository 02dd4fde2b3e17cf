"""What ``precompute-sam`` will cost, from measured rows (jobs/precompute/stage_times.json): hours, disk, memory.

A row holds the seconds of each stage on some images. Seconds are carried over to other images and settings by what
each stage grows with: reading with the pixels; the encoder with nothing; decoding with the clicks; filtering and
encoding with the masks, and with the pixels once these are many (a megapixel doubles nothing yet: see ``_mask_cost``);
writing with the proposals. How many proposals an image has depends on the images: the row's number is taken.
"""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from pipeline.errors import InputError
from pipeline.sam.crops import crops_of
from pipeline.sam.generator_settings import GeneratorSettings

TABLE = Path(__file__).with_name("stage_times.json")


@dataclass(frozen=True)
class StageSeconds:
    """Mean seconds an image."""

    read: float
    encode_image: float
    decode_clicks: float
    filter: float
    encode_masks: float
    write: float

    @property
    def total(self) -> float:
        """All of them."""
        return float(sum(asdict(self).values()))


@dataclass(frozen=True)
class Row:
    """One measurement of ``python -m jobs.measurements.stage_table``; all figures are means over its images."""

    sam: str
    device: str
    precision: str
    threads: int
    images: int
    megapixels: float
    clicks: int
    candidates: float
    """Masks measured at full resolution."""
    proposals: float
    bytes_per_proposal: float
    """On disk."""
    stages: StageSeconds
    similarity_per_point: float
    """Seconds for a row of cosines, embedding apart."""
    peak_memory_bytes: int
    provenance: Mapping[str, Any]

    @property
    def key(self) -> tuple[str, str, str]:
        """What a configuration is matched by."""
        return self.sam, self.device, self.precision

    def text(self) -> str:
        """A small table."""
        lines = [f"{self.sam} on {self.device}, {self.precision}: {self.images} images of {self.megapixels:.2f} MP"]
        for name, value in asdict(self.stages).items():
            lines.append(f"  {name:14} {1e3 * value:9.1f} ms  {100 * value / self.stages.total:5.1f} %")
        lines.append(
            f"  {'all':14} {1e3 * self.stages.total:9.1f} ms an image, {1 / self.stages.total:.2f} images a second"
        )
        lines.append(
            f"  {self.clicks} clicks, {self.candidates:.0f} masks measured, {self.proposals:.1f} proposals of "
            f"{self.bytes_per_proposal:.0f} bytes; a row of cosines {1e3 * self.similarity_per_point:.2f} ms; "
            f"peak memory {self.peak_memory_bytes / 1e9:.1f} GB"
        )
        return "\n".join(lines)


def load_table(path: Path = TABLE) -> list[Row]:
    """The measured rows.

    Raises:
        InputError: the file is not such a table.
    """
    try:
        values = json.loads(path.read_text())
        return [Row(**{**row, "stages": StageSeconds(**row["stages"])}) for row in values]
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise InputError(
            "the table of measured stages cannot be read",
            where=path,
            got=error,
            fix="restore it from the repository, or measure again: python -m jobs.measurements.stage_table CONFIG",
        ) from error


def save_table(path: Path, rows: Sequence[Row]) -> None:
    """Write the rows, sorted."""
    ordered = sorted(rows, key=lambda row: row.key)
    partial = path.with_name(f"{path.name}.partial")
    partial.write_text(json.dumps([_rounded(asdict(row)) for row in ordered], indent=1) + "\n")
    partial.replace(path)


def _rounded(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _rounded(each) for key, each in value.items()}
    return float(f"{value:.4g}") if isinstance(value, float) else value


@dataclass(frozen=True)
class Estimate:
    """Of one kind of artefact."""

    seconds: float
    """On one worker; NaN where nothing was measured."""
    num_bytes: float
    """On disk."""


def find_row(sam: str, device: str, precision: str, table: Sequence[Row], *, gpu: str | None = None) -> Row | None:
    """The row that was measured with this SAM on this kind of device, if there is one.

    ``gpu``, the name of a GPU or a part of it, stands for ``device`` where the GPU is in another machine.
    """
    if gpu is not None:
        alike = [row for row in table if gpu.lower() in row.device.lower()]
        return next((row for row in alike if (row.sam, row.precision) == (sam, precision)), None)
    return next((row for row in table if row.key == (sam, device_name(device), precision)), None)


def measured_so_far(table: Sequence[Row]) -> str:
    """What there are rows of, in words."""
    return ", ".join(f"{row.sam} on {row.device} in {row.precision}" for row in table) or "nothing"


def proposals_cost(row: Row, settings: GeneratorSettings, sizes_hw: Sequence[tuple[int, int]]) -> Estimate:
    """Segment everything in images of these sizes."""
    seconds, stages, masks = 0.0, row.stages, 0.0
    for size_hw in sizes_hw:
        crops = crops_of(size_hw, settings.crop_n_layers, settings.crop_overlap_ratio)
        factor = settings.crop_n_points_downscale_factor
        clicks = sum(max(1, settings.points_per_side // factor**crop.layer) ** 2 for crop in crops)
        pixels = size_hw[0] * size_hw[1] / 1e6 / row.megapixels
        share, larger = clicks / row.clicks, _mask_cost(pixels * row.megapixels) / _mask_cost(row.megapixels)
        seconds += stages.read * pixels + stages.encode_image * len(crops)
        seconds += share * ((1 + 3 * settings.use_m2m) * stages.decode_clicks + stages.filter * larger)
        seconds += stages.encode_masks * larger + stages.write
        masks += row.proposals
    return Estimate(seconds, masks * row.bytes_per_proposal)


def _mask_cost(megapixels: float) -> float:
    """How the time of a mask at full resolution grows, measured from 0.3 to 24 megapixels: 0.45 ms + 0.25 ms / MP."""
    return 0.45 + 0.25 * megapixels


def similarity_cost(
    row: Row | None, num_points: int, grid_hw: tuple[int, int], sizes_hw: Sequence[tuple[int, int]]
) -> Estimate:
    """Rows of cosines for images of these sizes; the rows hardly compress."""
    num_bytes = len(sizes_hw) * num_points * (grid_hw[0] * grid_hw[1] + 9)
    if row is None:
        return Estimate(math.nan, num_bytes)
    read = sum(size[0] * size[1] for size in sizes_hw) / 1e6 / row.megapixels * row.stages.read
    computed = len(sizes_hw) * (row.stages.encode_image + num_points * row.similarity_per_point)
    return Estimate(read + computed, num_bytes)


def device_name(device: str) -> str:
    """``cpu``, or what the GPU calls itself; ``cuda`` where there is none to ask."""
    kind = torch.device(device)
    if kind.type == "cuda" and torch.cuda.is_available():
        return torch.cuda.get_device_name(kind)
    return kind.type
