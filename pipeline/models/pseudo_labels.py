"""From the teacher's raw outputs to pseudo-labels in the canonical frame, and back into the view."""

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pipeline.distill.self_similarity import View
from pipeline.errors import ConfigError
from pipeline.masks.overlap import mask_areas
from pipeline.masks.warp import warp_maps_to_view, warp_to_canonical, warp_to_view
from pipeline.refine.interface import Refined, TeacherMasks

_SAME_PLACE = 0.5
"""IoU at which two masks are of one thing."""
_VECTORS = 64
"""A multiple of the numbers that torch squashes at a time on any processor."""
_ONE_THREAD = 1 << 14
"""Numbers that torch does not share out to threads."""


@dataclass(frozen=True)
class PseudoLabelFilter:
    """Which teacher queries become pseudo-labels (S4M: 0.7, 5, and no suppression of duplicates)."""

    score_threshold: float = 0.7
    """Class probability, over the classes and no-object, must be above it."""
    min_soft_area: float = 5.0
    """Sum of the mask probability over the network's stride-4 map must be above it."""
    nms_iou_threshold: float | None = None
    """Of two masks with a higher IoU, whatever their classes, only the surer stays; None keeps both (S4M).

    A young Mask2Former puts several sure queries on one object, and a student taught so repeats it.
    """
    unsure_threshold: float | None = None
    """Queries that are not sure enough to be labels but have a class probability above it are no background either: a
    student that finds something where they lie is not told that it is nothing, unless it is a label's place (see
    :func:`lie_on`). None: it is (S4M)."""

    def __post_init__(self) -> None:
        """Refuse a threshold that is no share."""
        if not 0 <= self.score_threshold <= 1:
            raise ConfigError("not a probability", where="score_threshold", expected="0 to 1", got=self.score_threshold)
        if self.nms_iou_threshold is not None and not 0 < self.nms_iou_threshold <= 1:
            raise ConfigError(
                "not an IoU",
                where="nms_iou_threshold",
                expected="above 0, at most 1, or None",
                got=self.nms_iou_threshold,
            )
        if self.unsure_threshold is not None and not 0 <= self.unsure_threshold <= self.score_threshold:
            raise ConfigError(
                "the unsure threshold is no probability, or above the score threshold",
                where="unsure_threshold",
                expected=f"0 to score_threshold, which is {self.score_threshold:g}, or None",
                got=self.unsure_threshold,
            )


@dataclass(frozen=True)
class TeacherQueries:
    """The queries of one image that passed the filter."""

    logits: Tensor
    """[N, h, w] mask logits at the network's stride."""
    labels: Tensor
    """[N] int64."""
    scores: Tensor
    """[N] class probability."""
    unsure: Tensor | None = None
    """[M, h, w] bool, masks of those that did not pass and are not to be taken for background; some may lie on a
    label's place."""


@dataclass(frozen=True)
class ViewLabels:
    """Pseudo-labels in the pixels of a training view (its whole canvas)."""

    masks: NDArray[np.bool_]
    """[N, H, W]."""
    labels: NDArray[np.int64]
    """[N]."""
    weights: list[NDArray[np.float32] | None]
    """N loss weights per pixel; None means 1."""
    unsure: Tensor | None = None
    """[M, h, w] bool at the network's stride: what is not background, unless it lies on an object that is learnt."""


def filter_queries(class_logits: Tensor, mask_logits: Tensor, settings: PseudoLabelFilter) -> TeacherQueries:
    """Keep confident queries of a visible size.

    Args:
        class_logits: [Q, C + 1], the last one is no-object.
        mask_logits: [Q, h, w].
        settings: Thresholds, all strict.

    Returns:
        The queries kept, in query order.
    """
    probabilities = class_logits.softmax(dim=1)
    scores, labels = probabilities.max(dim=1)
    is_visible = mask_logits.sigmoid().sum(dim=(1, 2)) > settings.min_soft_area
    keep = (labels != class_logits.shape[1] - 1) & (scores > settings.score_threshold) & is_visible
    kept = TeacherQueries(mask_logits[keep], labels[keep], scores[keep])
    if settings.nms_iou_threshold is not None:
        first = mask_nms(kept.logits > 0, kept.scores, settings.nms_iou_threshold)
        kept = TeacherQueries(kept.logits[first], kept.labels[first], kept.scores[first])
    if settings.unsure_threshold is None:
        return kept
    # What is sure enough is a label, or was suppressed as another mask of one.
    likely = (probabilities[:, :-1].max(dim=1).values > settings.unsure_threshold) & is_visible & ~keep
    return replace(kept, unsure=mask_logits[likely] > 0)


