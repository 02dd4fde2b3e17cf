"""S4M's refiner: SAM prompted again with points drawn from every teacher mask.

Eq: S4M/refine
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from pipeline.errors import InputError
from pipeline.masks.overlap import mask_iou
from pipeline.masks.points import SAMPLING_RULES, SamplingRule, sample_points
from pipeline.refine.interface import Refined, TeacherMasks, check_choice, check_number, teacher_outcomes
from pipeline.refine.pixel_weight import WEIGHT_SCOPES, WeightScope, instance_weights
from pipeline.sam.interface import ImageEmbedding, SamBackend

Embed = Callable[[int, NDArray[np.uint8] | None], ImageEmbedding]
"""(image id, image [H, W, 3] uint8 or None) to its embedding: a cache can sit here."""

_PADDING_LABEL = -1


@dataclass(frozen=True)
class PointSettings:
    """How SAM is asked and what is accepted. The paper has no gate: both are off by default."""

    num_points: int = 3
    """K points per instance, all positive, one prompt per instance."""
    sampling: SamplingRule = "sigmoid_in_mask"
    prompts_per_batch: int = 64
    """Instances decoded at once; bounds the memory of the full-size masks."""
    min_iou_with_teacher: float | None = None
    """A SAM mask with a lower IoU with the teacher mask is not used."""
    min_predicted_iou: float | None = None
    """A SAM mask that SAM itself rates lower is not used."""
    pixel_weights: WeightScope = "off"
    """Which instances get PWA weights; S4M has none."""

    def __post_init__(self) -> None:
        """Refuse values out of range (ConfigError)."""
        check_number("num_points", self.num_points, low=1, high=1024, whole=True)
        check_number("prompts_per_batch", self.prompts_per_batch, low=1, high=65536, whole=True)
        check_number("min_iou_with_teacher", self.min_iou_with_teacher, optional=True)
        check_number("min_predicted_iou", self.min_predicted_iou, optional=True)
        check_choice("sampling", self.sampling, SAMPLING_RULES)
        check_choice("pixel_weights", self.pixel_weights, WEIGHT_SCOPES)


@dataclass(frozen=True)
class PointPromptRefiner:
    """Asks SAM for a mask at K points of every teacher mask.

    Eq: S4M/refine: the refined mask of an instance is SAM's answer to its K sampled points; of SAM's three candidates
    the one with the highest predicted IoU is taken. A SAM mask that is empty inside the visible region is a failure:
    the teacher mask stays ("kept", or "empty" if it has no pixel either); the released code keeps the empty one.
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
        points, prompted = self._sample(masks, rng)
        answers = self._ask(self._embedding(image_id, image), points, masks.size_hw) if prompted else ()
        for index, (mask, predicted_iou) in zip(prompted, answers, strict=True):
            answer = mask & masks.visible
            if self._accepts(answer, refined[index], predicted_iou):
                refined[index], outcomes[index] = answer, "matched"
        weights = instance_weights(masks.probabilities, outcomes, scope=self.settings.pixel_weights)
        return Refined(masks=refined, weights=weights, outcomes=outcomes)

    def _sample(self, masks: TeacherMasks, rng: np.random.Generator) -> tuple[list[NDArray[np.float32]], list[int]]:
        """Draw the points of every instance; instances without any are not prompted."""
        drawn = [
            sample_points(
                probability,
                masks.visible,
                num_points=self.settings.num_points,
                rule=self.settings.sampling,
                rng=rng,
            )
            for probability in masks.probabilities
        ]
        prompted = [index for index, points in enumerate(drawn) if len(points)]
        return [drawn[index] for index in prompted], prompted

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
        self, embedding: ImageEmbedding, points: list[NDArray[np.float32]], size_hw: tuple[int, int]
    ) -> Iterator[tuple[NDArray[np.bool_], float]]:
        """Yield SAM's best mask [H, W] bool and its predicted IoU for every prompt."""
        for start in range(0, len(points), self.settings.prompts_per_batch):
            yield from self._ask_batch(embedding, points[start : start + self.settings.prompts_per_batch], size_hw)

    def _ask_batch(
        self, embedding: ImageEmbedding, points: list[NDArray[np.float32]], size_hw: tuple[int, int]
    ) -> Iterator[tuple[NDArray[np.bool_], float]]:
        points_xy, labels = _pad_prompts(points)
        with torch.no_grad():
            candidates = self.sam.decode_points(embedding, points_xy, labels)
            best = candidates.predicted_iou.argmax(dim=1)  # [P]
            rows = torch.arange(len(best), device=best.device)
            # Eq: S4M/refine. Chosen at SAM's own resolution: only one mask in three is enlarged.
            logits = self.sam.upsample(candidates.logits[rows, best], size_hw)
        return zip((logits > 0).cpu().numpy(), candidates.predicted_iou[rows, best].tolist(), strict=True)

    def _accepts(self, answer: NDArray[np.bool_], teacher: NDArray[np.bool_], predicted_iou: float) -> bool:
        settings = self.settings
        if not answer.any():
            return False
        if settings.min_predicted_iou is not None and predicted_iou < settings.min_predicted_iou:
            return False
        return settings.min_iou_with_teacher is None or mask_iou(answer, teacher) >= settings.min_iou_with_teacher


def _pad_prompts(points: list[NDArray[np.float32]]) -> tuple[torch.Tensor, torch.Tensor]:
    """Stack prompts of different lengths: [P, K, 2] float32 and labels [P, K], 1 on a point, -1 on padding."""
    longest = max(len(prompt) for prompt in points)
    points_xy = np.zeros((len(points), longest, 2), dtype=np.float32)
    labels = np.full((len(points), longest), _PADDING_LABEL, dtype=np.int64)
    for row, prompt in enumerate(points):
        points_xy[row, : len(prompt)] = prompt
        labels[row, : len(prompt)] = 1
    return torch.from_numpy(points_xy), torch.from_numpy(labels)
