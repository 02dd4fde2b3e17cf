"""One row of the proposal library: the Parquet schema, the frozen ``Proposal`` and the order of the rows."""

import math
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

PROPOSAL_VERSION = 2

PROPOSAL_SCHEMA = pa.schema(
    [
        pa.field("image_id", pa.int64(), nullable=False),
        pa.field("proposal_id", pa.int32(), nullable=False),
        pa.field("rle_counts", pa.string(), nullable=False),
        pa.field("height", pa.int32(), nullable=False),
        pa.field("width", pa.int32(), nullable=False),
        pa.field("area", pa.int64(), nullable=False),
        pa.field("bbox_x", pa.float32(), nullable=False),
        pa.field("bbox_y", pa.float32(), nullable=False),
        pa.field("bbox_w", pa.float32(), nullable=False),
        pa.field("bbox_h", pa.float32(), nullable=False),
        pa.field("predicted_iou", pa.float32(), nullable=False),
        pa.field("stability_score", pa.float32(), nullable=False),
        pa.field("point_x", pa.float32(), nullable=False),
        pa.field("point_y", pa.float32(), nullable=False),
    ]
)

PLAIN_COLUMNS = frozenset({"area", "bbox_x", "bbox_y", "bbox_w", "bbox_h"})
"""What training looks at for every proposal of an image: stored without compression."""


@dataclass(frozen=True, slots=True)
class Proposal:
    """One class-agnostic mask of the library, in the canonical frame of its image."""

    rle_counts: str
    """COCO compressed run lengths, column-major."""
    height: int
    width: int
    area: int
    """Foreground pixels."""
    bbox_xywh: tuple[float, float, float, float]
    """Pixels."""
    predicted_iou: float
    """SAM's own estimate of the mask's quality."""
    stability_score: float
    """IoU of the mask cut a little higher and a little lower."""
    point_xy: tuple[float, float]
    """The prompt that made it, canonical pixels."""


def proposal_order(proposal: Proposal) -> tuple[float, int, bytes, float, tuple[float, float]]:
    """Sort key of the rows of one image: score falling, area falling, RLE bytes rising.

    The score is compared as the float32 that is stored, so that sorting again what was read changes nothing.
    Stability and prompt only settle the order of identical masks found twice.
    """
    score, stability = np.float32(proposal.predicted_iou), np.float32(proposal.stability_score)
    return -float(score), -proposal.area, proposal.rle_counts.encode(), -float(stability), proposal.point_xy


def check_proposal(proposal: Proposal, *, height: int, width: int) -> None:
    """Refuse what must not reach a store.

    Args:
        proposal: The row to be.
        height: Height of its image in pixels.
        width: Width of its image in pixels.

    Raises:
        ValueError: The mask has another size than the image, no run lengths, an impossible area, or a number in the
            row is not finite.
    """
    if (proposal.height, proposal.width) != (height, width):
        raise ValueError(f"mask of {proposal.height}x{proposal.width} for an image of {height}x{width}")
    if not proposal.rle_counts or not proposal.rle_counts.isascii():
        raise ValueError(f"run lengths are empty or not ASCII: {proposal.rle_counts[:20]!r}")
    if not 0 <= proposal.area <= height * width:
        raise ValueError(f"area {proposal.area} in an image of {height * width} pixels")
    numbers = (*proposal.bbox_xywh, proposal.predicted_iou, proposal.stability_score, *proposal.point_xy)
    if len(numbers) != 8 or not all(map(math.isfinite, numbers)):
        raise ValueError(f"box, scores or point are not 8 finite numbers: {numbers}")
