"""The plain definitions of what lies between a teacher's queries and a student's targets: whole frames in numpy.

What the pipeline does inside windows gives the same to the bit; the bench times both, the tests compare both.
"""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray

from pipeline.data.arp import ArpSettings, Sample
from pipeline.distill.self_similarity import View
from pipeline.masks.points import SamplingRule, sampling_weights
from pipeline.masks.warp import map_points
from pipeline.models.pseudo_labels import TeacherQueries, ViewLabels
from pipeline.refine.interface import Refined, TeacherMasks

Floats = NDArray[np.float64]


def to_canonical(queries: TeacherQueries, view: View) -> TeacherMasks:
    """`pipeline.models.pseudo_labels.to_canonical` of a view whose axes stay apart."""
    logits = queries.logits.float().cpu().numpy()
    x, y = _mapped_centres(view.homography.numpy(), view.canonical_hw)
    visible = _inside(x, y, view.valid_hw)
    cell_x, cell_y = x * (logits.shape[2] / view.canvas_hw[1]), y * (logits.shape[1] / view.canvas_hw[0])
    sampled = torch.from_numpy(_sampled(logits, cell_x, cell_y)).sigmoid().numpy() * visible
    return TeacherMasks(sampled, visible, queries.labels.cpu().numpy(), queries.scores.float().cpu().numpy())


def to_view(refined: Refined, labels: NDArray[np.int64], view: View, *, min_pixels: int) -> ViewLabels:
    """`pipeline.models.pseudo_labels.to_view` of a view whose axes stay apart."""
    height, width = refined.masks.shape[1:]
    x, y = _mapped_centres(np.linalg.inv(view.homography.numpy().astype(np.float64)), view.canvas_hw)
    inside = _inside(x, y, (height, width))
    rows = np.clip(np.floor(y), 0, height - 1).astype(np.int64)[:, None]
    columns = np.clip(np.floor(x), 0, width - 1).astype(np.int64)
    inside[view.valid_hw[0] :] = False  # padding
    inside[:, view.valid_hw[1] :] = False
    masks = refined.masks[:, rows, columns] & inside
    keep = np.flatnonzero(masks.sum(axis=(1, 2)) >= min_pixels)
    weights = [
        None if weight is None else np.where(inside, _sampled(weight[None], x, y)[0], np.float32(1))
        for weight in (refined.weights[k] for k in keep)
    ]
    return ViewLabels(masks[keep], labels[keep], weights)


def _mapped_centres(matrix: NDArray[np.floating], size_hw: tuple[int, int]) -> tuple[Floats, Floats]:
    """Where the pixel centres of a frame are: x [W], y [H]."""
    matrix = matrix.astype(np.float64)
    centres = [np.stack([np.arange(size) + 0.5] * 2, axis=1) for size in size_hw]
    return map_points(centres[1], matrix)[:, 0], map_points(centres[0], matrix)[:, 1]


def _inside(x: Floats, y: Floats, size_hw: tuple[int, int]) -> NDArray[np.bool_]:
    return np.outer((y >= 0) & (y < size_hw[0]), (x >= 0) & (x < size_hw[1]))


def _sampled(maps: NDArray[np.float32], x: Floats, y: Floats) -> NDArray[np.float32]:
    """Maps [N, h, w], bilinear at cell coordinates x [W] and y [H]: [N, H, W]."""
    return _blended(_blended(maps, y, axis=1), x, axis=2)


def _blended(maps: NDArray[np.float32], coordinates: Floats, *, axis: int) -> NDArray[np.float32]:
    count = maps.shape[axis]
    position = np.clip(coordinates - 0.5, 0, count - 1)
    before = np.floor(position).astype(np.int64)
    share = (position - before).astype(np.float32)
    share = share[:, None] if axis == 1 else share
    after = np.minimum(before + 1, count - 1)
    return np.asarray(maps.take(before, axis) * (1 - share) + maps.take(after, axis) * share)


