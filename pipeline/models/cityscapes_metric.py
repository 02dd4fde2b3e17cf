"""Cityscapes' average precision as an mmengine metric, beside COCO's of the same detections."""

from functools import cached_property
from typing import Any

from pipeline.data.cityscapes import load_void
from pipeline.data.coco import subset
from pipeline.evaluation.cityscapes_ap import cityscapes_ap
from pipeline.masks import rle
from pipeline.models.training_hooks import MaskApMetric


class CityscapesApMetric(MaskApMetric):
    """For ``val_evaluator``, with the annotation file of ``s4m-pipeline convert-cityscapes``."""

    @cached_property
    def _void(self) -> dict[int, rle.Rle]:
        return load_void(self._files[0], self._coco)

    def use_classes(self, names: Any) -> None:
        """As :class:`MaskApMetric`; a file without void regions is refused before the training too."""
        super().use_classes(names)
        self._void  # noqa: B018

    def compute_metrics(self, results: list[tuple[int, list[dict[str, Any]]]]) -> dict[str, float]:
        """cityscapes_AP and cityscapes_AP50 in [0, 1], and COCO's figures."""
        seen = subset(self._coco, (image_id for image_id, _ in results))
        figures = cityscapes_ap(seen, self._void, [entry for _, entries in results for entry in entries])
        named = {"cityscapes_AP": figures.ap, "cityscapes_AP50": figures.ap50}
        return {name: float(value or 0.0) for name, value in named.items()} | super().compute_metrics(results)
