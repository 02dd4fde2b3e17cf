"""Proposals for a whole image: a grid of clicks, decoded, filtered, and made distinct.

The settings mean what they mean in ``SAM2AutomaticMaskGenerator``, and so do the results, mask by mask
(tests/unit/test_segment_everything.py). The work differs: predicted IoU is looked at before masks are computed,
everything that full resolution tells comes from the outlines alone (pipeline/sam/full_resolution.py), and boxes are
made distinct before anything is encoded. No full-resolution mask is ever held, but by ``min_mask_region_area``, one at
a time.

Memory beyond the SAM's own: one batch of clicks, the logits of the masks that passed the filters (3 a click at most,
4 bytes for each of the decoder's cells), and some 30 MB; the image's size hardly matters.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torchvision.ops import batched_nms

from data_schemas.proposals import Proposal, proposal_order
from pipeline.masks import rle
from pipeline.masks.run_encoding import encode_runs
from pipeline.sam.batches import BatchSize, in_batches
from pipeline.sam.coarse_to_fine import spared
from pipeline.sam.crops import Crop, crops_of, touches_inner_edge
from pipeline.sam.full_resolution import FullResolution, Measures
from pipeline.sam.generator_settings import GeneratorSettings
from pipeline.sam.interface import ConfidentMasks, ImageEmbedding, SamBackend
from pipeline.sam.small_regions import clean


@dataclass(frozen=True)
class Candidates:
    """M masks at the decoder's resolution, in the order of the grid, all on the backend's device."""

    logits: Tensor
    """[M, h, w] float32."""
    predicted_iou: Tensor
    """[M] float32."""
    points_xy: Tensor
    """[M, 2] float32 pixels of the crop."""

    def __getitem__(self, keep: Tensor | slice) -> "Candidates":
        """A subset by index, bool mask or slice."""
        return Candidates(self.logits[keep], self.predicted_iou[keep], self.points_xy[keep])

    def __len__(self) -> int:
        """M."""
        return len(self.logits)

    @classmethod
    def joined(cls, parts: Sequence["Candidates"]) -> "Candidates":
        """One or more, one after the other."""
        return cls(
            torch.cat([part.logits for part in parts]),
            torch.cat([part.predicted_iou for part in parts]),
            torch.cat([part.points_xy for part in parts]),
        )


def segment_everything(
    backend: SamBackend,
    image: NDArray[np.uint8],
    settings: GeneratorSettings | None = None,
    *,
    embedding: ImageEmbedding | None = None,
    batch: BatchSize | None = None,
) -> list[Proposal]:
    """All distinct, confident and stable masks of an image.

    Args:
        backend: a SAM.
        image: [H, W, 3] uint8 RGB.
        settings: what to keep; the reference's defaults if None.
        embedding: of the whole image, if it was made already, for instance with others in one batch.
        batch: keeps from image to image what the GPU had no room for; ``settings.points_per_batch`` anew if None.

    Returns:
        Proposals in the canonical frame, in the order of :func:`proposal_order`: score falling, area
        falling, RLE bytes. An image may have none. An empty mask is never a proposal.
    """
    settings = settings or GeneratorSettings()
    batch = batch or BatchSize(settings.points_per_batch)
    crops = crops_of(image.shape[:2], settings.crop_n_layers, settings.crop_overlap_ratio)
    found: list[Proposal] = []
    areas: list[int] = []
    for crop in crops:
        whole = embedding if crop.layer == 0 else None
        seen = whole if whole is not None else backend.embed([crop.of(image)])[0]
        proposals = segment_crop(backend, seen, crop, settings, batch)
        found += proposals
        areas += [crop.area] * len(proposals)
    if len(crops) > 1:
        # Of masks alike in different crops, the one of the smaller crop saw the object larger.
        scores = 1 / torch.tensor(areas, dtype=torch.float32)
        keep = distinct(_boxes_xyxy(found), scores, settings.crop_nms_threshold)
        found = [found[i] for i in keep.tolist()]
    if settings.min_mask_region_area > 0:
        found = without_small_regions(found, settings)
    return sorted(found, key=proposal_order)[: settings.max_proposals]


def segment_crop(
    backend: SamBackend, embedding: ImageEmbedding, crop: Crop, settings: GeneratorSettings, batch: BatchSize
) -> list[Proposal]:
    """The proposals of one crop (or of the whole image), in the image's frame, distinct among themselves."""
    factor = settings.crop_n_points_downscale_factor**crop.layer
    points_xy = point_grid(max(1, settings.points_per_side // factor), embedding.size_hw, backend.input_hw)
    found: list[tuple[Candidates, Measures]] = []
    if settings.coarse_points_per_side is not None:
        coarse = max(1, settings.coarse_points_per_side // factor)
        first = point_grid(coarse, embedding.size_hw, backend.input_hw)
        found += stable_masks(backend, embedding, first, crop, settings, batch)
        logits = torch.cat([candidates.logits for candidates, _ in found])
        points_xy = points_xy[~spared(points_xy, logits, embedding.size_hw, coarse).cpu()]
    found += stable_masks(backend, embedding, points_xy, crop, settings, batch)
    candidates = Candidates.joined([each for each, _ in found])
    measures = Measures.joined([each for _, each in found])
    keep = distinct(measures.boxes_xyxy, candidates.predicted_iou, settings.box_nms_threshold)
    return encode(FullResolution.of(candidates.logits, embedding.size_hw), candidates[keep], measures[keep], crop)


def stable_masks(
    backend: SamBackend,
    embedding: ImageEmbedding,
    points_xy: Tensor,
    crop: Crop,
    settings: GeneratorSettings,
    batch: BatchSize | None = None,
) -> list[tuple[Candidates, Measures]]:
    """What clicks [N, 2] give that passes all filters, batch by batch, so that the rest's logits are not held."""
    found, full = [], None
    for candidates in decode_grid(backend, embedding, points_xy, settings, batch):
        full = full or FullResolution.of(candidates.logits, embedding.size_hw)
        found.append(keep_stable(full, candidates, crop, settings))
    return found


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
    backend: SamBackend,
    embedding: ImageEmbedding,
    points_xy: Tensor,
    settings: GeneratorSettings,
    batch: BatchSize | None = None,
) -> Iterator[Candidates]:
    """Decode clicks [N, 2] in batches; of their 3 N masks keep those with a high predicted IoU, in order."""
    batch = batch or BatchSize(settings.points_per_batch)
    threshold = settings.pred_iou_threshold if settings.pred_iou_threshold > 0 else -math.inf

    def decode(part: slice) -> Candidates:
        points = points_xy[part]
        labels = torch.ones(len(points), 1, dtype=torch.int32)
        lowest = -math.inf if settings.use_m2m else threshold
        masks = backend.decode_confident(embedding, points[:, None], labels, lowest)
        if settings.use_m2m:
            masks = _refined(backend, embedding, points, masks, batch, threshold)
        return Candidates(masks.logits, masks.predicted_iou, points.to(masks.logits.device)[masks.prompt])

    yield from in_batches(len(points_xy), batch, decode)


def _refined(
    backend: SamBackend,
    embedding: ImageEmbedding,
    points_xy: Tensor,
    masks: ConfidentMasks,
    batch: BatchSize,
    threshold: float,
) -> ConfidentMasks:
    """Every mask prompted with its click and itself; those keep that are confident then."""
    chosen = points_xy.to(masks.prompt.device)[masks.prompt]

    def decode(part: slice) -> tuple[Tensor, Tensor]:
        return backend.decode_with_mask(embedding, chosen[part], masks.logits[part])

    parts = list(in_batches(len(masks.prompt), batch, decode))
    logits, predicted_iou = (torch.cat(column) for column in zip(*parts, strict=True))
    keep = predicted_iou > threshold
    return ConfidentMasks(logits[keep], predicted_iou[keep], masks.prompt[keep])


def keep_stable(
    full: FullResolution, candidates: Candidates, crop: Crop, settings: GeneratorSettings
) -> tuple[Candidates, Measures]:
    """Measure candidates at full resolution; keep the stable ones that are not empty nor cut off by the crop."""
    measures = full.measure(candidates.logits, settings.stability_score_offset)
    keep = measures.nonempty & ~touches_inner_edge(measures.boxes_xyxy, crop)
    if settings.stability_score_threshold > 0:
        keep &= measures.stability_score >= settings.stability_score_threshold
    return candidates[keep], measures[keep]


def distinct(boxes_xyxy: Tensor, scores: Tensor, threshold: float) -> Tensor:
    """Indices of the masks that survive box NMS, best score first; of equal scores the earlier wins.

    The boxes go in with inclusive ends, as in the reference: a mask one pixel wide has a box of area 0.
    """
    keep: Tensor = batched_nms(boxes_xyxy.float(), scores, torch.zeros_like(boxes_xyxy[:, 0]), threshold)
    return keep


def encode(full: FullResolution, candidates: Candidates, measures: Measures, crop: Crop) -> list[Proposal]:
    """Run-length encode, in the frame of the image; order of the input."""
    mask, spans = (found.cpu().numpy() for found in full.runs(candidates.logits))
    height, width = crop.image_hw
    offsets = np.searchsorted(mask, np.arange(len(candidates) + 1))
    areas = np.bincount(mask, weights=spans[:, 1] - spans[:, 0], minlength=len(candidates)).astype(np.int64)
    codes = encode_runs(crop.place(spans), offsets, height=height, width=width)
    origin = torch.tensor([crop.x0, crop.y0], device=candidates.points_xy.device)
    columns = zip(
        codes,
        areas.tolist(),
        (measures.boxes_xyxy + origin.repeat(2)).tolist(),
        candidates.predicted_iou.tolist(),
        measures.stability_score.tolist(),
        (candidates.points_xy + origin).tolist(),
        strict=True,
    )
    return [
        Proposal(
            rle_counts=counts,
            height=height,
            width=width,
            area=area,
            # COCO counts pixels: a box as wide as its mask, one more than between inclusive ends.
            bbox_xywh=(float(x0), float(y0), float(x1 - x0 + 1), float(y1 - y0 + 1)),
            predicted_iou=predicted_iou,
            stability_score=stability,
            point_xy=(x, y),
        )
        for counts, area, (x0, y0, x1, y1), predicted_iou, stability, (x, y) in columns
    ]


def without_small_regions(proposals: list[Proposal], settings: GeneratorSettings) -> list[Proposal]:
    """Clean every mask (pipeline/sam/small_regions.py), then make them distinct again: cleaning makes masks alike.

    Of two, the one that needed no cleaning is the better.
    """
    cleaned, changed = [], []
    for proposal in proposals:
        mask, touched = clean(rle.decode(rle.of_proposal(proposal)), settings.min_mask_region_area)
        cleaned.append(_with_mask(proposal, mask) if touched else proposal)
        changed.append(touched)
    threshold = max(settings.box_nms_threshold, settings.crop_nms_threshold)
    keep = distinct(_boxes_xyxy(cleaned), 1 - torch.tensor(changed).float(), threshold)
    return [cleaned[i] for i in keep.tolist()]


def _with_mask(proposal: Proposal, mask: NDArray[np.bool_]) -> Proposal:
    code = rle.encode(mask)
    return replace(proposal, rle_counts=code["counts"], area=int(np.count_nonzero(mask)), bbox_xywh=rle.bbox_xywh(code))


def _boxes_xyxy(proposals: list[Proposal]) -> Tensor:
    """[M, 4] float32 with inclusive ends."""
    xywh = torch.tensor([each.bbox_xywh for each in proposals]).reshape(-1, 4)
    return torch.cat([xywh[:, :2], xywh[:, :2] + xywh[:, 2:] - 1], 1)
