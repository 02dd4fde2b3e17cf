"""Benches of opening a store: the time, and the resident memory that it adds to a fresh process."""

import json
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from data_schemas.manifest import SCHEMA_VERSIONS, FileEntry, ImageKey, ImageOutcome, ShardRecord, StoreIdentity
from jobs.bench.cases import Case
from pipeline.stores.consolidated import index_of_records
from pipeline.stores.files import open_files
from pipeline.stores.index import StoreIndex
from pipeline.stores.shards import data_paths, library_versions, read_manifest, record_path
from pipeline.stores.writer import StoreWriter

IMAGES_PER_SHARD = 64
_IMAGE_SIZE = 480, 640
_MEASURE = """
import json, sys, time
import numpy as np
from pipeline.stores.index import StoreIndex

def resident():
    with open("/proc/self/status") as status:
        return {line.split(":")[0]: int(line.split()[1]) for line in status if line.startswith(("VmRSS", "VmHWM"))}

before = resident()
started = time.perf_counter()
index = StoreIndex.open(sys.argv[1], "proposals")
opened = time.perf_counter()
index.find(int(sys.argv[2]))
found = time.perf_counter()
after = resident()
len(index.images)
names = resident()
ids = np.random.default_rng(0).choice(index.image_ids, 20_000).tolist()
searched = time.perf_counter()
for image_id in ids:
    index.find(image_id)
json.dump(
    {
        "open, ms": 1e3 * (opened - started),
        "first find, ms": 1e3 * (found - opened),
        "a random find, us": 1e6 * (time.perf_counter() - searched) / len(ids),
        "added memory, MB": (after["VmRSS"] - before["VmRSS"]) / 1e3,
        "peak of it, MB": (after["VmHWM"] - before["VmRSS"]) / 1e3,
        "added with the names, MB": (names["VmRSS"] - before["VmRSS"]) / 1e3,
    },
    sys.stdout,
)
"""


def store_open_1e6(scratch: Path) -> list[Case]:
    """Open a store of a million images and find one."""
    return open_cases(scratch, num_images=1_000_000)


def open_cases(scratch: Path, *, num_images: int) -> list[Case]:
    """Opening and one look-up, against a dict of what all records say.

    Args:
        scratch: Empty folder.
        num_images: Of the synthetic store; ids are 0, 3, 6, ...
    """
    store = write_records(scratch / "store", num_images=num_images)
    wanted = 3 * (num_images // 2)
    records = sorted((store / "records").iterdir())
    sizes = {"images": num_images, "shards": len(records), **measure(store, wanted), **measure_records(store)}

    def ours() -> StoreIndex:
        index = StoreIndex.open(store, "proposals")
        index.find(wanted)
        return index

    def same(mine: StoreIndex, theirs: dict[int, tuple[int, str]]) -> None:
        assert mine.image_ids == sorted(theirs)
        entries = {image_id: mine.find(image_id) for image_id in theirs}
        assert {i: (entry.outcome.rows, entry.files[0].path) for i, entry in entries.items()} == theirs

    return [Case(ours, lambda: read_records(records), "json.loads of every record, into a dict", sizes, same)]


def measure_records(store: Path) -> dict[str, float]:
    """Seconds that opening takes without the index, once."""
    files = open_files(store)
    manifest = read_manifest(files)
    assert manifest is not None
    started = time.perf_counter()
    index_of_records(files, manifest.parts["proposals"])
    return {"open without the index, s": float(f"{time.perf_counter() - started:.3g}")}


def measure(store: Path, image_id: int) -> dict[str, Any]:
    """What opening takes in a fresh process, beyond its imports; ``with the names``: the list of images read too."""
    command = [sys.executable, "-c", _MEASURE, str(store), str(image_id)]
    done = subprocess.run(command, check=True, capture_output=True, cwd=Path(__file__).parents[2])
    return {name: float(f"{value:.3g}") for name, value in json.loads(done.stdout).items()}


def read_records(paths: Sequence[Path]) -> dict[int, tuple[int, str]]:
    """Image id -> rows and data file, from plain JSON files: what one would write without an index."""
    found = {}
    for path in paths:
        record = json.loads(path.read_bytes())
        file = record["files"][0]["path"]
        found.update({outcome["image_id"]: (outcome["rows"], file) for outcome in record["outcomes"]})
    return found


def write_records(uri: Path, *, num_images: int) -> Path:
    """A store that can be opened: all but the data files, which opening does not look at.

    Manifest, list of images and index are the writer's; records are put there without its fsyncs.
    """
    height, width = _IMAGE_SIZE
    images = [ImageKey(3 * i, f"train2017/{3 * i:012d}.jpg", height, width) for i in range(num_images)]
    identity = StoreIdentity("proposals", SCHEMA_VERSIONS["proposals"], "0" * 64, "synthetic", "0" * 64)
    with StoreWriter.create_or_open(uri, identity, images, images_per_shard=IMAGES_PER_SHARD) as writer:
        (uri / "records").mkdir()
        for plan in writer.plans:
            data = plan.shard_id.encode()
            entry = FileEntry.of(data_paths("proposals", plan)[0], data, footer_bytes=8)
            outcomes = tuple(ImageOutcome(image.image_id, "ok", rows=image.image_id % 200) for image in plan.images)
            record = ShardRecord(plan.shard_id, "proposals", (entry,), outcomes, library_versions())
            (uri / record_path(plan.shard_id)).write_bytes(record.to_bytes())
    return uri
