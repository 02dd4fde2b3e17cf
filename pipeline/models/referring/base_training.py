"""Train ``refer-lavt-base`` and ``refer-rela-base``, the small networks every scenes run on expressions starts from.

They stand where ImageNet's Swin and the pretrained BERT stand in the papers: same architecture, other shape families,
other seeds, all labels. Beside the network's own losses there are a dice loss (objects are small) and auxiliary
heads that name colour and family of every pixel from the backbone's maps before the sentence is mixed in; they are
dropped at the end. The first stage has small scenes of few objects, whose steps are cheap. Every step draws from a
generator of its own, so that a resumed run is the same run.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from pipeline.errors import CheckpointError
from pipeline.models.base_training import semantic_loss
from pipeline.models.referring.base_scenes import (
    COLOUR_NAMES,
    FAMILY_NAMES,
    ReferBatch,
    ReferScenes,
    draw_refer_batch,
)
from pipeline.sam.nano_training import MatrixOptimizer, learning_rate

Report = Callable[[int, dict[str, float]], None]
NAMED_STAGES = (1, 2)
"""Stages of the backbone that the auxiliary heads read: strides 8 and 16."""


@dataclass(frozen=True)
class ReferStage:
    """One part of the schedule."""

    scenes: ReferScenes
    steps: int
    images: int
    """Per step."""
    group_share: float = 0.0
    """Of the sentences; they teach words faster than relations do."""


@dataclass(frozen=True)
class ReferBaseSettings:
    """What all stages share."""

    rate: float
    """Peak learning rate."""
    seed: int
    dice_weight: float = 1.0
    naming_weight: float = 1.0


class NamingHead(nn.Module):
    """Colour and family of every pixel, from two maps of the backbone."""

    def __init__(self, widths: tuple[int, int]) -> None:
        super().__init__()
        self.colour = nn.Conv2d(sum(widths), len(COLOUR_NAMES) + 1, 1)
        self.family = nn.Conv2d(sum(widths), len(FAMILY_NAMES) + 1, 1)

    def forward(self, finer: Tensor, coarser: Tensor) -> tuple[Tensor, Tensor]:
        """Logits of colours and of families, the last channel is background; both at the size of ``finer``."""
        upsampled = functional.interpolate(coarser, size=finer.shape[2:], mode="bilinear", align_corners=False)
        maps = torch.cat([finer, upsampled], dim=1)
        return self.colour(maps), self.family(maps)


class ReferBaseTrainer:
    """Model, data, optimizer and running average of one training."""

    def __init__(self, model: Any, stages: Sequence[ReferStage], settings: ReferBaseSettings) -> None:
        self.model, self.stages, self.settings = model, tuple(stages), settings
        widths = model.network.backbone.num_features
        self.naming = NamingHead((widths[NAMED_STAGES[0]], widths[NAMED_STAGES[1]]))
        self.optimizer = MatrixOptimizer([model, self.naming], weight_decay=0.02, betas=(0.9, 0.999))
        self.averaged = {name: value.detach().clone() for name, value in model.state_dict().items()}
        self.step = 0

    @property
    def num_steps(self) -> int:
        """Of all stages."""
        return sum(stage.steps for stage in self.stages)

    @property
    def stage(self) -> ReferStage:
        """The one that the next step belongs to."""
        ends = accumulate(stage.steps for stage in self.stages)
        return next(stage for stage, end in zip(self.stages, ends, strict=True) if self.step < end)

    def train(self, *, report: Report, save: Callable[[], None], every: int) -> None:
        """Train to the end; every so many steps report the averages since the last time, then save."""
        sums: dict[str, float] = {}
        self.model.train()
        while self.step < self.num_steps:
            for name, value in self.one_step().items():
                sums[name] = sums.get(name, 0.0) + value / every
            if self.step % every == 0:
                report(self.step, sums)
                save()
                sums = {}

    def one_step(self) -> dict[str, float]:
        """One step, a function of the seed, its number and the weights; returns losses by name."""
        settings, stage = self.settings, self.stage
        torch.manual_seed(int(np.random.SeedSequence([settings.seed, self.step]).generate_state(1)[0]))
        rng = np.random.default_rng([settings.seed, self.step])
        batch = draw_refer_batch(stage.scenes, rng, stage.images, group_share=stage.group_share)
        losses = self.losses(batch)
        total = torch.stack(list(losses.values())).sum()
        self.optimizer.step(total, learning_rate(self.step, self.num_steps, settings.rate))
        self._average(min(0.999, (1 + self.step) / (10 + self.step)))
        self.step += 1
        return {"loss": float(total.detach())} | {name: float(value.detach()) for name, value in losses.items()}

    def losses(self, batch: ReferBatch) -> dict[str, Tensor]:
        """Scalars by name, weighted."""
        model, stages = self.model, self.model.network.backbone.stages
        captured: list[Tensor] = []
        hooks = [
            stages[index].blocks[-1].register_forward_hook(lambda _module, _inputs, output: captured.append(output))
            for index in NAMED_STAGES
        ]
        images = normalised(model, batch.images)
        output = model.network(images, batch.sentences)
        for hook in hooks:
            hook.remove()
        logits = model.upsampled(output, images)
        has_target = torch.ones(len(images), dtype=torch.bool)
        losses = {name: each.mean() for name, each in model.losses_of(output, logits, batch.masks, has_target).items()}
        losses["dice"] = self.settings.dice_weight * dice_loss(logits, batch.masks)
        finer, coarser = (_as_map(tokens) for tokens in captured)
        colour, family = self.naming(finer, coarser)
        naming = semantic_loss(colour, batch.owners, batch.colours)
        naming = naming + semantic_loss(family, batch.owners, batch.families)
        losses["naming"] = self.settings.naming_weight * naming
        return losses

    def state(self) -> dict[str, Any]:
        """What :meth:`resume` needs: tensors and plain values only."""
        return {
            "settings": self._described(),
            "step": self.step,
            "model": self.model.state_dict(),
            "naming": self.naming.state_dict(),
            "averaged": self.averaged,
            "optimizer": [part.state_dict() for part in self.optimizer.parts],
        }

    def resume(self, state: Mapping[str, Any], *, where: Path) -> None:
        """Go on from a saved state.

        Raises:
            CheckpointError: it is of a training with other settings.
        """
        if state["settings"] != self._described():
            raise CheckpointError(
                "the unfinished training in this folder has other settings",
                where=where,
                expected=self._described(),
                got=state["settings"],
                fix="give its settings, another --out, or remove the file to start again",
            )
        self.step = int(state["step"])
        self.model.load_state_dict(state["model"])
        self.naming.load_state_dict(state["naming"])
        self.averaged = dict(state["averaged"])
        for part, saved in zip(self.optimizer.parts, state["optimizer"], strict=True):
            part.load_state_dict(saved)

    def _described(self) -> dict[str, Any]:
        """What a resumed training must share with this one."""
        stages = [[len(s.scenes.images), s.steps, s.images, s.group_share] for s in self.stages]
        return asdict(self.settings) | {"stages": stages}

    @torch.no_grad()
    def _average(self, decay: float) -> None:
        """Exponential moving average of the weights; integer tensors are copied."""
        for name, value in self.model.state_dict().items():
            if value.is_floating_point():
                self.averaged[name].lerp_(value, 1 - decay)
            else:
                self.averaged[name].copy_(value)


def dice_loss(logits: Tensor, masks: Tensor) -> Tensor:
    """One minus twice the overlap over the sum of both areas, mean over images; logits [B, 2, H, W]."""
    probability = logits.softmax(dim=1)[:, 1]
    overlap = 2 * (probability * masks).sum(dim=(1, 2))
    areas = probability.sum(dim=(1, 2)) + masks.sum(dim=(1, 2))
    return (1 - (overlap + 1) / (areas + 1)).mean()


def normalised(model: Any, images: Tensor) -> Tensor:
    """[B, 3, H, W] from 0 to 255, as the model's data preprocessor gives them."""
    prepare = model.data_preprocessor
    normal: Tensor = (images - prepare.mean) / prepare.std
    return normal


