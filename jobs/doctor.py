"""``doctor``: what is installed, which device, which weights, what Ray would get; and whether a store is sound."""

import hashlib
import json
import os
import platform
import socket
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Literal

from pipeline.errors import EnvironmentProblemError, StoreDamagedError

PACKAGES = (
    "s4m-pipeline",
    "torch",
    "torchvision",
    "onedl-mmengine",
    "onedl-mmcv",
    "onedl-mmdetection",
    "rf-sam-2",
    "ray",
    "zarr",
    "pyarrow",
    "numpy",
    "pillow",
    "opencv-python-headless",
    "pycocotools",
    "faster-coco-eval",
    "safetensors",
)
ASSETS = Path(__file__).parents[1] / "pipeline" / "assets"
EMBEDDED = ("scenes_nano", "scenes_base", "refer_lavt_base", "refer_rela_base")
_DASHBOARD = ("127.0.0.1", 8265)


@dataclass(frozen=True)
class Finding:
    """One line of the report."""

    level: Literal["ok", "note", "bad"]
    text: str


def run(store: str | None = None, *, repair: bool = False, assets: Path = ASSETS) -> None:
    """Print the report.

    Args:
        store: A store of which every file is to be checked.
        repair: Make the store forget its damaged shards, so that the command that made it makes them again.
        assets: Where the embedded weights lie.

    Raises:
        EnvironmentProblemError: Something that the pipeline needs is missing.
        StoreDamagedError: The store is damaged, and was not repaired.
        InputError: There is no store.
    """
    findings = [*_packages(), *_devices(), *_operators(), *_weights(assets), *_ray()]
    for finding in findings:
        print(f"{finding.level:5} {finding.text}")
    if store is not None:
        _check_store(store, repair=repair)
    bad = [finding.text for finding in findings if finding.level == "bad"]
    if bad:
        raise EnvironmentProblemError(
            f"{len(bad)} thing{'s' if len(bad) > 1 else ''} missing or wrong",
            got="; ".join(bad),
            fix="make setup; for weights, restore the file from the repository",
        )


def _packages() -> Iterator[Finding]:
    yield Finding("ok", f"Python {platform.python_version()} on {platform.platform(terse=True)}")
    for name in PACKAGES:
        try:
            yield Finding("ok", f"{name} {version(name)}")
        except PackageNotFoundError:
            yield Finding("bad", f"{name} is not installed")
    if _has("opencv-python") and _has("opencv-python-headless"):
        yield Finding("note", "opencv-python and opencv-python-headless are both there and overwrite each other")


def _has(name: str) -> bool:
    try:
        version(name)
    except PackageNotFoundError:
        return False
    return True


def _devices() -> Iterator[Finding]:
    import torch

    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    yield Finding("ok", f"{os.cpu_count()} CPU cores, {memory:.0f} GiB of memory, {torch.get_num_threads()} threads")
    for index in range(torch.cuda.device_count()):
        about = torch.cuda.get_device_properties(index)
        yield Finding("ok", f"cuda:{index} {about.name}, {about.total_memory / 2**30:.0f} GiB")
    if not torch.cuda.is_available():
        yield Finding("note", "no CUDA device: everything runs on the CPU")


def _operators() -> Iterator[Finding]:
    from pipeline.models.mmcv_ops import USES_STAND_IN

    if USES_STAND_IN:
        yield Finding("note", "mmcv has no compiled operators: its PyTorch deformable attention is used")
    else:
        yield Finding("ok", "mmcv has its compiled operators")


def _weights(assets: Path) -> Iterator[Finding]:
    """Embedded checkpoints, against the digest that their training log states."""
    for name in EMBEDDED:
        path, log = assets / f"{name}.safetensors", assets / f"{name}_log.json"
        if not path.is_file():
            yield Finding("bad", f"embedded weights {path.name} are missing")
            continue
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        stated = json.loads(log.read_text()).get("sha256") if log.is_file() else None
        if stated not in (None, digest):
            yield Finding("bad", f"embedded weights {path.name}: sha256 {digest[:12]}, its log states {stated[:12]}")
        else:
            yield Finding(
                "ok", f"embedded weights {path.name}, {path.stat().st_size / 1e6:.1f} MB, sha256 {digest[:12]}"
            )


def _ray() -> Iterator[Finding]:
    import torch

    cores, gpus = os.cpu_count() or 1, torch.cuda.device_count()
    yield Finding("ok", f"--ray-address start would give {cores} CPU and {gpus} GPU: {cores} workers of workers.cpus=1")
    if address := os.environ.get("RAY_ADDRESS"):
        yield Finding("ok", f"RAY_ADDRESS is {address}: what --ray-address auto connects to")
    # Whoever reaches a dashboard without a token may run code on the cluster.
    if os.environ.get("RAY_AUTH_MODE") != "token" and _answers(*_DASHBOARD):
        yield Finding("note", "a Ray dashboard answers here without a token; set RAY_AUTH_MODE=token on the cluster")


def _answers(host: str, port: int) -> bool:
    with socket.socket() as probe:
        probe.settimeout(0.5)
        return probe.connect_ex((host, port)) == 0


def _check_store(store: str, *, repair: bool) -> None:
    from pipeline.stores.verify import drop_damaged, verify

    damages = verify(store)
    lines = [f"{damage.file}: {damage.kind}: expected {damage.expected}, got {damage.got}" for damage in damages]
    if damages and not repair:
        raise StoreDamagedError(
            f"{len(damages)} files of the store are damaged",
            where=store,
            expected="every file as it was written",
            got="".join(f"\n    - {line}" for line in lines),
            fix=f"s4m-pipeline doctor {store} --repair, then the same {_makers(store)} again: only these shards are "
            "made anew",
        )
    if damages:
        makers, removed = _makers(store), drop_damaged(store, damages)
        lines.append(f"note  store {store}: {len(removed)} files removed; run the same {makers} again")
        print("\n".join(lines))
    else:
        print(f"ok    store {store}: every file is as it was written")
    for finding in _progress(store):
        print(f"{finding.level:5} {finding.text}")


def _makers(store: str) -> str:
    """Which commands made a store."""
    from pipeline.stores.verify import progress

    try:
        commands = sorted({f"s4m-pipeline {part.identity.command}" for part in progress(store)})
    except StoreDamagedError:
        commands = []
    return " and ".join(commands) or "command that made it"


def _progress(store: str) -> Iterator[Finding]:
    from pipeline.stores.verify import progress

    for part in progress(store):
        counts, is_done = part.counts, part.shards_done == part.shards
        text = (
            f"{part.identity.kind}: {part.shards_done} of {part.shards} shards, "
            f"{counts.images_ok} of {counts.images_planned} images, {counts.images_quarantined} set aside"
        )
        if not is_done:
            text += f"; not finished: run the same s4m-pipeline {part.identity.command} again, it does what is missing"
        yield Finding("ok" if is_done else "note", text)
        yield from (Finding("note", f"set aside: {line}") for line in part.set_aside)
