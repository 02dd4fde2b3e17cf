"""COCO results lists, checked against the set they are about."""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from pipeline.data.coco import CocoSet
from pipeline.data.coco_problems import Problems
from pipeline.errors import AnnotationError, InputError
from pipeline.masks import rle


@dataclass(frozen=True)
class Detection:
    """One predicted instance, its references checked."""

    image_id: int
    category_id: int
    rle: rle.Rle
    score: float


Results = Sequence[Mapping[str, object]] | str | Path
"""COCO results ({image_id, category_id, segmentation, score} each), or the JSON file of such a list."""


def parse_results(results: Results, coco: CocoSet) -> list[Detection]:
    """Check a results list; every problem (the first 20) is told in one error.

    Args:
        results: the list, or its JSON file. An empty list is legal.
        coco: the set with the ground truth.

    Returns:
        Detections in the order of the list.

    Raises:
        InputError: no such file, or not a list of objects.
        AnnotationError: an image or category that the set does not have, a mask that does not fit its image, or a
            score that is no finite number.
    """
    source = Path(results) if isinstance(results, str | Path) else Path("results")
    entries = _read(source) if isinstance(results, str | Path) else results
    if not isinstance(entries, Sequence) or not all(isinstance(entry, Mapping) for entry in entries):
        raise InputError(
            "not a COCO results list",
            where=source,
            expected="a list of {image_id, category_id, segmentation, score}",
            got=type(entries).__name__,
            fix="pass the results file that `s4m-pipeline pseudo-label` or an evaluation wrote",
        )
    _refuse_other_images(entries, coco, where=source)
    problems = Problems(source)
    checked = [_detection(entry, f"result {place}", coco, problems) for place, entry in enumerate(entries)]
    problems.raise_if_any()
    return [detection for detection in checked if detection is not None]


def _read(path: Path) -> object:
    try:
        return json.loads(path.read_bytes())
    except FileNotFoundError as error:
        raise InputError("results file not found", where=path, fix="check the path") from error
    except (OSError, ValueError, RecursionError) as error:
        raise InputError("results file is not JSON", where=path, got=str(error), fix="write it again") from error


def _refuse_other_images(entries: Sequence[Mapping[str, object]], coco: CocoSet, *, where: Path) -> None:
    known = [isinstance(entry.get("image_id"), int) and entry["image_id"] in coco.by_id for entry in entries]
    unknown = [repr(entry.get("image_id")) for entry, is_known in zip(entries, known, strict=True) if not is_known]
    others = list(dict.fromkeys(unknown))
    if others:
        named = ", ".join(others[:5]) + (f" and {len(others) - 5} more" if len(others) > 5 else "")
        raise AnnotationError(
            "results with an unknown image",
            where=where,
            expected=f"ids of the {len(coco.images)} images of the set",
            got=f"{len(unknown)} of {len(entries)} entries, such as result {known.index(False)}, with the ids {named}",
            fix="name the set that these results are of (val_annotations; with val_part and split_file a part of it)",
        )


def _detection(entry: Mapping[str, object], where: str, coco: CocoSet, problems: Problems) -> Detection | None:
    before = len(problems.found)
    image_id, category_id, score = (entry.get(key) for key in ("image_id", "category_id", "score"))
    if not isinstance(category_id, int) or category_id not in coco.labels:
        expected = f"an id of the set's categories, {sorted(coco.labels)[:10]}"
        problems.add("unknown category", where, expected=expected, got=repr(category_id))
    if not isinstance(score, int | float) or not math.isfinite(score):
        problems.add("score is not a finite number", where, expected="a number", got=repr(score))
    image = coco.by_id[image_id]  # type: ignore[index]
    try:
        mask = rle.parse(entry.get("segmentation"), height=image.height, width=image.width, where=where)
    except AnnotationError as error:
        problems.add_error(error, where)
    if len(problems.found) > before:
        return None
    return Detection(image_id, category_id, mask, float(score))  # type: ignore[arg-type]
