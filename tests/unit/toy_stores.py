"""Small stores with known content, for the tests of the stores."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from data_schemas.manifest import SCHEMA_VERSIONS, ImageKey, ImageOutcome, ShardRecord, StoreIdentity
from data_schemas.proposals import Proposal
from data_schemas.similarity import SimilarityLayout, SimilarityTargets
from pipeline.stores.proposal_store import commit_proposals
from pipeline.stores.shards import ShardTask
from pipeline.stores.similarity_store import commit_similarity
from pipeline.stores.writer import StoreWriter

LAYOUT = SimilarityLayout(num_points=8, grid_hw=(6, 5), rows_per_chunk=4)
IMAGES = tuple(ImageKey(image_id, f"folder/{image_id:03d}.jpg", 40, 30 + image_id) for image_id in range(3, 17, 2))
"""Seven images, ids 3, 5, ... 15: with three per shard, the last shard has one."""
BAD_IMAGE = 9
EMPTY_IMAGE = 5


def make_identity(kind: str = "proposals", **changes: object) -> StoreIdentity:
    values = {
        "kind": kind,
        "schema_version": SCHEMA_VERSIONS[kind],
        "dataset_fingerprint": "d" * 64,
        "sam_name": "scenes-nano",
        "sam_sha256": "a" * 64,
        "settings": {"points_per_side": 16, "box_nms_threshold": 0.7},
    }
    return StoreIdentity(**{**values, **changes})


def make_proposals(image: ImageKey, num: int | None = None) -> list[Proposal]:
    """In no order; scores repeat, so that area and RLE have to decide."""
    rng = np.random.default_rng([7, image.image_id])
    num = int(rng.integers(1, 9)) if num is None else num
    return [
        Proposal(
            rle_counts="".join(chr(48 + c) for c in rng.integers(0, 64, rng.integers(4, 200))),
            height=image.height,
            width=image.width,
            area=int(rng.integers(0, 5)) * 100,
            bbox_xywh=tuple(float(v) for v in rng.integers(0, 30, 4)),
            predicted_iou=float(np.float32(rng.choice([0.8, 0.9, 0.95]))),
            stability_score=float(np.float32(rng.random())),
            point_xy=tuple(float(np.float32(v)) for v in rng.random(2) * 30),
        )
        for _ in range(num)
    ]


def make_targets(image: ImageKey, layout: SimilarityLayout = LAYOUT) -> SimilarityTargets:
    rng = np.random.default_rng([8, image.image_id])
    kind = (np.arange(layout.num_points) >= layout.num_points // 2).astype(np.uint8)
    return SimilarityTargets(
        points_xy=(rng.random((layout.num_points, 2)) * [image.width, image.height]).astype(np.float32),
        point_kind=kind,
        similarity=rng.uniform(-1, 1, (layout.num_points, *layout.grid_hw)).astype(np.float32),
    )


def open_writer(uri: str | Path, kind: str = "proposals", **changes: object) -> StoreWriter:
    """``changes`` replace arguments of ``create_or_open``."""
    arguments = {
        "identity": make_identity(kind),
        "images": IMAGES,
        "images_per_shard": 3,
        "layout": LAYOUT if kind == "similarity" else None,
        **changes,
    }
    return StoreWriter.create_or_open(uri, **arguments)


def commit(task: ShardTask) -> ShardRecord:
    """What a worker would do: one image is bad, one has no proposals."""
    keys = {image.image_id: image for image in task.plan.images}
    bad = (
        [ImageOutcome.quarantined(BAD_IMAGE, stage="decode", reason="truncated", retries=2)]
        if BAD_IMAGE in keys
        else []
    )
    good: Mapping[int, ImageKey] = {i: key for i, key in keys.items() if i != BAD_IMAGE}
    if task.kind == "similarity":
        return commit_similarity(task, {i: make_targets(key) for i, key in good.items()}, bad)
    found = {i: [] if i == EMPTY_IMAGE else make_proposals(key) for i, key in good.items()}
    return commit_proposals(task, found, bad)


def fill(uri: str | Path, kind: str = "proposals", **changes: object) -> str:
    """Do all that is missing; the summary of what that was."""
    with open_writer(uri, kind, **changes) as writer:
        work = writer.missing()
        for task in work.tasks:
            commit(task)
        return work.summary()


def contents(root: Path) -> dict[str, bytes]:
    """Every file but the locks, which an interrupted job leaves behind and the next one takes over."""
    files = [path for path in root.rglob("*") if path.is_file() and not path.name.startswith(".")]
    return {path.relative_to(root).as_posix(): path.read_bytes() for path in files}
