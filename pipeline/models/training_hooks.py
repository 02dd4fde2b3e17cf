"""What MMEngine's runner lacks for us: a burn-in teacher, steps that are functions of their number, our AP."""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mmengine.device import get_device
from mmengine.dist import all_reduce, get_dist_info, is_distributed
from mmengine.evaluator import BaseMetric
from mmengine.hooks import Hook
from mmengine.model import MMDistributedDataParallel, is_model_wrapper, revert_sync_batchnorm
from mmengine.runner import IterBasedTrainLoop, Runner
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from pipeline.data.coco import CocoSet, load_coco, subset
from pipeline.errors import ConfigError, EnvironmentProblemError, PipelineError
from pipeline.evaluation.coco_ap import mask_ap
from pipeline.masks import rle
from pipeline.models.stop_hook import StopHook, begin_reading, save_step

AT_BURN_IN_END = ("copy", "keep")
_SHOWN = ("refiner/", "pseudo/", "quality/")
_DISTILLATION = ("loss_structural", "loss_feature")
"""A teacher's; a student's have a prefix."""

PROGRESS_FILE = "progress.log"


class BurnInEmaHook(Hook):
    """Teacher frozen for the burn-in, then an exponential moving average of the student.

    Eq: S4M/ema. ``teacher <- decay * teacher + (1 - decay) * student`` at the start of every step after the burn-in;
    buffers too, integer ones copied. At the end of the burn-in the teacher becomes the student (``copy``, as released)
    or stays what it is (``keep``).
    """

    def __init__(self, *, burn_in: int, decay: float = 0.9996, at_end: str = "copy") -> None:
        """Check the settings.

        Args:
            burn_in: Steps before the first update.
            decay: Of the average, in (0, 1).
            at_end: copy | keep.

        Raises:
            ConfigError: a value out of range.
        """
        if at_end not in AT_BURN_IN_END or not 0 < decay < 1 or burn_in < 0:
            raise ConfigError(
                "burn-in settings",
                expected=f"at_end in {AT_BURN_IN_END}, 0 < decay < 1, burn_in >= 0",
                got=f"at_end={at_end!r}, decay={decay}, burn_in={burn_in}",
            )
        self.burn_in, self.decay, self.at_end = burn_in, decay, at_end

    def before_train_iter(self, runner: Any, batch_idx: int, data_batch: Any = None) -> None:
        """Update the teacher before it looks at the batch."""
        model = _unwrapped(runner.model)
        if runner.iter == self.burn_in and self.at_end == "copy":
            update_average(model.teacher, model.student, decay=0.0)
        elif runner.iter > self.burn_in:
            update_average(model.teacher, model.student, decay=self.decay)


@torch.no_grad()
def update_average(teacher: nn.Module, student: nn.Module, *, decay: float) -> None:
    """Move a teacher towards a student of the same architecture. Eq: S4M/ema.

    Floating-point parameters and buffers are averaged; integer and boolean ones are copied (averaging them is the
    defect that corrupts Swin's position index in the released SemiRES). With ``decay`` 0 everything is copied.
    """
    current = student.state_dict()
    floating, sources = [], []
    for name, value in teacher.state_dict().items():
        if value.is_floating_point() and decay > 0:
            floating.append(value)
            sources.append(current[name])
        else:
            value.copy_(current[name])
    if floating:
        torch._foreach_lerp_(floating, sources, 1 - decay)  # Eq: S4M/ema


class BatchStatisticsHook(Hook):
    """Workers share the running statistics of plain batch norms, so that every worker has one and the same network.

    Gradients are averaged over workers, buffers are not: without this each worker would validate, and the first save,
    statistics of its own images. SyncBN has shared its own already; the buffers of other modules stay a worker's own.
    """

    priority = "HIGH"

    def after_train_iter(self, runner: Any, batch_idx: int, data_batch: Any = None, outputs: Any = None) -> None:
        """Average ``running_mean`` and ``running_var`` over the workers."""
        if not is_distributed():
            return
        for module in _unwrapped(runner.model).modules():
            if isinstance(module, _BatchNorm) and not isinstance(module, nn.SyncBatchNorm) and module.training:
                for statistic in (module.running_mean, module.running_var):
                    if statistic is not None:
                        all_reduce(statistic, op="mean")


class StepSeedHook(Hook):
    """Seed torch and tell the model its step: a resumed run draws what an uninterrupted one draws."""

    priority = "VERY_HIGH"

    def __init__(self, *, seed: int) -> None:
        self.seed = seed

    def before_train_iter(self, runner: Any, batch_idx: int, data_batch: Any = None) -> None:
        """Make the step's randomness a function of (seed, step, worker)."""
        rank, _ = get_dist_info()
        key = (runner.iter, rank)
        torch.manual_seed(int(np.random.SeedSequence([self.seed, *key]).generate_state(1)[0]))
        model = _unwrapped(runner.model)
        if hasattr(model, "step_key"):
            model.step_key = key


