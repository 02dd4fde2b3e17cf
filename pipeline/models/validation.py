"""Validation of a student run: both networks, because either may be the better one."""

from typing import Any

from mmengine.model import is_model_wrapper
from mmengine.runner import ValLoop

TEACHER_PREFIX = "teacher_"


class BothNetworksLoop(ValLoop):
    """Validates the student under the metric's own names, then its teacher under ``teacher_`` and those names.

    mmdet's ``TeacherStudentValLoop`` renames the student's figures too, so that a run with a teacher and one without
    would have no figure in common.
    """

    def run(self) -> dict[str, Any]:
        """Validate both; the figures of both go to the logs and to the hooks together."""
        self.runner.call_hook("before_val")
        self.runner.call_hook("before_val_epoch")
        self.runner.model.eval()
        metrics = dict(self._figures_of("student"))
        for name, value in self._figures_of("teacher").items():
            metric, _, figure = name.rpartition("/")
            metrics[f"{metric}/{TEACHER_PREFIX}{figure}" if metric else f"{TEACHER_PREFIX}{figure}"] = value
        self.runner.call_hook("after_val_epoch", metrics=metrics)
        self.runner.call_hook("after_val")
        return metrics

    def _figures_of(self, network: str) -> dict[str, Any]:
        """Go through the validation set with one of the networks."""
        model = self.runner.model.module if is_model_wrapper(self.runner.model) else self.runner.model
        before, model.semi_test_cfg["predict_on"] = model.semi_test_cfg["predict_on"], network
        try:
            for index, batch in enumerate(self.dataloader):
                self.run_iter(index, batch)
            figures: dict[str, Any] = self.evaluator.evaluate(len(self.dataloader.dataset))
        finally:
            model.semi_test_cfg["predict_on"] = before
        return figures
