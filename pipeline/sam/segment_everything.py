"""Proposals for a whole image: a grid of clicks, decoded, filtered, and made distinct.

The settings mean what they mean in ``SAM2AutomaticMaskGenerator``, and so do the results, mask by mask
(tests/unit/test_segment_everything.py). The order of work differs: predicted IoU is looked at before
anything is upsampled, boxes are made distinct before anything is encoded, and full-resolution masks
exist a few at a time.
"""

from collections.abc import Iterator
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

MAX_CHUNK_BYTES = 256 * 2**20
"""Memory for full-resolution logits at any time, unless a single mask needs more."""


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

    def __getitem__(self, keep: Tensor) -> "Candidates":
        """A subset by index or by bool mask."""
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
    areas: Tensor
    """[M] int64 pixels."""

    def __getitem__(self, keep: Tensor) -> "Measures":
        """A subset by index or by bool mask."""
        return Measures(self.stability_score[keep], self.boxes_xyxy[keep], self.areas[keep])


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
    for points in points_xy.split(settings.points_per_batch):
        masks = backend.decode_points(embedding, points[:, None], torch.ones(len(points), 1, dtype=torch.int32))
        every = Candidates(
            masks.logits.flatten(0, 1),
            masks.predicted_iou.flatten(),
            points.to(masks.logits.device).repeat_interleave(masks.logits.shape[1], 0),
        )
        confident = every.predicted_iou > settings.pred_iou_threshold
        kept.append(every[confident] if settings.pred_iou_threshold > 0 else every)
    return Candidates(
        torch.cat([each.logits for each in kept]),
        torch.cat([each.predicted_iou for each in kept]),
        torch.cat([each.points_xy for each in kept]),
    )


def keep_stable(
    backend: SamBackend, candidates: Candidates, size_hw: tuple[int, int], settings: GeneratorSettings
) -> tuple[Candidates, Measures]:
    """Measure every candidate at full resolution; keep the stable ones that are not empty."""
    chunks = [
        measure(backend.upsample(candidates.logits[chunk], size_hw), settings.stability_score_offset)
        for chunk in _chunks(len(candidates), size_hw)
    ]
    device = candidates.logits.device
    measures = Measures(
        torch.cat([torch.empty(0, device=device), *(each.stability_score for each in chunks)]),
        torch.cat([torch.empty(0, 4, dtype=torch.int64, device=device), *(each.boxes_xyxy for each in chunks)]),
        torch.cat([torch.empty(0, dtype=torch.int64, device=device), *(each.areas for each in chunks)]),
    )
    keep = measures.areas > 0
    if settings.stability_score_threshold > 0:
        keep &= measures.stability_score >= settings.stability_score_threshold
    return candidates[keep], measures[keep]


def measure(logits: Tensor, offset: float) -> Measures:
    """Stability, boxes and areas of full-resolution logits [M, H, W].

    Stability is the IoU of the masks cut at ``offset`` and at ``-offset``; the first lies in the second.
    """
    masks = logits > 0
    high = (logits > offset).sum((1, 2))
    low = (logits > -offset).sum((1, 2))
    return Measures((high / low).nan_to_num(0), boxes_of(masks), masks.sum((1, 2)))


def boxes_of(masks: Tensor) -> Tensor:
    """[M, H, W] bool to [M, 4] int64: first and last column and row that hold a pixel, x y x y; 0 if none do."""
    columns, rows = masks.any(1).byte(), masks.any(2).byte()  # [M, W], [M, H]
    first_x, first_y = columns.argmax(1), rows.argmax(1)
    last_x = columns.shape[1] - 1 - columns.flip(1).argmax(1)
    last_y = rows.shape[1] - 1 - rows.flip(1).argmax(1)
    boxes = torch.stack([first_x, first_y, last_x, last_y], 1)
    return boxes * columns.any(1)[:, None]


def distinct(boxes_xyxy: Tensor, scores: Tensor, threshold: float) -> Tensor:
    """Indices of the masks that survive box NMS, best score first; of equal scores the earlier wins.

    The boxes go in with inclusive ends, as in the reference: a mask one pixel wide has a box of area 0.
    """
    return batched_nms(boxes_xyxy.float(), scores, torch.zeros_like(boxes_xyxy[:, 0]), threshold)


def encode(
    backend: SamBackend,
    candidates: Candidates,
    measures: Measures,
    size_hw: tuple[int, int],
    settings: GeneratorSettings,
) -> list[Proposal]:
    """Upsample once more, threshold, clean up if asked, and run-length encode; order of the input."""
    proposals: list[Proposal] = []
    changed: list[bool] = []
    for chunk in _chunks(len(candidates), size_hw):
        masks = (backend.upsample(candidates.logits[chunk], size_hw) > 0).cpu().numpy()
        part, seen = candidates[_index(chunk)], measures[_index(chunk)]
        if settings.min_mask_region_area > 0:
            cleaned = [clean(mask, settings.min_mask_region_area) for mask in masks]
            masks = np.stack([mask for mask, _ in cleaned])
            changed += [touched for _, touched in cleaned]
            tensor = torch.from_numpy(masks)
            seen = Measures(seen.stability_score, boxes_of(tensor), tensor.sum((1, 2)))
        proposals += _proposals(masks, part, seen)
    if settings.min_mask_region_area > 0 and proposals:
        # Cleaning makes masks alike that were not; of two, the one that needed none is the better.
        xywh = torch.tensor([each.bbox_xywh for each in proposals])
        boxes = torch.cat([xywh[:, :2], xywh[:, :2] + xywh[:, 2:] - 1], 1)
        keep = distinct(boxes, 1 - torch.tensor(changed).float(), settings.box_nms_threshold)
        proposals = [proposals[i] for i in keep.tolist()]
    return proposals


def _proposals(masks: NDArray[np.bool_], candidates: Candidates, measures: Measures) -> list[Proposal]:
    """Masks [M, H, W] on the host and what is known of them, as proposals."""
    found = []
    columns = zip(
        rle.encode_many(masks),
        measures.areas.tolist(),
        measures.boxes_xyxy.tolist(),
        candidates.predicted_iou.tolist(),
        measures.stability_score.tolist(),
        candidates.points_xy.tolist(),
        strict=True,
    )
    for code, area, (x0, y0, x1, y1), predicted_iou, stability_score, (x, y) in columns:
        found.append(
            Proposal(
                rle_counts=code["counts"],
                height=masks.shape[1],
                width=masks.shape[2],
                area=area,
                # COCO counts pixels: a box as wide as its mask, one more than between inclusive ends.
                bbox_xywh=(float(x0), float(y0), float(x1 - x0 + 1), float(y1 - y0 + 1)),
                predicted_iou=predicted_iou,
                stability_score=stability_score,
                point_xy=(x, y),
            )
        )
    return found


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
    return labels, small


def _chunks(count: int, size_hw: tuple[int, int]) -> Iterator[slice]:
    """Slices of as many masks as fit the memory bound: float32 logits and three bool masks each."""
    step = max(1, MAX_CHUNK_BYTES // (7 * size_hw[0] * size_hw[1]))
    for start in range(0, count, step):
        yield slice(start, min(start + step, count))


def _index(chunk: slice) -> Tensor:
    return torch.arange(chunk.start, chunk.stop)