@torch.no_grad()
def held_out_iou(model: Any, scenes: ReferScenes, *, seed: int) -> dict[str, float]:
    """Overall IoU, mean IoU and the share of IoUs above 0.5 on three drawn sentences a scene, in [0, 1]."""
    overlap, union = [], []
    for index in range(3 * len(scenes.images)):
        batch = draw_refer_batch(scenes, np.random.default_rng([seed, index]), 1)
        inputs = normalised(model, batch.images)
        found = model.upsampled(model.network(inputs, batch.sentences), inputs).argmax(dim=1) == 1
        overlap.append((found & batch.masks).sum(dim=(1, 2)).double())
        union.append((found | batch.masks).sum(dim=(1, 2)).double())
    each = torch.cat(overlap) / torch.cat(union).clamp(min=1)
    overall = torch.cat(overlap).sum() / torch.cat(union).sum()
    return {"oiou": float(overall), "miou": float(each.mean()), "above_half": float((each > 0.5).double().mean())}


def seconds_left(started: float, first_step: int, step: int, steps: int) -> int:
    """Of a training that began at ``started`` (``time.monotonic``) with ``first_step``."""
    return round((time.monotonic() - started) / max(step - first_step, 1) * (steps - step))


def _as_map(tokens: Tensor) -> Tensor:
    """Tokens [B, side * side, C] of a square image to [B, C, side, side]."""
    side = round(tokens.shape[1] ** 0.5)
    return tokens.transpose(1, 2).unflatten(2, (side, side))
