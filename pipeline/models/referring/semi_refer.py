"""SemiRES' mutual learning: an EMA teacher segments what a sentence says, SAM's proposals correct it, a student learns.

Eq: SemiRES/pwa, SemiRES/iom, SemiRES/cpi-u and SemiRES/cpi-o are the refiner's; this is the step around them.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from mmengine.model import BaseModel
from mmengine.registry import MODELS
from torch import Tensor

from data_schemas.pseudo_labels import OUTCOMES
from pipeline.data.referring.views import JitterSettings, jittered
from pipeline.distill.self_similarity import View
from pipeline.errors import ConfigError
from pipeline.images import read_image
from pipeline.masks.overlap import mask_iou
from pipeline.models.referring.confidence import ConfidenceFilter
from pipeline.models.referring.interface import BACKGROUND, OBJECT, ReferOutput
from pipeline.models.referring.refer_labels import ReferLabel, refer_label
from pipeline.models.referring.refer_losses import class_weight_map, pixel_cross_entropy, unlabelled_loss
from pipeline.models.referring.student_settings import ReferStudentSettings
from pipeline.models.semi_student import make_refiner

PREDICT_ON = ("teacher", "student")
"""Who answers in validation: SemiRES' best checkpoint is the teacher's."""


class SemiReferStudent(BaseModel):
    """A student and its teacher. Checkpoints hold both, under ``student.`` and ``teacher.``."""

    def __init__(
        self,
        *,
        segmentor: Mapping[str, Any],
        data_preprocessor: Mapping[str, Any],
        refiner: Mapping[str, Any],
        jitter: Mapping[str, Any] | None = None,
        settings: Mapping[str, Any] | None = None,
        predict_on: str = "teacher",
    ) -> None:
        """Build both networks and the refiner.

        Args:
            segmentor: Config of a ``ReferSegmentor``.
            data_preprocessor: Config of mmdet's ``MultiBranchDataPreprocessor``.
            refiner: As of ``SemiStudent``: ``name`` and its settings, with ``store`` or ``sam``.
            jitter: Fields of :class:`JitterSettings`: the student's strong view.
            settings: Fields of :class:`ReferStudentSettings`.
            predict_on: teacher | student: who answers in validation.

        Raises:
            ConfigError: a setting is unknown or out of range, or a store or SAM is missing.
        """
        super().__init__(data_preprocessor=dict(data_preprocessor))
        if predict_on not in PREDICT_ON:
            raise ConfigError(
                "who predicts?", where="model.predict_on", expected=" | ".join(PREDICT_ON), got=predict_on
            )
        self.jitter = JitterSettings(**(jitter or {}))
        self.settings = ReferStudentSettings(**(settings or {}))
        self.student, self.teacher = (MODELS.build(dict(segmentor)) for _ in range(2))
        self.teacher.eval().requires_grad_(False)
        self.predict_on = predict_on
        self.refiner, self.embeddings = make_refiner(**refiner)
        share, window = self.settings.drop_share, self.settings.confidence_window
        self.confidence = ConfidenceFilter(share=share, window=window) if share else None
        self.step_key: tuple[int, ...] = (0, 0)

    def train(self, mode: bool = True) -> "SemiReferStudent":
        """Train the student; the teacher always stays in evaluation mode."""
        super().train(mode)
        self.teacher.eval()
        return self

    def forward(self, inputs: Any, data_samples: Any = None, mode: str = "tensor") -> Any:
        """Losses of a batch of both streams (``loss``), or what the predicting network says of a plain one."""
        if mode == "loss":
            return self.loss(inputs, data_samples)
        return getattr(self, self.predict_on)(inputs, data_samples, mode=mode)

    def loss(self, inputs: Mapping[str, Tensor], data_samples: Mapping[str, Sequence[Any]]) -> dict[str, Tensor]:
        """One step of mutual learning (SemiRES, section 3).

        Args:
            inputs: ``sup`` and ``unsup`` (the weak view), each [B, 3, H, W] normalised, of one size.
            data_samples: ``sup`` with ``gt_mask``, ``unsup`` without; each B ``ReferSample``.

        Returns:
            Weighted losses, and figures about the pseudo-labels under names without "loss".
        """
        if self.settings.unlabelled_weight == 0:  # not even the statistics of batches are to see unlabelled images
            output = self.student.segment(inputs["sup"], data_samples["sup"])
            return self.labelled_losses(output, data_samples["sup"], inputs["sup"])
        weak, unlabelled = inputs["unsup"], data_samples["unsup"]
        rng = np.random.default_rng([self.settings.seed, *self.step_key])
        with torch.autocast(weak.device.type, enabled=False):  # only what is learnt is in half precision
            labels, log = self.refined_labels(self.teacher_logits(weak, unlabelled), unlabelled, rng)
        learnt, unconfident = self._learnt(labels)
        log["pseudo/unconfident"] = float(unconfident)
        strong = self.strong_inputs(weak, unlabelled, torch.Generator().manual_seed(int(rng.integers(2**63))))
        outputs = self._outputs(inputs["sup"], strong, data_samples)
        losses = self.labelled_losses(outputs[0], data_samples["sup"], weak)
        losses |= self.unlabelled_losses(outputs[1], labels, learnt, weak)
        return losses | {name: weak.new_tensor(value) for name, value in log.items()}

    @torch.no_grad()
    def teacher_logits(self, inputs: Tensor, samples: Sequence[Any]) -> Tensor:
        """Logits [B, H, W] of object against background, of the weak view and the same sentences."""
        logits = self.teacher.upsampled(self.teacher.segment(inputs, samples), inputs)
        margins: Tensor = logits[:, OBJECT] - logits[:, BACKGROUND]  # their sigmoid is the softmax's second channel
        return margins

    def refined_labels(
        self, logits: Tensor, samples: Sequence[Any], rng: np.random.Generator
    ) -> tuple[list[ReferLabel], dict[str, float]]:
        """The pseudo-label of every unlabelled image, and what happened to them in numbers."""
        labels = [
            refer_label(
                image_logits,
                _view(sample, (logits.shape[1], logits.shape[2])),
                refiner=self.refiner,
                image_id=sample.img_id,
                image=self._image(sample),
                rng=rng,
            )
            for image_logits, sample in zip(logits, samples, strict=True)
        ]
        outcomes: Counter[str] = Counter(label.outcome for label in labels)
        log = {f"refiner/{name}": float(outcomes[name]) for name in OUTCOMES}
        log["pseudo/pwa_share"] = sum(label.weights is not None for label in labels) / len(labels)
        return labels, log | (self._quality(labels, samples) if self.settings.watch_quality else {})

    def strong_inputs(self, weak: Tensor, samples: Sequence[Any], generator: torch.Generator) -> Tensor:
        """The strong view of normalised weak views [B, 3, H, W], normalised: colours change, the geometry stays."""
        inner, sentences = self.data_preprocessor.data_preprocessor, [sample.sentence for sample in samples]
        mean, std = inner.mean, inner.std
        if self.settings.legacy_double_norm:
            # Released: normalised numbers are taken for shares of full brightness, and normalised as such.
            views = jittered(weak, sentences, self.jitter, generator=generator)
            return (views - mean / 255) / (std / 255)
        pixels = (weak * std + mean).round().clamp(0, 255).to(torch.uint8)
        return (jittered(pixels, sentences, self.jitter, generator=generator).float() - mean) / std

    def labelled_losses(self, output: ReferOutput, samples: Sequence[Any], like: Tensor) -> dict[str, Tensor]:
        """The mean over labelled images of what the student's output costs, by name."""
        targets = torch.stack([sample.gt_mask for sample in samples]).to(like.device).bool()
        has_target = torch.tensor([bool(sample.has_target) for sample in samples], device=like.device)
        weights = class_weight_map(targets, self.settings.class_weights)
        each = self._each(output, targets, has_target, weights)
        return {f"sup/{name}": self.settings.supervised_weight * value.mean() for name, value in each.items()}

    def unlabelled_losses(
        self, output: ReferOutput, labels: Sequence[ReferLabel], learnt: Tensor, like: Tensor
    ) -> dict[str, Tensor]:
        """What the student's output costs against pseudo-labels, mixed over images; ``learnt`` [B] bool."""
        settings = self.settings
        targets = torch.from_numpy(np.stack([label.mask for label in labels])).to(like.device)
        weights = torch.stack([self._weights(label) for label in labels]).to(like.device)
        matched = torch.tensor([label.outcome == "matched" for label in labels], device=like.device)
        # A sentence about an unlabelled image is taken to have its object: the teacher's empty mask proves nothing.
        each = self._each(output, targets, torch.ones_like(matched), weights)
        return {
            f"unsup/{name}": settings.unlabelled_weight
            * unlabelled_loss(value, matched, learnt.to(like.device), mix=settings.unsup_mix)
            for name, value in each.items()
        }

    def _each(self, output: ReferOutput, targets: Tensor, has_target: Tensor, weights: Tensor) -> dict[str, Tensor]:
        """Losses [B] by name; ``weights`` [B, H, W] hold the classes' too."""
        network, logits = self.student.network, self.student.upsampled(output, targets[:, None])
        pixels = pixel_cross_entropy(logits, targets, class_weights=None, pixel_weights=weights)
        others = network.auxiliary_losses(output, targets, has_target)
        return {"loss_mask": network.pixel_loss_weight * pixels} | {f"loss_{n}": value for n, value in others.items()}

    def _weights(self, label: ReferLabel) -> Tensor:
        settings, mask = self.settings, torch.from_numpy(label.mask)
        if label.weights is None:
            return class_weight_map(mask, settings.class_weights)
        return torch.from_numpy(label.weights) * class_weight_map(mask, settings.pwa_class_weights)

    def _outputs(
        self, labelled: Tensor, strong: Tensor, samples: Mapping[str, Sequence[Any]]
    ) -> tuple[ReferOutput, ReferOutput]:
        """What the student says of labelled images and of strong views."""
        if not self.settings.one_forward:
            return self.student.segment(labelled, samples["sup"]), self.student.segment(strong, samples["unsup"])
        output = self.student.segment(torch.cat([labelled, strong]), [*samples["sup"], *samples["unsup"]])
        return output.select(slice(None, len(labelled))), output.select(slice(len(labelled), None))

    def _learnt(self, labels: Sequence[ReferLabel]) -> tuple[Tensor, int]:
        """Which labels are learnt [B] bool, and how many are not, as the least confident."""
        sure = [
            self.confidence is None or label.confidence is None or self.confidence.keeps(label.confidence)
            for label in labels
        ]
        unwanted = {"dropped"} if self.settings.learn_empty else {"dropped", "empty"}
        wanted = [label.outcome not in unwanted for label in labels]
        return torch.tensor(sure) & torch.tensor(wanted), sure.count(False)

    def _quality(self, labels: Sequence[ReferLabel], samples: Sequence[Any]) -> dict[str, float]:
        """Mean IoU with the hidden ground truth before and after refinement, where it is known."""
        known = [
            (label, sample.hidden_truth.cpu().numpy())
            for label, sample in zip(labels, samples, strict=True)
            if "hidden_truth" in sample
        ]
        if not known:
            return {}
        return {
            "quality/teacher_iou": float(np.mean([mask_iou(label.own, truth) for label, truth in known])),
            "quality/refined_iou": float(np.mean([mask_iou(label.mask, truth) for label, truth in known])),
        }

    def _image(self, sample: Any) -> Any:
        """The canonical image where the refiner has to encode it, else None."""
        if self.embeddings is None or sample.img_id in self.embeddings:
            return None
        return read_image(sample.img_path)


def _view(sample: Any, size_hw: tuple[int, int]) -> View:
    """The view of a sample: the whole image, stretched; nothing is padded."""
    return View(torch.as_tensor(sample.homography_matrix), tuple(sample.ori_shape[:2]), size_hw, size_hw)
