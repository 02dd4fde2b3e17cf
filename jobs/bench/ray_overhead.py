"""Bench of the cluster: seconds an image of ``precompute-sam``'s proposals on Ray workers and in plain loops.

Run as a script it is one of the plain loops: ``python -m jobs.bench.ray_overhead FOLDER START STEP``.
"""

import os
import subprocess
import sys
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

from PIL import Image

from data_schemas.manifest import SCHEMA_VERSIONS, ImageKey, StoreIdentity
from jobs.bench.cases import Case, Timing
from jobs.cluster.isolation import THREAD_VARIABLES
from jobs.cluster.ray_runner import START, WorkerSettings, run_sharded
from jobs.config_files import load_config
from jobs.precompute.stages import ProposalStage, ShardJob, build_sam
from jobs.settings import PrecomputeSettings, SamSettings
from pipeline.images import read_image
from pipeline.sam.generator_settings import GeneratorSettings
from pipeline.sam.segment_everything import segment_everything
from pipeline.scenes.cache import draw_by_index
from pipeline.scenes.render import SceneStyle
from pipeline.stores.writer import StoreWriter

_SEED = 7_300_000
_IMAGES_PER_SHARD = 4


def ray_overhead(
    scratch: Path, *, num_images: int = 48, workers: Sequence[int] = (1, 2), rounds: int = 3
) -> list[Case]:
    """One and two workers, each with one thread, against as many plain loops that read, segment and keep nothing.

    Starting Ray and loading the SAM are left out: time runs from when every worker has published its first shard.
    """
    folder = scratch / "images"
    write_images(folder, num_images)
    cases = []
    for count in workers:
        ours: list[float] = []
        other: list[float] = []
        for number in range(rounds):
            for way, seconds in ((ray_run, ours), (plain_run, other))[:: 1 if number % 2 == 0 else -1]:
                seconds.append(way(folder, num_images, count))
        sizes = {"workers": count, "images": num_images, "image": "192 x 192", "images a shard": _IMAGES_PER_SHARD}
        name = "plain loop" if count == 1 else f"{count} plain loops side by side"
        timing = Timing(ours, other)
        cases.append(Case(lambda: None, lambda: None, name, sizes, lambda _ours, _other: None, timing=timing))
    return cases


def write_images(folder: Path, num: int) -> None:
    """Scenes as PNG files 000000.png ..."""
    folder.mkdir(parents=True)
    for index in range(num):
        image = draw_by_index(index, group="benchmark", style=SceneStyle(), seed=_SEED).image
        Image.fromarray(image).save(folder / f"{index:06}.png")


def settings_for(folder: Path, store: str, workers: int) -> PrecomputeSettings:
    """Those of configs/sam/scenes.py."""
    config = load_config(Path(__file__).parents[2] / "configs/sam/scenes.py", [])
    return PrecomputeSettings(
        images=str(folder),
        store=store,
        sam=SamSettings("scenes-nano"),
        proposals=GeneratorSettings(**config.proposals),
        images_per_shard=_IMAGES_PER_SHARD,
        workers=WorkerSettings(count=workers, cpus=1.0),
    )


def ray_run(folder: Path, num_images: int, workers: int) -> float:
    """Seconds an image once all workers are warm."""
    with TemporaryDirectory() as store:
        settings = settings_for(folder, store, workers)
        identity = StoreIdentity("proposals", SCHEMA_VERSIONS["proposals"], "0" * 64, "scenes-nano", "0" * 64)
        keys = [ImageKey(i, f"{i:06}.png", 192, 192) for i in range(num_images)]
        with StoreWriter.create_or_open(store, identity, keys, images_per_shard=_IMAGES_PER_SHARD) as writer:
            jobs = [ShardJob(task, str(folder)) for task in writer.missing().tasks]
            make = partial(ProposalStage, settings, build_sam)
            reports = run_sharded(make, jobs, address=START, workers=settings.workers)
            return warm_seconds([time.monotonic() for _ in reports], workers)


def plain_run(folder: Path, num_images: int, loops: int) -> float:
    """The same without Ray, a store or checks: processes that share nothing."""
    environment = os.environ | dict.fromkeys(THREAD_VARIABLES, "1")
    children = [
        subprocess.Popen(
            [sys.executable, "-m", "jobs.bench.ray_overhead", str(folder), str(start), str(loops)],
            stdout=subprocess.PIPE,
            text=True,
            env=environment,
            cwd=Path(__file__).parents[2],
        )
        for start in range(loops)
    ]
    answers = [child.communicate()[0] for child in children]
    if any(child.returncode for child in children):
        raise RuntimeError("a plain loop failed")
    ends = sorted(float(line) for answer in answers for line in answer.split())
    return warm_seconds(ends[_IMAGES_PER_SHARD - 1 :: _IMAGES_PER_SHARD], loops)


def warm_seconds(ends: Sequence[float], workers: int) -> float:
    """Seconds an image between the ends of shards, from the last of each worker's first one."""
    return (ends[-1] - ends[workers - 1]) / (_IMAGES_PER_SHARD * (len(ends) - workers))


def main() -> None:
    """Be a plain loop over every STEP-th image; print when each was done."""
    folder, start, step = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
    settings = settings_for(folder, "", 1)
    backend = build_sam(settings.sam)
    for path in sorted(folder.iterdir())[start::step]:
        segment_everything(backend, read_image(path), settings.proposals)
        print(time.monotonic(), flush=True)


if __name__ == "__main__":
    main()
