"""What SAM is asked about a teacher's instance: clicks, a box, or the teacher's mask (S4M, Table A.2)."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pipeline.masks.points import SamplingRule, sample_points
from pipeline.masks.window import bounding_window
from pipeline.refine.interface import TeacherMasks

PromptKind = Literal["points", "box", "mask"]
"""points: K clicks of Eq. 3, the paper's choice. box: the bounding box of the teacher's mask. mask: the teacher's
logits and no click."""

PROMPT_KINDS: tuple[str, ...] = get_args(PromptKind)

_PADDING, _CLICK, _TOP_LEFT, _BOTTOM_RIGHT = -1, 1, 2, 3
"""Labels of points, as ``SamBackend.decode_points`` takes them."""


@dataclass(frozen=True)
class Prompt:
    """One instance's prompt: points with their labels, or a mask."""

    instance: int
    """Which of the teacher's instances."""
    points_xy: NDArray[np.float32]
    """[K, 2] canonical pixels; none where the mask is the prompt."""
    labels: NDArray[np.int64]
    """[K] labels of the points."""
    probability: NDArray[np.float32] | None = None
    """[H, W] foreground probability where the mask is the prompt."""


def make_prompts(
    masks: TeacherMasks, kind: PromptKind, *, num_points: int, sampling: SamplingRule, rng: np.random.Generator
) -> list[Prompt]:
    """Make the prompts of one image.

    Args:
        masks: The teacher's instances.
        kind: What SAM is asked.
        num_points: K of ``points``; nothing else reads it.
        sampling: Distribution of the clicks of ``points``.
        rng: Where clicks come from; a box or a mask draws nothing.

    Returns:
        At most one prompt per instance, in their order; instances without a pixel to point at get none.
    """
    if kind == "points":
        rows, columns = masks.window
        corner = np.array([columns.start, rows.start], dtype=np.float32)
        visible, shown = masks.visible[rows, columns], masks.probabilities[:, rows, columns]
        drawn = [
            corner + sample_points(probability, visible, num_points=num_points, rule=sampling, rng=rng)
            for probability in shown
        ]
        return [Prompt(index, xy, _labels(_CLICK, len(xy))) for index, xy in enumerate(drawn) if len(xy)]
    seen = [(index, mask) for index, mask in enumerate(masks.masks) if mask.any()]
    if kind == "box":
        corners = np.array([_TOP_LEFT, _BOTTOM_RIGHT], dtype=np.int64)
        return [Prompt(index, box_corners(mask), corners) for index, mask in seen]
    nowhere = np.zeros((0, 2), dtype=np.float32)
    return [Prompt(index, nowhere, _labels(_CLICK, 0), masks.probabilities[index]) for index, _ in seen]


def _labels(label: int, count: int) -> NDArray[np.int64]:
    return np.full(count, label, dtype=np.int64)


def box_corners(mask: NDArray[np.bool_]) -> NDArray[np.float32]:
    """Bounding box of a mask [H, W] bool with a pixel, as [2, 2] float32 canonical (x, y).

    Top left, then bottom right corner, on the outer edges of the outermost pixels.
    """
    rows, columns = bounding_window(mask)
    return np.array([[columns.start, rows.start], [columns.stop, rows.stop]], dtype=np.float32)


def stacked_points(prompts: Sequence[Prompt]) -> tuple[Tensor, Tensor]:
    """Points of prompts of different lengths: [P, K, 2] float32 and labels [P, K] int64, -1 on padding."""
    longest = max(len(prompt.points_xy) for prompt in prompts)
    points_xy = np.zeros((len(prompts), longest, 2), dtype=np.float32)
    labels = np.full((len(prompts), longest), _PADDING, dtype=np.int64)
    for row, prompt in enumerate(prompts):
        points_xy[row, : len(prompt.points_xy)] = prompt.points_xy
        labels[row, : len(prompt.labels)] = prompt.labels
    return torch.from_numpy(points_xy), torch.from_numpy(labels)


def stacked_logits(prompts: Sequence[Prompt]) -> Tensor:
    """Logits [P, H, W] float32 of prompts that are masks; minus infinity where the view showed nothing."""
    probabilities = [prompt.probability for prompt in prompts if prompt.probability is not None]
    return torch.from_numpy(np.stack(probabilities)).logit()
