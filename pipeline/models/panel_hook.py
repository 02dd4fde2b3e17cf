"""Pictures for TensorBoard every few hundred steps: a teacher's masks and what becomes of them, SAM's rows and ours.

They are made of what the step computes anyway. The step itself does not know: while it runs, a few of its functions
are replaced by ones that also remember what went in and came out. No random number is drawn.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from mmengine.dist import get_dist_info
from mmengine.hooks import Hook
from mmengine.model import is_model_wrapper
from torch import Tensor, nn

from pipeline.errors import ConfigError
from pipeline.models.image_panels import Image, heat_in_view, in_view, marked, masks_on, model_row, sheet, shrunk
from pipeline.models.mask2former import view_of

LABEL_PANEL, ROW_PANEL = "panels/teacher_refined_mixed", "panels/view_sam_model"
"""Tags; the last words name the columns."""
_BACKEND = "TensorboardVisBackend"
_STEPS = ("teacher_queries", "refined_labels", "mixed_samples")
"""Of the student."""


class PanelHook(Hook):
    """Draws a few images of every so many steps.

    A student's panel has a row for each unlabelled image: the weak view with the teacher's masks, with the refined
    masks, and what ARP made of it. A network that is distilled from a store has another, of labelled images: the view
    with a point, SAM's similarity to that point, and the network's.
    """

    priority = "LOW"

    def __init__(self, *, interval: int = 200, num_images: int = 3) -> None:
        """Check the settings.

        Args:
            interval: Steps between two panels; 0 draws none.
            num_images: Images on a panel, at most.

        Raises:
            ConfigError: a value out of range.
        """
        for name, value, least in (("panel_interval", interval, 0), ("num_images", num_images, 1)):
            if type(value) is not int or value < least:
                raise ConfigError("image panels", where=name, expected=f"a whole number, {least} or more", got=value)
        self.interval, self.num_images = interval, num_images
        self._recorded: Recorded | None = None

    def before_train_iter(self, runner: Any, batch_idx: int, data_batch: Any = None) -> None:
        """Listen, if this step is to be drawn."""
        is_due = self.interval > 0 and (runner.iter + 1) % self.interval == 0
        if is_due and get_dist_info()[0] == 0 and _writer(runner) is not None:
            self._recorded = Recorded(_unwrapped(runner.model))

    def after_train_iter(self, runner: Any, batch_idx: int, data_batch: Any = None, outputs: Any = None) -> None:
        """Draw what was heard."""
        if self._recorded is None:
            return
        recorded, self._recorded = self._recorded, None
        recorded.stop()
        panels = {LABEL_PANEL: label_panel(recorded, self.num_images), ROW_PANEL: row_panel(recorded, self.num_images)}
        for tag, picture in panels.items():
            if picture is not None:
                _writer(runner).add_image(tag, picture, runner.iter + 1)


class Recorded:
    """Arguments and results of a step's functions, by name, for as long as it listens; of each, the first call."""

    def __init__(self, model: nn.Module) -> None:
        """Begin to listen to a student with its teacher, or to a plain network."""
        self.model = model
        self.learner: Any = getattr(model, "student", model)
        self.calls: dict[str, tuple[tuple[Any, ...], Any]] = {}
        self.features: Tensor | None = None
        """[B, C, h, w] the map that is distilled, of the learner's first batch: the labelled one."""
        self._replaced: list[tuple[nn.Module, str]] = []
        for name in _STEPS if hasattr(model, "student") else ():
            self._replace(model, name)
        self._replace(self.learner, "loss")
        is_encoder = getattr(self.learner, "structural_feature", "decoder") == "encoder"
        source, self._place = (
            (self.learner.backbone, -1) if is_encoder else (self.learner.panoptic_head.pixel_decoder, 0)
        )
        self._handle = source.register_forward_hook(self._hear)

    def _replace(self, owner: nn.Module, name: str) -> None:
        function: Callable[..., Any] = getattr(owner, name)

        def listening(*args: Any, **kwargs: Any) -> Any:
            result = function(*args, **kwargs)
            self.calls.setdefault(name, (args, result))
            return result

        setattr(owner, name, listening)
        self._replaced.append((owner, name))

    def _hear(self, _module: nn.Module, _inputs: Any, output: Any) -> None:
        if self.features is None:
            self.features = output[self._place].detach()

    def stop(self) -> None:
        """Put everything back."""
        self._handle.remove()
        for owner, name in self._replaced:
            delattr(owner, name)


def label_panel(recorded: Recorded, num_images: int) -> Image | None:
    """Teacher's masks, refined masks and mixed sample of the first unlabelled images; None for a plain network."""
    if any(name not in recorded.calls for name in _STEPS):
        return None
    (inputs, _samples), queries = recorded.calls["teacher_queries"]
    labels, _log = recorded.calls["refined_labels"][1]
    mixed = recorded.calls["mixed_samples"][1]
    views = pixels(inputs[:num_images], recorded.model)
    return sheet(
        [
            [
                masks_on(view, in_view(query.logits, view.shape[:2])),
                masks_on(view, label.masks),
                masks_on(sample.image, sample.masks),
            ]
            for view, query, label, sample in zip(views, queries, labels, mixed, strict=False)
        ]
    )


def row_panel(recorded: Recorded, num_images: int) -> Image | None:
    """View, SAM's row and the network's row of the first labelled images; None where they carry no row of SAM."""
    if "loss" not in recorded.calls or recorded.features is None:
        return None
    inputs, samples = recorded.calls["loss"][0]
    rows = []
    for view_pixels, feature, sample in zip(
        pixels(inputs[:num_images], recorded.model), recorded.features, samples, strict=False
    ):
        if "sam_targets" not in sample or not len(sample.sam_targets.get("rows", ())):
            continue
        view, targets = view_of(sample.metainfo), sample.sam_targets
        wanted = targets.rows[0].float().cpu().numpy()
        found = model_row(feature, view, targets.cells[:1], wanted.shape)
        rows.append(
            [
                marked(shrunk(view_pixels), int(targets.cells[0]), wanted.shape, view),
                heat_in_view(wanted, view),
                heat_in_view(found, view),
            ]
        )
    return sheet(rows) if rows else None


def pixels(inputs: Tensor, model: nn.Module) -> list[Image]:
    """Images [H, W, 3] uint8 RGB of normalised inputs [B, 3, H, W]."""
    outer: Any = model.data_preprocessor
    inner = getattr(outer, "data_preprocessor", outer)
    values = (inputs.detach() * inner.std + inner.mean).round().clamp(0, 255).to(torch.uint8)
    return [np.ascontiguousarray(image) for image in values.permute(0, 2, 3, 1).cpu().numpy()]


def _writer(runner: Any) -> Any:
    """TensorBoard's side of the run's visualizer; None where the config has none."""
    return runner.visualizer.get_backend(_BACKEND)


def _unwrapped(model: Any) -> Any:
    return model.module if is_model_wrapper(model) else model
