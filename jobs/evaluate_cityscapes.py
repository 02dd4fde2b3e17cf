"""What ``evaluate`` adds where a config's evaluator is Cityscapes': its average precision beside COCO's."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pipeline.data.cityscapes import load_void
from pipeline.data.coco import CocoSet
from pipeline.evaluation.cityscapes_ap import cityscapes_ap
from pipeline.evaluation.results import Results

_EVALUATOR = "CityscapesApMetric"


def is_cityscapes(config: Any) -> bool:
    """Whether a config validates with ``CityscapesApMetric``."""
    kind = dict(config.get("val_evaluator") or {}).get("type")
    return str(getattr(kind, "__name__", kind)).rpartition(".")[2] == _EVALUATOR


def cityscapes_figures(annotation_file: Path, coco: CocoSet, detections: Results) -> dict[str, object]:
    """Cityscapes' figures of detections, for JSON.

    Args:
        annotation_file: The converted file that ``coco`` was loaded from.
        coco: The images that count.
        detections: COCO results of these images.

    Raises:
        AnnotationError: a file without void regions, or results that do not fit the images.
    """
    return cityscapes_ap(coco, load_void(annotation_file, coco), detections).as_dict()


def cityscapes_lines(figures: Mapping[str, Any]) -> list[str]:
    """A table of AP and AP50, per class too."""
    classes = figures["per_class"]
    width = max(len("cityscapes"), *(len(name) for name in classes))
    rows = [("cityscapes", figures["ap"], figures["ap50"])]
    rows += [(name, ap, figures["per_class50"][name]) for name, ap in classes.items()]
    told = [f"{name:{width}}  {_shown(ap)}  {_shown(ap50)}" for name, ap, ap50 in rows]
    return [f"{'':{width}}  {'AP':>6}  {'AP50':>6}", *told]


def _shown(value: float | None) -> str:
    return f"{'-':>6}" if value is None else f"{value:6.4f}"
