"""Train ``scenes-base``, the small Mask2Former every scenes run starts from.

It stands where ImageNet or COCO weights stand in the papers: same architecture, other shape families, other
seeds, all labels. Stage 0 teaches the backbone to tell single objects apart (as ImageNet does; from random weights
the detector's class layer learns nothing for thousands of steps), stage 1 trains on crops (cheap steps), stage 2 on
whole scenes; auxiliary dense heads on the mask features are dropped at the end.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from mmdet.structures import DetDataSample
from mmdet.structures.mask import BitmapMasks
from mmengine.structures import InstanceData
from torch import Tensor, nn

from pipeline.sam.nano_training import DenseHead, MatrixOptimizer, dense_loss, learning_rate
from pipeline.scenes.cache import SceneArrays

MIN_PIXELS_IN_CROP = 30


@dataclass(frozen=True)
class BaseStage:
    """One part of the schedule."""

    crop: int
    """Side of the square crop in pixels, a multiple of 32."""
    steps: int
    images: int
    learning_rate: float


class ObjectClassifier:
    """Stage 0: the backbone names single objects cut out of scenes."""

    side = 64
    """Pixels of a resized cut-out."""

    def __init__(self, model: Any, data: SceneArrays, seed: int) -> None:
        self.model, self.data = model, data
        self.random = np.random.default_rng([seed, 1])
        self.head = nn.Linear(model.panoptic_head.pixel_decoder.input_convs[0].conv.in_channels, model.num_classes)
        self.boxes = [_boxes(owner) for owner in data.owners]

    def train(self, steps: int, *, batch: int, report: Callable[[int, dict[str, float]], None]) -> None:
        """Cross entropy on ``batch`` cut-outs a step; reports loss and accuracy every 100 steps."""
        parameters = [*self.model.backbone.parameters(), *self.head.parameters()]
        optimizer = torch.optim.AdamW(parameters, lr=2e-3, weight_decay=0.02)
        loss_sum, correct = 0.0, 0
        for step in range(steps):
            for group in optimizer.param_groups:
                group["lr"] = learning_rate(step, steps, 2e-3)
            images, labels = self._draw(batch)
            logits = self.head(self.model.backbone(images)[-1].mean(dim=(2, 3)))
            loss = F.cross_entropy(logits, labels)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
            loss_sum, correct = loss_sum + float(loss.detach()), correct + int((logits.argmax(1) == labels).sum())
            if (step + 1) % 100 == 0:
                report(step + 1, {"loss": loss_sum / 100, "accuracy": correct / (100 * batch)})
                loss_sum, correct = 0.0, 0

    def _draw(self, batch: int) -> tuple[Tensor, Tensor]:
        """Cut-outs [B, 3, side, side] normalised, classes [B]."""
        images: list[Tensor] = []
        labels: list[int] = []
        while len(images) < batch:
            i = int(self.random.integers(len(self.boxes)))
            if not len(self.boxes[i]):
                continue
            k, top, left, bottom, right = self.boxes[i][int(self.random.integers(len(self.boxes[i])))]
            half = 0.5 * max(bottom - top, right - left) * self.random.uniform(1.1, 1.7)
            centre = np.array([left + right, top + bottom]) / 2 + self.random.uniform(-0.15, 0.15, 2) * half
            images.append(_augmented(self.random, _cut(self.data.images[i], centre, half, self.side)))
            labels.append(int(self.data.labels[i, k]))
        prepare = self.model.data_preprocessor
        return (torch.stack(images) - prepare.mean) / prepare.std, torch.tensor(labels)


def _boxes(owner: np.ndarray) -> list[tuple[int, int, int, int, int]]:
    """(instance, top, left, bottom, right) of the instances of one scene."""
    boxes = []
    for k in range(int(owner.max())):
        rows, columns = np.nonzero(owner == k + 1)
        if len(rows):
            boxes.append((k, int(rows.min()), int(columns.min()), int(rows.max()) + 1, int(columns.max()) + 1))
    return boxes


def _cut(image: np.ndarray, centre_xy: np.ndarray, half: float, side: int) -> np.ndarray:
    """A square of the scene, resized; beyond the border the edge pixels repeat."""
    scale = side / (2 * half)
    matrix = np.array([[scale, 0, side / 2 - scale * centre_xy[0]], [0, scale, side / 2 - scale * centre_xy[1]]])
    return np.asarray(cv2.warpAffine(image, matrix, (side, side), borderMode=cv2.BORDER_REPLICATE))


def _augmented(random: np.random.Generator, image: np.ndarray) -> Tensor:
    """Turned, mirrored and recoloured: [3, h, w] float32."""
    image = np.rot90(image, int(random.integers(4)))
    image = image[:, ::-1] if random.random() < 0.5 else image
    image = image[..., random.permutation(3)] if random.random() < 0.5 else image
    image = np.clip(image * random.uniform(0.8, 1.2, 3), 0, 255).astype(np.float32)
    return torch.from_numpy(np.ascontiguousarray(image.transpose(2, 0, 1)))


class BaseTrainer:
    """Model, data and random state of one training run."""

    def __init__(self, model: Any, data: SceneArrays, seed: int) -> None:
        self.model, self.data = model, data
        channels = model.panoptic_head.query_embed.weight.shape[1]
        self.dense_head = DenseHead(channels)
        self.class_head = nn.Conv2d(channels, model.num_classes + 1, 1)
        self.random = np.random.default_rng(seed)
        self.averaged = {k: v.detach().clone() for k, v in model.state_dict().items()}

    def draw_batch(self, stage: BaseStage) -> tuple[Tensor, list[DetDataSample], Tensor, Tensor]:
        """Images [B, 3, c, c] normalised, mmdet samples, owners [B, c, c], class of each owner [B, M]."""
        images: list[Tensor] = []
        owners: list[Tensor] = []
        samples: list[DetDataSample] = []
        classes: list[Tensor] = []
        side = self.data.images.shape[1]
        while len(images) < stage.images:
            i = int(self.random.integers(len(self.data.images)))
            top, left = self.random.integers(0, side - stage.crop + 1, 2)
            image = self.data.images[i, top : top + stage.crop, left : left + stage.crop]
            owner = self.data.owners[i, top : top + stage.crop, left : left + stage.crop]
            turns = int(self.random.integers(4))
            image, owner = np.rot90(image, turns), np.rot90(owner, turns)
            if self.random.random() < 0.5:
                image, owner = image[:, ::-1], owner[:, ::-1]
            if self.random.random() < 0.5:
                image = image[..., self.random.permutation(3)]
            sample = _sample(owner, self.data.labels[i])
            if sample is None:
                continue
            image = np.clip(image * self.random.uniform(0.8, 1.2, 3), 0, 255).astype(np.float32)
            images.append(torch.from_numpy(np.ascontiguousarray(image.transpose(2, 0, 1))))
            owners.append(torch.from_numpy(np.ascontiguousarray(owner)).long())
            samples.append(sample)
            classes.append(torch.from_numpy(self.data.labels[i].astype(np.int64)))
        batch = torch.stack(images)
        prepare = self.model.data_preprocessor
        return (batch - prepare.mean) / prepare.std, samples, torch.stack(owners), torch.stack(classes)

    def loss(self, stage: BaseStage) -> tuple[Tensor, dict[str, float]]:
        """Mask2Former's losses plus the dense auxiliary loss on the mask features."""
        images, samples, owners, classes = self.draw_batch(stage)
        captured: list[Tensor] = []
        decoder = self.model.panoptic_head.pixel_decoder
        handle = decoder.register_forward_hook(lambda _m, _i, output: captured.append(output[0]))
        losses = self.model.loss(images, samples)
        handle.remove()
        dense = dense_loss(self.dense_head(captured[0]), owners)
        semantic = semantic_loss(self.class_head(captured[0]), owners, classes)
        log = {name: float(losses[name].detach()) for name in ("loss_cls", "loss_mask", "loss_dice")}
        log |= {"loss_dense": float(dense.detach()), "loss_semantic": float(semantic.detach())}
        return sum(losses.values()) + dense + 2 * semantic, log

    @torch.no_grad()
    def average(self, decay: float) -> None:
        """Exponential moving average; integer tensors are copied."""
        for name, value in self.model.state_dict().items():
            if value.is_floating_point():
                self.averaged[name].lerp_(value, 1 - decay)
            else:
                self.averaged[name].copy_(value)


