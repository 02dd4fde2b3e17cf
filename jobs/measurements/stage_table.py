"""Where the time of ``precompute-sam`` goes, stage by stage, on some images of a configuration: a row of the costs.

    python -m jobs.measurements.stage_table configs/sam/scenes.py --limit 12 [--cfg-options KEY=VALUE] [--out FILE]

``precompute-sam --dry-run`` estimates from the row of the same SAM and device (jobs/precompute/cost_model.py).
"""

import argparse
import json
import resource
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch

from data_schemas.manifest import SCHEMA_VERSIONS, ImageKey, StoreIdentity
from data_schemas.proposals import Proposal, proposal_order
from jobs.bench.stock_generator import synchronise
from jobs.config_files import load_config
from jobs.precompute.cost_model import TABLE, Row, StageSeconds, device_name, load_table, save_table
from jobs.precompute.stages import build_sam
from jobs.precompute_sam import load_inputs
from jobs.provenance import provenance
from jobs.settings import PrecomputeSettings, known_keys, load_settings
from jobs.store_checks import image_keys
from pipeline.errors import PipelineError
from pipeline.images import read_image, resolve_inside
from pipeline.sam.crops import crops_of
from pipeline.sam.decoder_features import similarity_targets
from pipeline.sam.full_resolution import FullResolution, Measures
from pipeline.sam.generator_settings import GeneratorSettings
from pipeline.sam.interface import SamBackend
from pipeline.sam.segment_everything import Candidates, decode_grid, distinct, encode, keep_stable, point_grid
from pipeline.stores.proposal_store import commit_proposals
from pipeline.stores.writer import StoreWriter

_SIMILARITY_POINTS = 64


class Clock:
    """Seconds by stage."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Count what the block takes; a GPU's work is waited for."""
        synchronise()
        started = time.perf_counter()
        yield
        synchronise()
        self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - started


def measure(settings: PrecomputeSettings, *, limit: int) -> Row:
    """Do what the proposal stage does on ``limit`` images, each stage by itself, and the rows of some points.

    Crops and masks given back to the decoder are left out: they repeat the same stages.

    Raises:
        PipelineError: as ``precompute-sam``.
    """
    coco, _ = load_inputs(settings)
    step = max(1, len(coco.images) // limit)
    keys = image_keys(coco.images[::step][:limit])
    backend = build_sam(settings.sam)
    clock, found = Clock(), {}
    candidates = 0
    for number, key in enumerate([keys[0], *keys]):
        if number == 1:  # the first one warmed up what has to be warmed up
            clock, candidates = Clock(), 0
        with clock.stage("read"):
            image = read_image(resolve_inside(str(coco.image_root.absolute()), key.file_name))
        proposals, count = segment_in_stages(backend, image, settings.proposals, clock)
        found[key.image_id] = proposals
        candidates += count
        with clock.stage("similarity"):
            embedding = backend.embed([image])[0]
            points = (np.random.default_rng(0).random((_SIMILARITY_POINTS, 2)) * image.shape[1::-1]).astype(np.float32)
            similarity_targets(backend, embedding, points, np.ones(len(points), np.uint8))
    for name in ("first write", "write"):  # the first one imports and opens what later ones find ready
        with TemporaryDirectory() as scratch, clock.stage(name):
            size = write(scratch, keys, found)
    clock.seconds.pop("first write")
    num, masks = len(keys), sum(map(len, found.values()))
    seconds = {name: value / num for name, value in clock.seconds.items()}
    similarity = max(0.0, seconds.pop("similarity") - seconds["encode_image"]) / _SIMILARITY_POINTS
    return Row(
        sam=backend.name,
        device=device_name(settings.sam.device),
        precision=settings.sam.precision,
        threads=torch.get_num_threads(),
        images=num,
        megapixels=float(np.mean([key.height * key.width for key in keys])) / 1e6,
        clicks=settings.proposals.points_per_side**2,
        candidates=candidates / num,
        proposals=masks / num,
        bytes_per_proposal=size / max(1, masks),
        stages=StageSeconds(**seconds),
        similarity_per_point=similarity,
        peak_memory_bytes=peak_memory(),
        provenance={key: value for key, value in provenance().items() if key != "command"},
    )


def write(store: str, keys: Sequence[ImageKey], found: Mapping[int, Sequence[Proposal]]) -> int:
    """Publish one shard of all images; bytes of its data."""
    identity = StoreIdentity("proposals", SCHEMA_VERSIONS["proposals"], "0" * 64, "measured", "0" * 64)
    with StoreWriter.create_or_open(store, identity, keys, images_per_shard=len(keys)) as writer:
        (task,) = writer.missing().tasks
        commit_proposals(task, found)
    return sum(path.stat().st_size for path in Path(store).rglob("*.parquet") if path.parent.name == "proposals")


def segment_in_stages(
    backend: SamBackend, image: np.ndarray, settings: GeneratorSettings, clock: Clock
) -> tuple[list[Proposal], int]:
    """The proposals of the whole image and how many masks were measured; the same functions as the generator's."""
    with clock.stage("encode_image"):
        embedding = backend.embed([image])[0]
    (crop,) = crops_of(image.shape[:2], 0, 0.0)
    plain = replace(settings, use_m2m=False)
    points = point_grid(plain.points_per_side, embedding.size_hw, backend.input_hw)
    parts, count = decode_grid(backend, embedding, points, plain), 0
    kept: list[tuple[Candidates, Measures]] = []
    while True:
        with clock.stage("decode_clicks"):
            part = next(parts, None)
        if part is None:
            break
        count += len(part)
        with clock.stage("filter"):
            full = FullResolution.of(part.logits, embedding.size_hw)
            kept.append(keep_stable(full, part, crop, plain))
    with clock.stage("filter"):
        candidates, measures = Candidates.joined([c for c, _ in kept]), Measures.joined([m for _, m in kept])
        keep = distinct(measures.boxes_xyxy, candidates.predicted_iou, settings.box_nms_threshold)
    with clock.stage("encode_masks"):
        proposals = sorted(encode(full, candidates[keep], measures[keep], crop), key=proposal_order)
    return proposals[: settings.max_proposals], count


def peak_memory() -> int:
    """Bytes: of the GPU where one is used, otherwise of this process."""
    if torch.cuda.is_available() and torch.cuda.max_memory_allocated():
        return int(torch.cuda.max_memory_allocated())
    return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, print, put the row into the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])  # type: ignore[union-attr]
    parser.add_argument("config", type=Path, help="as of precompute-sam")
    parser.add_argument("--limit", type=int, default=12, help="images")
    parser.add_argument("--cfg-options", action="append", default=[], metavar="KEY=VALUE")
    parser.add_argument("--threads", type=int, default=1, help="of torch")
    parser.add_argument(
        "--out", type=Path, default=TABLE, help="the table; a row of the same SAM, device, precision goes"
    )
    args = parser.parse_args(arguments)
    if args.limit < 1 or args.threads < 1:
        parser.error("--limit and --threads must be 1 or more")
    torch.set_num_threads(args.threads)
    try:
        config: Any = load_config(args.config, args.cfg_options, also_known=known_keys())
        table = load_table(args.out) if args.out.exists() else []
        row = measure(load_settings(config.to_dict(), where=args.config), limit=args.limit)
    except PipelineError as error:
        sys.exit(str(error))
    print(row.text())
    save_table(args.out, [*[each for each in table if each.key != row.key], row])
    print(json.dumps({"table": str(args.out), "rows": len(table)}))


if __name__ == "__main__":
    main()