def lie_on(masks: Tensor, others: Tensor) -> Tensor:
    """Which masks [N, h, w] bool have an IoU of a half or more with one of the others [M, h, w]: [N] bool."""
    if len(others) == 0 or len(masks) == 0:
        return torch.zeros(len(masks), dtype=torch.bool, device=masks.device)
    shared, union = _overlaps(masks, others)
    return ((shared >= _SAME_PLACE * union) & (shared > 0)).any(dim=1)


def _overlaps(masks: Tensor, others: Tensor) -> tuple[Tensor, Tensor]:
    """Pixels that masks [N, h, w] and [M, h, w] share, and those of both together: [N, M] each."""
    first, second = masks.flatten(1).float(), others.flatten(1).float()
    shared = first @ second.T
    return shared, first.sum(dim=1)[:, None] + second.sum(dim=1)[None] - shared


def mask_nms(masks: Tensor, scores: Tensor, iou_threshold: float) -> Tensor:
    """Greedy non-maximum suppression by mask IoU.

    Args:
        masks: [N, h, w] bool; an empty mask overlaps with none.
        scores: [N]; of equal scores the first goes first.
        iou_threshold: A mask goes if its IoU with a surer one that stays is above it.

    Returns:
        Indices of the masks that stay, ascending, int64.
    """
    shared, union = _overlaps(masks, masks)
    overlaps = (shared > iou_threshold * union).cpu()
    stays: list[int] = []
    for index in torch.argsort(scores, descending=True, stable=True).tolist():
        if not overlaps[index, stays].any():
            stays.append(index)
    return torch.tensor(sorted(stays), dtype=torch.int64, device=masks.device)


def to_canonical(queries: TeacherQueries, view: View) -> TeacherMasks:
    """Bring the kept queries into the canonical frame.

    The logits are interpolated, then squashed, so that the 0.5 contour is the contour of the logits.
    """
    probabilities, visible = warp_to_canonical(
        queries.logits.float().cpu().numpy(),
        view.homography.numpy(),
        view_hw=view.valid_hw,
        canonical_hw=view.canonical_hw,
        canvas_hw=view.canvas_hw,
        activation=sigmoid,
    )
    return TeacherMasks(
        probabilities,
        visible,
        queries.labels.cpu().numpy().astype(np.int64),
        queries.scores.float().cpu().numpy(),
    )


def sigmoid(logits: NDArray[np.float32]) -> NDArray[np.float32]:
    """torch's sigmoid, of equal logits equal to the bit.

    torch works through most of a tensor in vectors and through the end of every thread's share one by one, with another
    last bit. Here all goes in vectors, whatever the shape and the number of threads.

    Args:
        logits: Of any shape, contiguous.

    Returns:
        A new array of that shape.
    """
    flat = np.zeros(-(-logits.size // _VECTORS) * _VECTORS, dtype=np.float32)
    flat[: logits.size] = logits.ravel()
    for start in range(0, len(flat), _ONE_THREAD):
        torch.from_numpy(flat[start : start + _ONE_THREAD]).sigmoid_()
    return flat[: logits.size].reshape(logits.shape)


def to_view(refined: Refined, labels: NDArray[np.int64], view: View, *, min_pixels: int) -> ViewLabels:
    """Bring refined masks into the view; those with fewer than ``min_pixels`` there are dropped.

    The padding holds no mask, not even where an enlarged visible pixel of the image's edge reaches into it.
    """
    homography = view.homography.numpy()
    masks = warp_to_view(refined.masks, homography, view_hw=view.valid_hw, canvas_hw=view.canvas_hw)
    keep = np.flatnonzero(mask_areas(masks) >= min_pixels)
    weights = [_weight_in_view(refined.weights[k], homography, view) for k in keep]
    return ViewLabels(masks if len(keep) == len(masks) else masks[keep], labels[keep], weights)


def _weight_in_view(
    weight: NDArray[np.float32] | None, homography: NDArray[Any], view: View
) -> NDArray[np.float32] | None:
    if weight is None:
        return None
    height, width = view.valid_hw
    weights = np.ones(view.canvas_hw, dtype=np.float32)  # padding weighs what every pixel weighs
    weights[:height, :width] = warp_maps_to_view(weight[None], homography, view_hw=view.valid_hw, outside=1.0)[0]
    return weights
