"""A training one step at a time, for benches and step-time tables: built as the commands build it, then stepped."""

import pipeline.models.mmcv_ops  # noqa: F401  isort: skip  (before mmdet)
import uuid
from pathlib import Path
from typing import Any

from mmengine.config import Config
from mmengine.hooks import Hook

from jobs.config_files import PlainConfig, load_config
from jobs.training.devices import use_device
from jobs.training.runs import check, has_teacher, quieten, read_training_config
from jobs.training.starting_weights import initialise
from pipeline.images import read_image
from pipeline.models.training_hooks import TrainingRunner


def demo_config(path: Path, demo: Path, *, further: tuple[str, ...] = ()) -> Config:
    """A training config of the embedded scenes on the data, store and teacher of a finished demo.

    A student's teacher is averaged from its first step on, as it is after the burn-in.

    Args:
        path: Of configs/teacher or configs/student, or a copy.
        demo: Folder of ``s4m-pipeline demo``.
        further: Overrides, ``key=value``.

    Raises:
        ConfigError: an unknown key, or no training config.
    """
    there = load_config(path)._cfg_dict
    wanted = {
        "data_root": demo / "scenes",
        "store": demo / "store",
        "teacher_checkpoint": demo / "teacher_structural",
        "burn_in": 0,
        "log_interval": 100_000,
    }
    options = [f"{key}={value}" for key, value in wanted.items() if there.get(key) is not None]
    return read_training_config(path, [*options, *further])


class Stepper:
    """A training as its command starts it; every :meth:`step` is one iteration of the same loop, hooks included.

    Validation and the saving of checkpoints are left out: they belong to no step.
    """

    def __init__(self, config: Config, work_dir: Path) -> None:
        """Check and build everything.

        Args:
            config: See ``read_training_config``.
            work_dir: Logs go there.

        Raises:
            PipelineError: see ``jobs.training.runs.check``.
        """
        quieten()
        check(config, where=work_dir)
        config = PlainConfig.of(config)
        config.work_dir, config.launcher = str(work_dir), "none"
        config.experiment_name = config.visualizer.name = f"{work_dir.name}_{uuid.uuid4().hex[:8]}"
        use_device(config)
        self.config, self.is_student = config, has_teacher(config)
        runner: Any = TrainingRunner.from_cfg(config)
        self.runner, self.model = runner, runner.model
        self.model.init_weights()
        initialise(self.model, config)
        self.loop = runner._train_loop = runner.build_train_loop(runner._train_loop)
        runner.optim_wrapper = runner.build_optim_wrapper(runner.optim_wrapper)
        if runner.param_schedulers is not None:
            runner.param_schedulers = runner.build_param_scheduler(runner.param_schedulers)
        for moment in ("before_run", "before_train", "before_train_epoch"):
            runner.call_hook(moment)
        runner.optim_wrapper.initialize_count_status(self.model, 0, self.loop.max_iters)
        self._outputs = _Outputs()
        runner.register_hook(self._outputs)

    def step(self) -> dict[str, float]:
        """One iteration: the next batch, forward, backward, update. Returns what is logged, the losses among it."""
        self.model.train()
        self.loop.run_iter(next(self.loop.dataloader_iterator))
        return self._outputs.values

    def fill_embeddings(self) -> None:
        """Give a student's cache of SAM's embeddings all unlabelled images: what its first pass over them leaves."""
        cache = getattr(self.model, "embeddings", None)
        if cache is None:
            return
        coco = self.loop.dataloader.dataset.unlabelled.dataset.coco
        for image in coco.images:
            cache(image.image_id, read_image(coco.path_of(image)))


class _Outputs(Hook):  # type: ignore[misc]
    """Keeps what the last step gave."""

    values: dict[str, float]

    def after_train_iter(self, runner: Any, batch_idx: int, data_batch: Any = None, outputs: Any = None) -> None:
        self.values = {name: float(value) for name, value in outputs.items()}
