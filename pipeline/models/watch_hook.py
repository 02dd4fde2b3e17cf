"""How good are the pseudo-labels, and does the refiner help? Asked of the same few views throughout a training.

A step's own quality is that of its batch: other images every time, so that it tells little of the course of a run.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from mmengine.dist import get_dist_info
from mmengine.hooks import Hook
from mmengine.model import is_model_wrapper

from pipeline.errors import ConfigError
from pipeline.models.training_hooks import tell_progress

_FIRST = 2**30
"""Positions of the unlabelled stream that no training reaches: a stream is a function of its position."""
_SHOWN = ("quality/", "pseudo/")
_TOLD = ("_sq", "_ca", "pseudo/per_image")
"""On the console; TensorBoard has all."""


class WatchHook(Hook):
    """CA, SQ, precision and recall of the teacher's masks and of the refined ones, on a fixed watch set.

    CA is the share of right classes and SQ the mean IoU, both of the masks that lie on an object.

    The views are those of the unlabelled stream, whose images must carry ground truth, hidden from the losses; without
    any, only the number of pseudo-labels is told. Nothing here touches what is learnt.
    """

    priority = "LOW"

    def __init__(self, *, interval: int, num_images: int = 16) -> None:
        """Say when.

        Args:
            interval: Steps between two looks; 0: never.
            num_images: Views in the watch set.

        Raises:
            ConfigError: a value out of range.
        """
        for name, value, least in (("watch_interval", interval, 0), ("num_images", num_images, 1)):
            if type(value) is not int or value < least:
                raise ConfigError("watch set", where=name, expected=f"a whole number, {least} or more", got=value)
        self.interval, self.num_images = interval, num_images

    def after_train_iter(self, runner: Any, batch_idx: int, data_batch: Any = None, outputs: Any = None) -> None:
        """Look, on the first worker."""
        step = runner.iter + 1
        if self.interval == 0 or step % self.interval or get_dist_info()[0]:
            return
        figures = self.figures(runner)
        for name, value in figures.items():
            runner.visualizer.add_scalar(f"watch/{name}", value, step)
        told = (f"{name} {value:.3f}" for name, value in figures.items() if name.endswith(_TOLD))
        tell_progress(runner, f"watch {step}  " + "  ".join(told))

    @torch.no_grad()
    def figures(self, runner: Any) -> Mapping[str, float]:
        """``quality/teacher_ca`` and so on of all views together; figures without a matched pair are left out."""
        model = runner.model.module if is_model_wrapper(runner.model) else runner.model
        stream = runner.train_dataloader.dataset.unlabelled
        queries, samples = [], []
        for position in range(_FIRST, _FIRST + self.num_images):
            view = stream[position]
            packed = {"inputs": [view["inputs"]], "data_samples": [view["data_samples"]]}
            batch = model.data_preprocessor.data_preprocessor(packed, training=True)
            with torch.autocast(batch["inputs"].device.type, enabled=False):
                queries += model.teacher_queries(batch["inputs"], batch["data_samples"])
            samples += batch["data_samples"]
        _, log = model.refined_labels(queries, samples, np.random.default_rng(0))
        return {name: value for name, value in log.items() if name.startswith(_SHOWN)}
