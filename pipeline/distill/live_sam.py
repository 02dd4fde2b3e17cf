"""SAM in the training step, on the augmented view: S4M's own way, and the measure of what precomputed targets lose.

The view is an image of its own here: SAM sees its pixels (without padding), and its grid covers what the view shows.
Slow: the encoder runs for every labelled image of every step, the decoder for every point.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from data_schemas.similarity import Features
from pipeline.distill.feature_loss import feature_loss
from pipeline.distill.self_similarity import View, features_at_cells, points_in_view, similarity_rows
from pipeline.distill.structural_loss import structural_loss
from pipeline.errors import ConfigError
from pipeline.sam.batches import BatchSize
from pipeline.sam.decoder_features import cells_of_points, features_at_points, rows_at_points
from pipeline.sam.interface import Precision, SamBackend
from pipeline.sam.sam2_backend import build_backend


@dataclass(frozen=True)
class LiveSamSettings:
    """``model.live_sam`` of a training's config."""

    name: str
    """``scenes-nano``, a published name such as ``sam2_hiera_large``, or the path of a checkpoint."""
    features: Features = "decoder"
    """What is compared: tokens of SAM's mask decoder, conditioned by each point, or of its image encoder."""
    config: str | None = None
    """Architecture of a local checkpoint."""
    device: str | None = None
    """``cpu``, ``cuda`` or ``cuda:n``; None: where the network is."""
    precision: Precision = "fp32"
    """``bf16`` needs CUDA."""
    prompts_per_batch: int = 64
    """Points decoded together; memory only."""
    channels: int = 256
    """C of SAM's tokens (SAM 2: 256, scenes-nano: 96); only feature matching needs it before SAM is loaded."""

    def __post_init__(self) -> None:
        """Refuse values out of range."""
        if self.features not in ("decoder", "encoder") or min(self.prompts_per_batch, self.channels) < 1:
            raise ConfigError(
                "settings of a live SAM out of range",
                where="live_sam",
                expected="features decoder | encoder, prompts_per_batch >= 1, channels >= 1",
                got=self,
            )


@dataclass(frozen=True)
class Shown:
    """One labelled image as the network saw it and as SAM is asked about it."""

    features: Tensor
    """[C, h, w] of the network, float32; covers the view's canvas."""
    view: View
    image: NDArray[np.uint8]
    """[H, W, 3] RGB: the view's pixels without padding."""
    points_xy: Tensor
    """[P, 2] float32 canonical pixels; those that the view does not show are left out."""


@dataclass(frozen=True)
class _Answer:
    """What SAM says at the points of one image that the view shows."""

    features: Tensor
    """[C, h, w] of the network."""
    view: View
    """The view as an image of its own."""
    grid_hw: tuple[int, int]
    cells: Tensor
    """[p] int64, flat cell of each point, on the network's device."""
    wanted: Tensor
    """[p, gh, gw] or [p, C]."""


class LiveSam:
    """The distillation losses against a SAM that is asked now.

    It is loaded at the first step: labelling and evaluation with the same config do without.
    """

    def __init__(self, settings: LiveSamSettings) -> None:
        self.settings = settings
        self._batch = BatchSize(settings.prompts_per_batch)
        self._backend: SamBackend | None = None

    def structural(self, batch: Sequence[Shown]) -> Tensor:
        """The structural loss of one image or more, see ``structural_loss``."""
        rows, targets, masks = [], [], []
        for answer in self._answers(batch, rows_at_points):
            row, mask = similarity_rows(answer.features, answer.view, answer.cells, answer.grid_hw)
            rows.append(row)
            masks.append(mask)
            targets.append(answer.wanted.flatten(1))
        return structural_loss(rows, targets, masks)

    def feature(self, batch: Sequence[Shown], projection: nn.Module) -> Tensor:
        """The feature loss of one image or more, see ``feature_loss``; ``projection`` goes to SAM's channels.

        Raises:
            ConfigError: SAM has another number of channels than the settings say.
        """
        found, targets = [], []
        for answer in self._answers(batch, features_at_points):
            channels = answer.wanted.shape[1]
            if channels != self.settings.channels:
                raise ConfigError(
                    "SAM has another number of channels",
                    where="live_sam.channels",
                    expected=channels,
                    got=self.settings.channels,
                    fix=f"set live_sam.channels={channels}",
                )
            sampled, _ = features_at_cells(answer.features, answer.view, answer.grid_hw)
            found.append(projection(sampled[answer.cells]))
            targets.append(answer.wanted)
        return feature_loss(found, targets)

    def _answers(self, batch: Sequence[Shown], read: Callable[..., Tensor]) -> Iterator[_Answer]:
        device = batch[0].features.device
        backend, settings = self.backend(device), self.settings
        grid = backend.grid_hw
        embeddings = backend.embed([shown.image for shown in batch])
        for shown, embedding in zip(batch, embeddings, strict=True):
            xy, is_shown = points_in_view(shown.points_xy.float(), shown.view)
            points_xy = xy[is_shown].cpu().numpy()
            cells = torch.from_numpy(cells_of_points(points_xy, embedding.size_hw, grid)).to(device)
            wanted = read(
                backend,
                embedding,
                points_xy,
                batch=self._batch,
                features=settings.features,
            )
            view = shown.view.as_image()
            yield _Answer(shown.features, view, grid, cells[:, 0] * grid[1] + cells[:, 1], wanted)

    def backend(self, network_device: torch.device) -> SamBackend:
        """The SAM, on the device of the settings or else of the network; loaded at the first call."""
        if self._backend is None:
            settings = self.settings
            device = settings.device or str(network_device)
            self._backend = build_backend(
                settings.name, device=device, config=settings.config, precision=settings.precision
            )
        return self._backend


def refuse_feature_matching_without_sam(distillation: str, live_sam: object) -> None:
    """SAM's features are not stored, only cosines of them.

    Raises:
        ConfigError: ``distillation`` is neither structural nor feature, or feature without a ``live_sam``.
    """
    if distillation not in ("structural", "feature"):
        raise ConfigError(
            "unknown distillation", where="model.distillation", expected="structural | feature", got=distillation
        )
    if distillation == "feature" and live_sam is None:
        raise ConfigError(
            "feature matching needs SAM in the training step",
            where="model.live_sam",
            expected="live_sam=dict(name=..., channels=...): a store holds cosines, not SAM's features",
            got=live_sam,
            fix="name a SAM in model.live_sam, or set model.distillation=structural",
        )