class ProgressHook(Hook):
    """One line every few steps: losses, refiner outcomes, speed, time left; on the console and in a file of the run."""

    priority = "VERY_LOW"

    def __init__(self, *, interval: int) -> None:
        self.interval = interval
        self._mark = (0.0, 0)
        self._val_began = 0.0

    def before_train(self, runner: Any) -> None:
        """Start the clock."""
        self._mark = (time.monotonic(), runner.iter)

    def before_val(self, runner: Any) -> None:
        """Stop the clock: a validation is no step, and would be taken for many of them."""
        self._val_began = time.monotonic()

    def after_val(self, runner: Any) -> None:
        """Let the clock go on."""
        began, step = self._mark
        self._mark = (began + time.monotonic() - self._val_began, step)

    def after_train_iter(self, runner: Any, batch_idx: int, data_batch: Any = None, outputs: Any = None) -> None:
        """Print on the first worker."""
        step = runner.iter + 1
        if get_dist_info()[0] or (step % self.interval and step != runner.max_iters):
            return
        now = time.monotonic()
        seconds = (now - self._mark[0]) / max(step - self._mark[1], 1)
        self._mark = (now, step)
        shown = {n: float(v) for n, v in (outputs or {}).items() if _is_shown(n)}
        text = "  ".join(f"{name} {value:.3g}" for name, value in shown.items())
        minutes, rest = divmod(round(seconds * (runner.max_iters - step)), 60)
        line = f"step {step}/{runner.max_iters}  {text}  {seconds:.2f} s/step  ETA {minutes}:{rest:02d}"
        tell_progress(runner, line)


def _is_shown(name: str) -> bool:
    return name == "loss" or name.startswith(_SHOWN) or name.rpartition("/")[2] in _DISTILLATION


def tell_progress(runner: Any, line: str) -> None:
    """A line on the console and in a file of the run; Ray's workers are heard through the file."""
    print(line, flush=True)
    with Path(runner.work_dir, PROGRESS_FILE).open("a") as file:
        file.write(f"{line}\n")


def _unwrapped(model: Any) -> Any:
    return model.module if is_model_wrapper(model) else model


class TrainingRunner(Runner):
    """MMEngine's runner, which also trains in several processes on CPUs."""

    def dump_config(self) -> None:
        """Nothing: it would write over the resolved config, which says what was asked for."""

    def wrap_model(self, model_wrapper_cfg: Any, model: nn.Module) -> nn.Module:
        """Move a model to its device and wrap it where there is a process group.

        mmengine names the GPU of the local rank, which fails on CPUs, and where a process sees other GPUs than its
        rank's number says.
        """
        if not is_distributed():
            return super().wrap_model(model_wrapper_cfg, model)
        on_gpu = get_device() == "cuda"
        if not on_gpu:
            model = revert_sync_batchnorm(model)  # torch has it on GPUs only; BatchStatisticsHook shares on CPUs
        return MMDistributedDataParallel(
            module=model.to(get_device()),
            device_ids=[torch.cuda.current_device()] if on_gpu else None,
            broadcast_buffers=False,
            find_unused_parameters=bool(self.cfg.get("find_unused_parameters", False)),
        )

    @staticmethod
    def build_dataloader(*args: Any, **kwargs: Any) -> Any:
        """mmengine's, whose processes leave signals to this one."""
        built = Runner.build_dataloader(*args, **kwargs)
        built.worker_init_fn = partial(begin_reading, built.worker_init_fn)
        return built

    def build_val_loop(self, loop: Any) -> Any:
        """Build the validation, whose labels are those that are taught, in whatever order its file names them."""
        built = super().build_val_loop(loop)
        taught = getattr(self.train_dataloader.dataset, "metainfo", {}).get("classes")
        for metric in built.evaluator.metrics:
            if isinstance(metric, MaskApMetric) and taught:
                metric.use_classes(taught)
        return built


