"""A referring network as an MMEngine model: supervised loss, and masks in the view and in the canonical frame."""

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
from mmengine.model import BaseModel
from mmengine.registry import MODELS
from torch import Tensor

from pipeline.data.referring.sample import ReferSample
from pipeline.errors import ConfigError
from pipeline.masks.warp import warp_to_canonical
from pipeline.models.referring.interface import BACKGROUND, OBJECT, ReferOutput
from pipeline.models.referring.refer_losses import (
    CLASS_WEIGHTS,
    NORMALISATIONS,
    ClassWeights,
    Normalise,
    pixel_cross_entropy,
)

STRIDE = 32
"""Of the coarsest map; sides of images are multiples of it."""


class ReferSegmentor(BaseModel):
    """Teacher and student of SemiRES, and all of its burn-in and of supervised training."""

    def __init__(
        self,
        *,
        network: Mapping[str, Any],
        data_preprocessor: Mapping[str, Any] | None = None,
        class_weights: ClassWeights | None = CLASS_WEIGHTS,
        normalise: Normalise = "weights",
    ) -> None:
        """Build the network.

        Args:
            network: Config of a :class:`ReferNetwork`.
            data_preprocessor: Config of mmengine's ``ImgDataPreprocessor``: images of one size are stacked and
                normalised, never padded.
            class_weights: Of background and object pixels (LAVT: 0.9 and 1.1); None is 1 for both.
            normalise: What the loss of an image is divided by: the sum of its weights (LAVT) or its pixels.

        Raises:
            ConfigError: an unknown normalisation.
        """
        super().__init__(data_preprocessor=data_preprocessor)
        if normalise not in NORMALISATIONS:
            raise ConfigError(
                "unknown normalisation", where="model.normalise", expected=" | ".join(NORMALISATIONS), got=normalise
            )
        self.network = MODELS.build(dict(network))
        self.class_weights = None if class_weights is None else (float(class_weights[0]), float(class_weights[1]))
        self.normalise = normalise

    def forward(
        self, inputs: Tensor, data_samples: Sequence[ReferSample], mode: Literal["loss", "predict", "tensor"] = "tensor"
    ) -> Any:
        """What MMEngine calls.

        Args:
            inputs: [B, 3, H, W] normalised.
            data_samples: B, each with its sentence.
            mode: ``loss``: scalars by name. ``predict``: the samples with predictions, see :meth:`predict`.
                ``tensor``: logits [B, 2, H, W].

        Raises:
            ConfigError: images whose sides are no multiples of 32.
        """
        if mode == "loss":
            return self.loss(inputs, data_samples)
        if mode == "predict":
            return self.predict(inputs, data_samples)
        return self.upsampled(self.segment(inputs, data_samples), inputs)

    def segment(self, inputs: Tensor, data_samples: Sequence[ReferSample]) -> ReferOutput:
        """What the network says of B images [B, 3, H, W] and the sentences of their samples."""
        if inputs.shape[2] % STRIDE or inputs.shape[3] % STRIDE:
            raise ConfigError(
                "an image does not fit the network's strides",
                where="the size that the data pipeline resizes to",
                expected=f"multiples of {STRIDE}",
                got=tuple(inputs.shape[2:]),
            )
        output: ReferOutput = self.network(inputs, [sample.sentence for sample in data_samples])
        return output

    def upsampled(self, output: ReferOutput, inputs: Tensor) -> Tensor:
        """Logits [B, 2, H, W] of the views, float32."""
        logits: Tensor = self.network.upsample(output.logits.float(), (inputs.shape[2], inputs.shape[3]))
        return logits

    def loss(self, inputs: Tensor, data_samples: Sequence[ReferSample]) -> dict[str, Tensor]:
        """Cross entropy against ``gt_mask``, and what else the network learns from it."""
        output = self.segment(inputs, data_samples)
        targets = torch.stack([sample.gt_mask for sample in data_samples]).to(inputs.device)
        has_target = torch.tensor([bool(sample.has_target) for sample in data_samples], device=inputs.device)
        losses = self.losses_of(output, self.upsampled(output, inputs), targets, has_target)
        return {f"loss_{name}": each.mean() for name, each in losses.items()}

    def losses_of(self, output: ReferOutput, logits: Tensor, targets: Tensor, has_target: Tensor) -> dict[str, Tensor]:
        """All losses of labelled images, one value an image.

        Args:
            output: Of :meth:`segment`.
            logits: Its logits at the size of the images, [B, 2, H, W].
            targets: [B, H, W] bool.
            has_target: [B] bool.

        Returns:
            ``mask`` and the network's own by name, [B] each, weighted.
        """
        pixels = pixel_cross_entropy(logits, targets, class_weights=self.class_weights, normalise=self.normalise)
        weight = self.network.pixel_loss_weight
        return {"mask": weight * pixels, **self.network.auxiliary_losses(output, targets, has_target)}

    @torch.no_grad()
    def predict(self, inputs: Tensor, data_samples: Sequence[ReferSample]) -> Sequence[ReferSample]:
        """Masks.

        Returns:
            The samples with ``pred_view_mask`` [H, W] bool in the view, ``pred_mask`` [h, w] bool in the canonical
            frame, both on the CPU, and ``pred_no_target`` float: the probability that nothing is meant; of a network
            that cannot tell, 1 where its mask is empty, else 0. The masks do not depend on it.
        """
        output = self.segment(inputs, data_samples)
        logits = self.upsampled(output, inputs)
        margins = (logits[:, OBJECT] - logits[:, BACKGROUND]).cpu()
        no_target = no_target_probabilities(output)
        for index, (sample, margin) in enumerate(zip(data_samples, margins, strict=True)):
            mask = margin > 0
            sample.pred_view_mask = mask
            sample.pred_mask = in_canonical_frame(margin, sample)
            said = no_target[index]
            sample.set_field(float(not mask.any()) if said is None else said, "pred_no_target", dtype=float)
        return data_samples


def no_target_probabilities(output: ReferOutput) -> list[float | None]:
    """Of B sentences the probability that nothing is meant; None for each where the network cannot tell."""
    if output.no_target is None:
        return [None] * len(output.logits)
    found: list[float | None] = output.no_target.float().softmax(dim=1)[:, 1].tolist()
    return found


def in_canonical_frame(margin: Tensor, sample: ReferSample) -> Tensor:
    """Where object beats background, by sampling the logits' difference [H, W] of the view at canonical pixels."""
    maps, visible = warp_to_canonical(
        margin[None].numpy(),
        torch.as_tensor(sample.homography_matrix).numpy(),
        view_hw=tuple(sample.img_shape[:2]),
        canonical_hw=tuple(sample.ori_shape[:2]),
    )
    return torch.from_numpy((maps[0] > 0) & visible)
