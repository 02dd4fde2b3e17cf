"""Proposals for a whole image: a grid of clicks, decoded, filtered, and made distinct.

The settings mean what they mean in ``SAM2AutomaticMaskGenerator``, and so do the results, mask by mask
(tests/unit/test_segment_everything.py). The order of work differs: predicted IoU is looked at before
anything is upsampled, boxes are made distinct before anything is encoded, and full-resolution masks
exist a few at a time.
"""

import math
from dataclasses import dataclass

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torchvision.ops import batched_nms

from data_schemas.proposals import Proposal, proposal_order
from pipeline.errors import ConfigError
from pipeline.masks import rle
from pipeline.sam.interface import ImageEmbedding, SamBackend

MAX_CHUNK_BYTES = (8 * 2**20, 1024 * 2**20)
"""Memory for full-resolution masks at any time (unless a single one needs more): on a CPU little, to stay
near its caches; on CUDA much, to have few launches."""


@dataclass(frozen=True)
class GeneratorSettings:
    """What becomes a proposal. Defaults are those of the reference."""

    points_per_side: int = 32
    points_per_batch: int = 64
    """Clicks decoded together; memory only."""
    pred_iou_threshold: float = 0.8
    """Keep masks whose predicted IoU is above this; 0 or less keeps all."""
    stability_score_threshold: float = 0.95
    """Keep masks at least this stable; 0 or less keeps all."""
    stability_score_offset: float = 1.0
    """Logits are cut at plus and minus this for the stability score."""
    box_nms_threshold: float = 0.7
    """Of two masks whose boxes overlap by more than this IoU, the one with the lower score goes."""
    min_mask_region_area: int = 0
    """Fill holes and drop islands smaller than this many pixels."""
    max_proposals: int | None = None
    """Keep only the best so many."""

    def __post_init__(self) -> None:
        """Refuse values that cannot mean anything, all at once."""
        wrong = [
            f"{name} = {getattr(self, name)}"
            for name, fits in {
                "points_per_side": self.points_per_side >= 1,
                "points_per_batch": self.points_per_batch >= 1,
                "pred_iou_threshold": self.pred_iou_threshold <= 1,
                "stability_score_threshold": self.stability_score_threshold <= 1,
                "stability_score_offset": self.stability_score_offset >= 0,
                "box_nms_threshold": 0 <= self.box_nms_threshold <= 1,
                "min_mask_region_area": self.min_mask_region_area >= 0,
                "max_proposals": self.max_proposals is None or self.max_proposals >= 1,
            }.items()
            if not fits  # NaN fits nothing
        ]
        if wrong:
            raise ConfigError("proposal settings out of range", where="GeneratorSettings", got="; ".join(wrong))


@dataclass(frozen=True)
class Candidates:
    """M masks at the decoder's resolution, in the order of the grid, all on the backend's device."""

    logits: Tensor
    """[M, h, w] float32."""
    predicted_iou: Tensor
    """[M] float32."""
    points_xy: Tensor
    """[M, 2] float32 canonical pixels."""

    def __getitem__(self, keep: Tensor | slice) -> "Candidates":
        """A subset by index, bool mask or slice."""
        return Candidates(self.logits[keep], self.predicted_iou[keep], self.points_xy[keep])

    def __len__(self) -> int:
        """M."""
        return len(self.logits)


@dataclass(frozen=True)
class Measures:
    """What full resolution tells of M masks."""

    stability_score: Tensor
    """[M] float32; 0 for an empty mask."""
    boxes_xyxy: Tensor
    """[M, 4] int64, first and last column and row of the mask (both inclusive); 0 for an empty one."""
    nonempty: Tensor
    """[M] bool."""

    def __getitem__(self, keep: Tensor) -> "Measures":
        """A subset by index or by bool mask."""
        return Measures(self.stability_score[keep], self.boxes_xyxy[keep], self.nonempty[keep])


def segment_everything(
    backend: SamBackend, embedding: ImageEmbedding, settings: GeneratorSettings | None = None
) -> list[Proposal]:
    """All distinct, confident and stable masks of an image.

    Args:
        backend: a SAM.
        embedding: the image, from ``backend.embed``.
        settings: what to keep; the reference's defaults if None.

    Returns:
        Proposals in the canonical frame, in the order of :func:`proposal_order`: score falling, area
        falling, RLE bytes. An image may have none. An empty mask is never a proposal.
    """
    settings = settings or GeneratorSettings()
    points_xy = point_grid(settings.points_per_side, embedding.size_hw, backend.input_hw)
    candidates = decode_grid(backend, embedding, points_xy, settings)
    candidates, measures = keep_stable(backend, candidates, embedding.size_hw, settings)
    keep = distinct(measures.boxes_xyxy, candidates.predicted_iou, settings.box_nms_threshold)
    found = encode(backend, candidates[keep], measures[keep], embedding.size_hw, settings)
    return sorted(found, key=proposal_order)[: settings.max_proposals]