class StreamLoop(IterBasedTrainLoop):
    """MMEngine's iteration loop over a stream that starts at any step: resuming does not read skipped data."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.dataloader_iterator = _StreamIterator(self.dataloader, before_failure=self._keep_steps)
        self._stop = StopHook()
        for hook in (RepeatedValidationHook(), self._stop):
            self.runner.register_hook(hook)

    def run(self) -> nn.Module:
        """Train; a signal ends it after the step in which it comes.

        Raises:
            EnvironmentProblemError: a process that reads images was killed.
            PipelineError: images or stores cannot be read.
        """
        try:
            with self._stop:
                model: nn.Module = super().run()
        except RuntimeError as error:
            if not str(error).startswith("DataLoader worker"):
                raise
            raise EnvironmentProblemError(
                "a process that reads images has ended",
                got=" ".join(str(error).split()),
                fix="see the machine's memory, /dev/shm too; --resume goes on from the last checkpoint, with fewer of "
                "them at will: --cfg-options train_dataloader.num_workers=0",
            ) from error
        return model

    def _keep_steps(self) -> None:
        """Save what was learnt where the next images cannot be had; of several workers one alone cannot."""
        if self.iter > 0 and not is_distributed():
            print(f"stopped after step {self.iter}; saved {save_step(self.runner, self.iter)}", flush=True)


class RepeatedValidationHook(Hook):
    """A run that goes on from a step that is validated begins with this validation.

    A step's checkpoint is written before its validation, so that nothing says whether that was ever finished. Done
    again it gives the same figures; left out it would cost the best checkpoint, or the figures of the last step. It
    comes after all other hooks, which the checkpoint's own makes itself ready for.
    """

    priority = "LOWEST"

    def before_train(self, runner: Any) -> None:
        """Validate before the first step, or instead of one after the last."""
        loop = runner.train_loop
        if runner.val_loop is None or loop.iter == 0 or loop.iter < loop.val_begin:
            return
        if loop.iter % loop.val_interval == 0 or loop.iter >= loop.max_iters:
            runner.val_loop.run()


class _StreamIterator:
    """Iterates a dataloader whose sampler knows ``first_step``."""

    def __init__(self, dataloader: Any, *, before_failure: Callable[[], None] = lambda: None) -> None:
        self._dataloader = dataloader
        self._before_failure = before_failure
        self._iterator: Iterator[Any] | None = None

    def skip_iter(self, num_steps: int) -> None:
        """Start ``num_steps`` later."""
        self._dataloader.sampler.first_step = num_steps
        self._iterator = None

    def __next__(self) -> Any:
        if self._iterator is None:
            self._iterator = iter(self._dataloader)
        try:
            return next(self._iterator)
        except PipelineError:
            self._before_failure()
            raise


class MaskApMetric(BaseMetric):
    """COCO mask AP of this project's evaluator, as an mmengine metric."""

    default_prefix = "coco"

    def __init__(
        self, *, annotation_file: str, image_root: str, class_names: Sequence[str] | None = None, **kwargs: Any
    ) -> None:
        super().__init__(**kwargs)
        self._files = Path(annotation_file), Path(image_root)
        self._names = class_names

    @cached_property
    def _coco(self) -> CocoSet:
        return load_coco(*self._files, class_names=self._names)

    def use_classes(self, names: Sequence[str]) -> None:
        """Take label k for class ``names[k]``, unless the config names the classes itself.

        Raises:
            ConfigError: a class that the annotation file does not have.
        """
        if self._names is None:
            self._names = tuple(names)
        self._coco  # noqa: B018  (a wrong file is told before the training, not after it)

    def process(self, data_batch: Any, data_samples: Sequence[Mapping[str, Any]]) -> None:
        """Collect detections as COCO results, with the image they are of."""
        for sample in data_samples:
            self.results.append((int(sample["img_id"]), detections(sample, self._coco)))

    def compute_metrics(self, results: list[tuple[int, list[dict[str, Any]]]]) -> dict[str, float]:
        """AP, AP50, AP75, AR100 in [0, 1], over the images that were seen: broken ones were left out, and named."""
        seen = subset(self._coco, (image_id for image_id, _ in results))
        figures = mask_ap(seen, [entry for _, entries in results for entry in entries])
        named = {"mask_AP": figures.ap, "mask_AP50": figures.ap50, "mask_AP75": figures.ap75, "AR100": figures.ar100}
        return {name: float(value or 0.0) for name, value in named.items()}


def detections(sample: Mapping[str, Any], coco: CocoSet) -> list[dict[str, Any]]:
    """COCO results entries of one predicted sample (masks [N, H, W] at canonical size)."""
    predicted = sample["pred_instances"]
    masks = predicted["masks"].cpu().numpy().astype(bool)
    codes = rle.encode_many(masks) if len(masks) else []
    return [
        {
            "image_id": int(sample["img_id"]),
            "category_id": coco.categories[int(label)].category_id,
            "segmentation": code,
            "score": float(score),
        }
        for code, label, score in zip(codes, predicted["labels"].tolist(), predicted["scores"].tolist(), strict=True)
        if rle.area(code) > 0
    ]
