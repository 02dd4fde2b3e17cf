"""Finished trainings, named on the command line, and the images that they are evaluated on."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mmengine.registry import DATASETS

from jobs.networks import open_config
from jobs.training.run_directory import RESOLVED
from jobs.training.starting_weights import newest_of
from pipeline.data.instance_dataset import InstanceDataset
from pipeline.errors import ConfigError


@dataclass(frozen=True)
class Run:
    """A finished training and what it is called."""

    name: str
    config: Any
    checkpoint: str

    @classmethod
    def parse(cls, argument: str) -> "Run":
        """Read ``NAME=RUN_DIR``.

        Raises:
            ConfigError: not of this form, or no run is there.
            CheckpointError: the run has no checkpoint or has not finished.
        """
        name, _, folder = argument.partition("=")
        if not (name and folder):
            raise ConfigError("which run, and its name?", expected='"S4M=RUN_DIR"', got=argument)
        return cls(name, open_config(Path(folder) / RESOLVED, []), newest_of(folder, setting="the run directory"))

    def evaluation_images(self) -> InstanceDataset:
        """The run's evaluation set with its ground truth.

        Raises:
            ConfigError: the run was not validated.
        """
        loader = self.config.get("val_dataloader")
        if not loader:
            raise ConfigError("the run has no evaluation images", where=self.name, fix="name one with a validation set")
        found: InstanceDataset = DATASETS.build({**dict(loader.dataset), "with_masks": True, "pipeline": []})
        return found


def refuse_other_images(runs: Sequence[Run], dataset: InstanceDataset) -> None:
    """ConfigError unless all runs are evaluated on the images of ``dataset``, the first one's."""
    for run in runs[1:]:
        other = run.evaluation_images()
        if other.coco.fingerprint != dataset.coco.fingerprint:
            raise ConfigError(
                "runs with different evaluation images or classes cannot be compared",
                where=run.name,
                expected=f"the {len(dataset)} images of {runs[0].name!r}, labelled alike",
                got=f"{len(other)} images, classes {', '.join(other.metainfo['classes'])}",
            )
