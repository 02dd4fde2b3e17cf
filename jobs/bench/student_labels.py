"""Bench of what a student's step does on the CPU between the teacher's queries and the targets, at Cityscapes' size.

Masks into the canonical frame, points drawn from them, masks back into the view, pasting between two images, overlaps
with the hidden truth: done where there is something, against whole frames (`jobs.bench.plain_labels`). CPU seconds.
"""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from jobs.bench import plain_labels
from jobs.bench.cases import Case, blob
from pipeline.data.arp import ArpSettings, Sample, mix_pair
from pipeline.distill.self_similarity import View
from pipeline.masks.overlap import pairwise_iou
from pipeline.models.pseudo_labels import TeacherQueries, ViewLabels, to_canonical, to_view
from pipeline.refine.interface import Refined, TeacherMasks
from pipeline.refine.prompts import make_prompts

_STRIDE, _NUM_POINTS, _MIN_PIXELS = 4, 3, 16


@dataclass(frozen=True)
class Way:
    """One way through all parts."""

    to_canonical: Callable[[TeacherQueries, View], TeacherMasks]
    points: Callable[[TeacherMasks], list[NDArray[np.float32]]]
    to_view: Callable[..., ViewLabels]
    arp: Callable[[Sample, Sample], tuple[Sample, Sample]]
    iou: Callable[[NDArray[np.bool_], NDArray[np.bool_]], NDArray[np.float64]]


def _prompted(masks: TeacherMasks) -> list[NDArray[np.float32]]:
    rng = np.random.default_rng(0)
    prompts = make_prompts(masks, "points", num_points=_NUM_POINTS, sampling="sigmoid_in_mask", rng=rng)
    return [prompt.points_xy for prompt in prompts]


def _drawn(masks: TeacherMasks) -> list[NDArray[np.float32]]:
    rng = np.random.default_rng(0)
    drawn = plain_labels.draw_points(masks, num_points=_NUM_POINTS, rule="sigmoid_in_mask", rng=rng)
    return [points for points in drawn if len(points)]


def _pasted(first: Sample, second: Sample) -> tuple[Sample, Sample]:
    return mix_pair(first, second, ArpSettings(), np.random.default_rng(0))


_OURS = Way(to_canonical, _prompted, to_view, _pasted, pairwise_iou)
_PLAIN = Way(
    plain_labels.to_canonical,
    _drawn,
    plain_labels.to_view,
    partial(plain_labels.mix_pair, settings=ArpSettings()),
    plain_labels.pairwise_iou,
)


def student_labels(
    _: Path,
    *,
    image_hw: tuple[int, int] = (1024, 2048),
    view_hw: tuple[int, int] = (512, 1024),
    num_masks: int = 20,
) -> Iterator[Case]:
    """One case for every part, and one for all parts of two images as often as a watched step has them."""
    view = _middle(image_hw, view_hw)
    queries = [_queries(seed, view_hw, num_masks) for seed in range(2)]
    images = [np.random.default_rng(seed).integers(0, 256, (*view_hw, 3), dtype=np.uint8) for seed in range(2)]
    canonical = to_canonical(queries[0], view)
    refined = _unrefined(canonical)
    shown = [to_view(_unrefined(m), m.labels, view, min_pixels=1) for m in (to_canonical(q, view) for q in queries)]
    samples = [Sample(image, each.masks, each.labels) for image, each in zip(images, shown, strict=True)]
    parts: Mapping[str, Callable[[Way], Any]] = {
        "masks into the canonical frame": lambda way: way.to_canonical(queries[0], view),
        "points drawn": lambda way: way.points(canonical),
        "masks into the view": lambda way: way.to_view(refined, canonical.labels, view, min_pixels=_MIN_PIXELS),
        "ARP, a pair": lambda way: way.arp(*samples),
        "quality: overlaps": lambda way: way.iou(shown[0].masks, shown[1].masks),
        "all, a pair, quality watched": lambda way: _step(way, queries, images, shown[0].masks, view),
    }
    sizes = {"masks": num_masks, "view": _text(view_hw), "image": _text(image_hw), "clock": "of the CPU"}
    for name, part in parts.items():
        yield Case(
            ours=partial(part, _OURS),
            other=partial(part, _PLAIN),
            other_name="whole frames in numpy",
            sizes={"part": name, **sizes},
            check=same_to_the_bit,
            clock=time.process_time,
        )


def _step(
    way: Way,
    queries: Sequence[TeacherQueries],
    images: Sequence[NDArray[np.uint8]],
    truth: NDArray[np.bool_],
    view: View,
) -> list[Any]:
    """Both images through all parts; a refiner that changes nothing is between."""
    found: list[Any] = []
    samples: list[Sample] = []
    for query, image in zip(queries, images, strict=True):
        masks = way.to_canonical(query, view)
        found += [way.points(masks)]
        for least in (1, _MIN_PIXELS):  # the teacher's own, for its quality; the refined
            label = way.to_view(_unrefined(masks), masks.labels, view, min_pixels=least)
            found += [way.iou(label.masks, truth)]
        samples.append(Sample(image, label.masks, label.labels))
    return [*found, *way.arp(*samples)]


def _middle(image_hw: tuple[int, int], view_hw: tuple[int, int]) -> View:
    """The crop of the image's middle, at its own scale."""
    homography = torch.eye(3)
    homography[0, 2], homography[1, 2] = -((image_hw[1] - view_hw[1]) // 2), -((image_hw[0] - view_hw[0]) // 2)
    return View(homography, image_hw, view_hw, view_hw)


def _queries(seed: int, view_hw: tuple[int, int], count: int) -> TeacherQueries:
    """A teacher that is sure of some objects."""
    rng = np.random.default_rng(seed)
    masks = np.stack([blob(rng, view_hw[0] // _STRIDE, view_hw[1] // _STRIDE) for _ in range(count)])
    logits = torch.from_numpy(np.where(masks, np.float32(4), np.float32(-4)))
    return TeacherQueries(logits, torch.arange(count), torch.full((count,), 0.9))


def _unrefined(masks: TeacherMasks) -> Refined:
    return Refined(masks.masks, [None] * len(masks), ["kept"] * len(masks))


def _text(size_hw: tuple[int, int]) -> str:
    return f"{size_hw[0]} x {size_hw[1]}"


def same_to_the_bit(ours: Any, other: Any) -> None:
    """Raise AssertionError unless both hold equal arrays of equal types in the same places."""
    if isinstance(ours, np.ndarray):
        assert ours.dtype == other.dtype
        np.testing.assert_array_equal(ours, other)
    elif is_dataclass(ours):
        same_to_the_bit(*([getattr(each, field.name) for field in fields(ours)] for each in (ours, other)))
    elif ours is None:
        assert other is None
    else:
        assert len(ours) == len(other)
        for one, two in zip(ours, other, strict=True):
            same_to_the_bit(one, two)


BENCHES: Mapping[str, Callable[[Path], Iterator[Case]]] = {"student_labels": student_labels}