def semantic_loss(logits: Tensor, owners: Tensor, classes: Tensor) -> Tensor:
    """Class of every pixel, the background weighted low: else the class layer learns nothing for thousands of steps.

    Args:
        logits: [B, C + 1, h, w]; class C is the background.
        owners: [B, H, W], 0 is the background, k the k-th instance.
        classes: [B, M] class of instance k in column k - 1.
    """
    background = logits.shape[1] - 1
    small = F.interpolate(owners[:, None].float(), logits.shape[-2:], mode="nearest")[:, 0].long()
    lookup = F.pad(classes, (1, 0), value=background)  # [B, M + 1]
    target = torch.gather(lookup, 1, small.flatten(1)).view_as(small)
    weight = logits.new_ones(background + 1)
    weight[background] = 0.1
    return F.cross_entropy(logits, target, weight=weight)


def _sample(owner: np.ndarray, labels: np.ndarray) -> DetDataSample | None:
    """Ground truth of one crop; None if nothing large enough is in it."""
    sizes = np.bincount(owner.ravel(), minlength=len(labels) + 1)[1:]
    present = np.flatnonzero(sizes[: len(labels)] >= MIN_PIXELS_IN_CROP)
    if not len(present):
        return None
    height, width = owner.shape
    masks = np.stack([owner == k + 1 for k in present]).astype(np.uint8)
    sample = DetDataSample(
        metainfo={"img_shape": (height, width), "ori_shape": (height, width), "batch_input_shape": (height, width)}
    )
    sample.gt_instances = InstanceData(
        labels=torch.from_numpy(labels[present].astype(np.int64)), masks=BitmapMasks(masks, height, width)
    )
    return sample