def point_grid(points_per_side: int, size_hw: tuple[int, int], input_hw: tuple[int, int]) -> Tensor:
    """Clicks at the centres of an n x n grid over the image, row by row, [n * n, 2] float32 canonical pixels.

    The reference hands these centres on as pixel indices, to which the prompt encoder adds half a pixel of
    SAM's input; the same half is added here, so that the clicks, and thus the masks, are the same.
    """
    height, width = size_hw
    centres = (np.arange(points_per_side) + 0.5) / points_per_side
    x = (centres + 0.5 / input_hw[1]) * width
    y = (centres + 0.5 / input_hw[0]) * height
    points = np.stack([np.tile(x, points_per_side), np.repeat(y, points_per_side)], axis=1)
    return torch.from_numpy(np.minimum(points, [width, height]).astype(np.float32))


def decode_grid(
    backend: SamBackend, embedding: ImageEmbedding, points_xy: Tensor, settings: GeneratorSettings
) -> Candidates:
    """Decode clicks [N, 2] in batches; of their 3 N masks keep those with a high predicted IoU, in order."""
    kept = []
    threshold = settings.pred_iou_threshold if settings.pred_iou_threshold > 0 else -math.inf
    for start in range(0, len(points_xy), settings.points_per_batch):
        points = points_xy[start : start + settings.points_per_batch]
        labels = torch.ones(len(points), 1, dtype=torch.int32)
        masks = backend.decode_confident(embedding, points[:, None], labels, threshold)
        kept.append(Candidates(masks.logits, masks.predicted_iou, points.to(masks.logits.device)[masks.prompt]))
    return Candidates(
        torch.cat([each.logits for each in kept]),
        torch.cat([each.predicted_iou for each in kept]),
        torch.cat([each.points_xy for each in kept]),
    )


def keep_stable(
    backend: SamBackend, candidates: Candidates, size_hw: tuple[int, int], settings: GeneratorSettings
) -> tuple[Candidates, Measures]:
    """Measure every candidate at full resolution; keep the stable ones that are not empty."""
    step = _masks_per_chunk(size_hw, candidates.logits.device)
    # One chunk even if there is no candidate: it says the types of the empty results.
    chunks = [
        measure(backend.upsample(candidates.logits[start : start + step], size_hw), settings.stability_score_offset)
        for start in range(0, max(1, len(candidates)), step)
    ]
    measures = Measures(
        torch.cat([each.stability_score for each in chunks]),
        torch.cat([each.boxes_xyxy for each in chunks]),
        torch.cat([each.nonempty for each in chunks]),
    )
    keep = measures.nonempty.clone()
    if settings.stability_score_threshold > 0:
        keep &= measures.stability_score >= settings.stability_score_threshold
    return candidates[keep], measures[keep]


def measure(logits: Tensor, offset: float) -> Measures:
    """Stability, boxes and emptiness of the masks ``logits > 0``; ``logits`` [M, H, W] float32.

    Stability is the IoU of the masks cut at ``offset`` and at ``-offset``; the first lies in the second.
    """
    intersection = (logits > offset).flatten(1).sum(1, dtype=torch.int32)
    union = (logits > -offset).flatten(1).sum(1, dtype=torch.int32)
    columns, rows = logits.amax(1) > 0, logits.amax(2) > 0  # [M, W], [M, H]
    return Measures((intersection / union).nan_to_num(0), boxes_of(columns, rows), rows.any(1))


def boxes_of(columns: Tensor, rows: Tensor) -> Tensor:
    """First and last occupied column and row, [M, 4] int64 as x y x y; all 0 for an empty mask.

    Args:
        columns: [M, W] bool, whether a column holds a pixel of the mask.
        rows: [M, H] bool, likewise.
    """
    first_x, first_y = columns.byte().argmax(1), rows.byte().argmax(1)
    last_x = columns.shape[1] - 1 - columns.flip(1).byte().argmax(1)
    last_y = rows.shape[1] - 1 - rows.flip(1).byte().argmax(1)
    return torch.stack([first_x, first_y, last_x, last_y], 1) * rows.any(1)[:, None]


