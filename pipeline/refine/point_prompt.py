"""S4M's refiner: SAM prompted again from every teacher mask, with points drawn from it or with its box or itself.

Eq: S4M/refine
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pipeline.errors import InputError
from pipeline.masks.overlap import mask_iou
from pipeline.masks.points import SAMPLING_RULES, SamplingRule
from pipeline.refine.interface import (
    UNMATCHED,
    Refined,
    TeacherMasks,
    Unmatched,
    check_choice,
    check_number,
    drop_unmatched,
    teacher_outcomes,
)
from pipeline.refine.pixel_weight import WEIGHT_SCOPES, WeightScope, instance_weights
from pipeline.refine.prompts import PROMPT_KINDS, Prompt, PromptKind, make_prompts, stacked_logits, stacked_points
from pipeline.sam.batches import BatchSize, in_batches
from pipeline.sam.interface import ImageEmbedding, SamBackend

Embed = Callable[[int, NDArray[np.uint8] | None], ImageEmbedding]
"""(image id, image [H, W, 3] uint8 or None) to its embedding: a cache can sit here."""


@dataclass(frozen=True)
class PointSettings:
    """How SAM is asked and what is accepted. The paper has no gate: both are off by default."""

    prompt: PromptKind = "points"
    """What SAM is asked about an instance: points | box | mask (S4M, Table A.2)."""
    num_points: int = 3
    """K points per instance, all positive, one prompt per instance; only of ``prompt="points"``."""
    sampling: SamplingRule = "sigmoid_in_mask"
    """Distribution of points, of ``prompt="points"``."""
    prompts_per_batch: int = 64
    """Instances decoded at once, fewer where a GPU has no room; bounds the memory of the full-size masks."""
    min_iou_with_teacher: float | None = None
    """A SAM mask with a lower IoU with the teacher mask is not used."""
    min_predicted_iou: float | None = None
    """A SAM mask that SAM itself rates lower is not used."""
    unmatched: Unmatched = "keep"
    """What becomes of a teacher mask where SAM's is not used."""
    pixel_weights: WeightScope = "off"
    """Which instances get PWA weights; S4M has none."""

    def __post_init__(self) -> None:
        """Refuse values out of range (ConfigError)."""
        check_number("num_points", self.num_points, low=1, high=1024, whole=True)
        check_number("prompts_per_batch", self.prompts_per_batch, low=1, high=65536, whole=True)
        check_number("min_iou_with_teacher", self.min_iou_with_teacher, optional=True)
        check_number("min_predicted_iou", self.min_predicted_iou, optional=True)
        check_choice("prompt", self.prompt, PROMPT_KINDS)
        check_choice("unmatched", self.unmatched, UNMATCHED)
        check_choice("sampling", self.sampling, SAMPLING_RULES)
        check_choice("pixel_weights", self.pixel_weights, WEIGHT_SCOPES)


@dataclass(frozen=True)
class PointPromptRefiner:
    """Asks SAM for a mask at K points of every teacher mask.

    Eq: S4M/refine: the refined mask of an instance is SAM's answer to its K sampled points; of SAM's three candidates
    the one with the highest predicted IoU is taken. A SAM mask that is empty inside the visible region is a failure:
    the teacher mask stays ("kept", or "empty" if it has no pixel either), unless such masks are to be dropped; the
    released code keeps the empty one.

    The other prompts of S4M's Table A.2 differ in what is asked only: a box gets three candidates too; to a mask SAM
    has one answer, because nothing about it is ambiguous.
    """

    sam: SamBackend
    settings: PointSettings = PointSettings()
    embed: Embed | None = None

    def refine(
        self, image_id: int, image: NDArray[np.uint8] | None, masks: TeacherMasks, rng: np.random.Generator
    ) -> Refined:
        """Prompt SAM for every mask; see `Refiner.refine`.

        Raises:
            InputError: there is neither an image to embed nor a cache of embeddings.
        """
        refined = masks.masks
        outcomes = teacher_outcomes(refined)
        settings = self.settings
        prompts = make_prompts(
            masks, settings.prompt, num_points=settings.num_points, sampling=settings.sampling, rng=rng
        )
        answers = self._ask(self._embedding(image_id, image), prompts, masks.size_hw) if prompts else ()
        for prompt, (mask, predicted_iou) in zip(prompts, answers, strict=True):
            answer, index = mask & masks.visible, prompt.instance
            if self._accepts(answer, refined[index], predicted_iou):
                refined[index], outcomes[index] = answer, "matched"
        if settings.unmatched == "drop":
            drop_unmatched(refined, outcomes)
        weights = instance_weights(masks.probabilities, outcomes, scope=settings.pixel_weights)
        return Refined(masks=refined, weights=weights, outcomes=outcomes)

    def _embedding(self, image_id: int, image: NDArray[np.uint8] | None) -> ImageEmbedding:
        if self.embed is not None:
            return self.embed(image_id, image)
        if image is None:
            raise InputError(
                "the point refiner needs the image, or a cache of SAM embeddings",
                where=f"image {image_id}",
                fix="pass the image, or build the refiner with an embedding cache",
            )
        return self.sam.embed([image])[0]

    def _ask(
        self, embedding: ImageEmbedding, prompts: list[Prompt], size_hw: tuple[int, int]
    ) -> Iterator[tuple[NDArray[np.bool_], float]]:
        """Yield SAM's best mask [H, W] bool and its predicted IoU for every prompt."""

        def answers(part: slice) -> tuple[NDArray[np.bool_], list[float]]:
            with torch.no_grad():
                logits, predicted_iou = self._decode(embedding, prompts[part])
                return (self.sam.upsample(logits, size_hw) > 0).cpu().numpy(), predicted_iou.tolist()

        for masks, predicted_iou in in_batches(len(prompts), BatchSize(self.settings.prompts_per_batch), answers):
            yield from zip(masks, predicted_iou, strict=True)

    def _decode(self, embedding: ImageEmbedding, prompts: list[Prompt]) -> tuple[Tensor, Tensor]:
        """SAM's best mask for every prompt, logits [P, h, w] at its own resolution, and their predicted IoUs [P]."""
        if self.settings.prompt == "mask":
            return self.sam.decode_with_mask(embedding, None, stacked_logits(prompts))
        candidates = self.sam.decode_points(embedding, *stacked_points(prompts))
        best = candidates.predicted_iou.argmax(dim=1)  # [P]
        rows = torch.arange(len(best), device=best.device)
        # Eq: S4M/refine. Chosen at SAM's own resolution: only one mask in three is enlarged.
        return candidates.logits[rows, best], candidates.predicted_iou[rows, best]

    def _accepts(self, answer: NDArray[np.bool_], teacher: NDArray[np.bool_], predicted_iou: float) -> bool:
        settings = self.settings
        if not answer.any():
            return False
        if settings.min_predicted_iou is not None and predicted_iou < settings.min_predicted_iou:
            return False
        return settings.min_iou_with_teacher is None or mask_iou(answer, teacher) >= settings.min_iou_with_teacher