def draw_points(
    masks: TeacherMasks, *, num_points: int, rule: SamplingRule, rng: np.random.Generator
) -> list[NDArray[np.float32]]:
    """The clicks [K, 2] of `pipeline.refine.prompts.make_prompts` for every instance."""
    return [
        sample_points(probability, masks.visible, num_points=num_points, rule=rule, rng=rng)
        for probability in masks.probabilities
    ]


def sample_points(
    probability: NDArray[np.float32],
    visible: NDArray[np.bool_],
    *,
    num_points: int,
    rule: SamplingRule,
    rng: np.random.Generator,
) -> NDArray[np.float32]:
    """`pipeline.masks.points.sample_points`."""
    weights = sampling_weights(probability, visible, rule=rule).ravel()
    candidates = np.flatnonzero(weights)
    count = min(num_points, len(candidates))
    if count == 0:
        return np.zeros((0, 2), dtype=np.float32)
    chances = weights[candidates] / weights[candidates].sum()
    rows, columns = np.divmod(rng.choice(candidates, size=count, replace=False, p=chances), probability.shape[1])
    return np.stack([columns + 0.5, rows + 0.5], axis=1).astype(np.float32)


def mix_pair(first: Sample, second: Sample, settings: ArpSettings) -> tuple[Sample, Sample]:
    """`pipeline.data.arp.mix_pair`, static."""
    return paste(second, first, settings), paste(first, second, settings)


def paste(source: Sample, receiver: Sample, settings: ArpSettings) -> Sample:
    """`pipeline.data.arp.paste`, static, between samples of one size."""
    areas = np.count_nonzero(source.masks, axis=(1, 2))
    chosen = np.flatnonzero(areas >= max(settings.min_source_area, settings.min_visible_pixels))
    image = receiver.image.copy()
    for mask in source.masks[chosen]:
        image[mask] = source.image[mask]
    covered = np.asarray(source.masks[chosen].any(axis=0))
    mixed = Sample(
        image,
        np.concatenate([receiver.masks & ~covered, source.masks[chosen]]),
        np.concatenate([receiver.labels, source.labels[chosen]]),
        _mixed_weights(source, receiver, chosen, covered),
    )
    before = np.concatenate([np.count_nonzero(receiver.masks, axis=(1, 2)), areas[chosen]])
    return _without_slivers(mixed, before, num_own=len(receiver.labels), settings=settings)


def _mixed_weights(
    source: Sample, receiver: Sample, chosen: NDArray[np.int64], covered: NDArray[np.bool_]
) -> tuple[NDArray[np.float32] | None, ...] | None:
    if source.weights is None and receiver.weights is None:
        return None
    own = [(~covered, weight) for weight in receiver.weight_list()]
    pasted = [(source.masks[k], source.weight_list()[k]) for k in chosen]
    return tuple(None if weight is None else np.where(on, weight, np.float32(1)) for on, weight in [*own, *pasted])


def _without_slivers(sample: Sample, before: NDArray[np.int64], *, num_own: int, settings: ArpSettings) -> Sample:
    areas = np.count_nonzero(sample.masks, axis=(1, 2))
    stays = (areas >= settings.min_visible_pixels) & (areas >= settings.min_visible_share * before)
    stays[:num_own] |= (areas == before)[:num_own]
    kept = np.flatnonzero(stays & (areas > 0))
    weights = None if sample.weights is None else tuple(sample.weights[k] for k in kept)
    return replace(sample, masks=sample.masks[kept], labels=sample.labels[kept], weights=weights)


def pairwise_iou(masks: NDArray[np.bool_], others: NDArray[np.bool_]) -> Floats:
    """`pipeline.masks.overlap.pairwise_iou`."""
    shared = np.array([[np.count_nonzero(mask & other) for other in others] for mask in masks]).reshape(
        len(masks), len(others)
    )
    areas: Sequence[NDArray[np.int64]] = [np.count_nonzero(each, axis=(1, 2)) for each in (masks, others)]
    union = areas[0][:, None] + areas[1][None] - shared
    return np.asarray(np.divide(shared, union, out=np.zeros(shared.shape), where=union > 0))