def train_base_stage(trainer: BaseTrainer, stage: BaseStage, report: Callable[[int, dict[str, float]], None]) -> None:
    """Train one stage; ``report(step, averages)`` is called every 100 steps."""
    modules = [trainer.model, trainer.dense_head, trainer.class_head]
    optimizer = MatrixOptimizer(modules, weight_decay=0.02, betas=(0.9, 0.999))
    sums: dict[str, float] = {}
    for step in range(stage.steps):
        loss, log = trainer.loss(stage)
        optimizer.step(loss, learning_rate(step, stage.steps, stage.learning_rate))
        trainer.average(min(0.999, (1 + step) / (10 + step)))
        for name, value in {**log, "loss": float(loss.detach())}.items():
            sums[name] = sums.get(name, 0.0) + value
        if (step + 1) % 100 == 0:
            report(step + 1, {name: value / 100 for name, value in sums.items()})
            sums = {}


@torch.no_grad()
def recall_at_half(model: Any, data: SceneArrays, *, score_threshold: float = 0.5) -> float:
    """Share of instances found with the right class, a score above the threshold and mask IoU above 0.5."""
    found = total = 0
    prepare = model.data_preprocessor
    for image, owner, labels in zip(data.images, data.owners, data.labels, strict=True):
        tensor = torch.from_numpy(image).permute(2, 0, 1)[None].float()
        height, width = owner.shape
        meta = {"img_shape": (height, width), "ori_shape": (height, width), "batch_input_shape": (height, width)}
        sample = DetDataSample(metainfo=meta | {"scale_factor": (1.0, 1.0)})
        result = model.predict((tensor - prepare.mean) / prepare.std, [sample], rescale=False)[0].pred_instances
        keep = result.scores > score_threshold
        masks, classes = result.masks[keep].numpy(), result.labels[keep].numpy()
        for k in range(int(owner.max())):
            target = owner == k + 1
            union = (masks | target).sum((1, 2)) if len(masks) else np.zeros(0)
            hits = (masks & target).sum((1, 2)) > 0.5 * union if len(masks) else np.zeros(0, bool)
            found += bool((hits & (classes == labels[k])).any())
            total += 1
    return found / total