def distinct(boxes_xyxy: Tensor, scores: Tensor, threshold: float) -> Tensor:
    """Indices of the masks that survive box NMS, best score first; of equal scores the earlier wins.

    The boxes go in with inclusive ends, as in the reference: a mask one pixel wide has a box of area 0.
    """
    keep: Tensor = batched_nms(boxes_xyxy.float(), scores, torch.zeros_like(boxes_xyxy[:, 0]), threshold)
    return keep


def encode(
    backend: SamBackend,
    candidates: Candidates,
    measures: Measures,
    size_hw: tuple[int, int],
    settings: GeneratorSettings,
) -> list[Proposal]:
    """Upsample once more, threshold, clean up if asked, and run-length encode; order of the input."""
    step = _masks_per_chunk(size_hw, candidates.logits.device)
    proposals: list[Proposal] = []
    changed: list[bool] = []
    for start in range(0, len(candidates), step):
        part = slice(start, start + step)
        masks = (backend.upsample(candidates.logits[part], size_hw) > 0).cpu().numpy()
        if settings.min_mask_region_area > 0:
            cleaned = [clean(mask, settings.min_mask_region_area) for mask in masks]
            masks = np.stack([mask for mask, _ in cleaned])
            changed += [touched for _, touched in cleaned]
        proposals += _proposals(masks, candidates[part], measures.stability_score[part])
    return _distinct_after_cleaning(proposals, changed, settings) if changed else proposals


def _distinct_after_cleaning(
    proposals: list[Proposal], changed: list[bool], settings: GeneratorSettings
) -> list[Proposal]:
    """Box NMS again: cleaning makes masks alike that were not; of two, the one that needed none is the better."""
    xywh = torch.tensor([each.bbox_xywh for each in proposals])
    boxes = torch.cat([xywh[:, :2], xywh[:, :2] + xywh[:, 2:] - 1], 1)
    keep = distinct(boxes, 1 - torch.tensor(changed).float(), settings.box_nms_threshold)
    return [proposals[i] for i in keep.tolist()]


def _proposals(masks: NDArray[np.bool_], candidates: Candidates, stability_score: Tensor) -> list[Proposal]:
    """Masks [M, H, W] on the host and what is known of them, as proposals."""
    boxes = boxes_of(torch.from_numpy(masks.any(1)), torch.from_numpy(masks.any(2)))
    columns = zip(
        rle.encode_many(masks),
        np.count_nonzero(masks, axis=(1, 2)).tolist(),
        boxes.tolist(),
        candidates.predicted_iou.tolist(),
        stability_score.tolist(),
        candidates.points_xy.tolist(),
        strict=True,
    )
    return [
        Proposal(
            rle_counts=code["counts"],
            height=masks.shape[1],
            width=masks.shape[2],
            area=area,
            # COCO counts pixels: a box as wide as its mask, one more than between inclusive ends.
            bbox_xywh=(float(x0), float(y0), float(x1 - x0 + 1), float(y1 - y0 + 1)),
            predicted_iou=predicted_iou,
            stability_score=stability,
            point_xy=(x, y),
        )
        for code, area, (x0, y0, x1, y1), predicted_iou, stability, (x, y) in columns
    ]


def clean(mask: NDArray[np.bool_], min_area: int) -> tuple[NDArray[np.bool_], bool]:
    """Fill holes, then drop islands, of fewer than ``min_area`` pixels (8-neighbours both).

    If all islands are that small the largest stays.

    Args:
        mask: [H, W] bool, not empty.
        min_area: pixels.

    Returns:
        The mask, and whether it had such a hole or island.
    """
    holes, small_holes = _regions(~mask, min_area)
    filled = mask | small_holes[holes]
    islands, small_islands = _regions(filled, min_area)
    if small_islands[1:].all():
        small_islands[1 + np.bincount(islands.ravel())[1:].argmax()] = False
        had_small = True
    else:
        had_small = bool(small_islands.any())
    return filled & ~small_islands[islands], bool(small_holes.any()) or had_small


def _regions(mask: NDArray[np.bool_], min_area: int) -> tuple[NDArray[np.int32], NDArray[np.bool_]]:
    """Labels [H, W] of the connected regions, 0 outside, and which labels are small."""
    _, labels, stats, _ = cv2.connectedComponentsWithStats(mask.astype(np.uint8), connectivity=8)
    small = np.asarray(stats[:, cv2.CC_STAT_AREA] < min_area)
    small[0] = False
    return np.asarray(labels, np.int32), small


def _masks_per_chunk(size_hw: tuple[int, int], device: torch.device) -> int:
    """How many full-resolution masks may exist at once: float32 logits and a bool mask each, at least one."""
    return max(1, MAX_CHUNK_BYTES[device.type == "cuda"] // (5 * size_hw[0] * size_hw[1]))
