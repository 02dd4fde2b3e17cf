"""The proposal library in the two forms that others write and read: COCO results, and SA-1B's folder of JSON files.

Masks travel as COCO run lengths; what is said about them beside (area, box) is worked out again from these on the way
in. COCO results know neither stability nor prompt: such proposals get ``NO_STABILITY`` and ``NO_POINT``.
"""

import math
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from data_schemas.manifest import ImageKey
from data_schemas.proposals import Proposal
from pipeline.errors import AnnotationError
from pipeline.masks import rle

Format = Literal["coco-results", "sa1b"]
NO_STABILITY = 0.0
NO_POINT = (-1.0, -1.0)
"""A place that no image has."""
_SCORES = {"coco-results": "score", "sa1b": "predicted_iou"}
_BIGGEST_SCORE = {"coco-results": 1.0, "sa1b": 1.1}
"""The first SAM's estimate of a mask's IoU is not bounded and goes a little above 1; it is taken as 1."""
_BOX_TOLERANCE = 1.0
"""Pixels: SAM's own boxes end at the last pixel, COCO's behind it."""


@dataclass
class Tally:
    """What was read, and what was put right."""

    masks: int = 0
    left_out_empty: int = 0
    """Masks without a pixel."""
    other_areas: int = 0
    """Masks with another area than was stated; the mask counts."""
    other_boxes: int = 0
    """The same of boxes, by more than a pixel."""
    capped_scores: int = 0
    images: set[int] = field(default_factory=set)
    """With masks."""

    def lines(self) -> list[str]:
        """For the user; what did not happen is not told."""
        notes = {
            "masks without a pixel were left out": self.left_out_empty,
            "stated areas differ from their masks, which count": self.other_areas,
            "stated boxes differ from their masks by more than a pixel; the masks count": self.other_boxes,
            "scores a little above 1 were taken as 1": self.capped_scores,
        }
        return [f"{self.masks} masks in {len(self.images)} images"] + [
            f"  {n} {text}" for text, n in notes.items() if n
        ]


def coco_entry(image_id: int, proposal: Proposal, category_id: int) -> dict[str, object]:
    """A proposal as an entry of a COCO results list."""
    return {
        "image_id": image_id,
        "category_id": category_id,
        "segmentation": _segmentation(proposal),
        "score": proposal.predicted_iou,
        "bbox": list(proposal.bbox_xywh),
        "area": proposal.area,
    }


def sa1b_document(image: ImageKey, proposals: Iterable[Proposal], *, first_id: int) -> dict[str, object]:
    """An image with its proposals as SA-1B has it; ``id`` counts on from ``first_id``."""
    annotations = [
        {
            "id": number,
            "segmentation": _segmentation(proposal),
            "bbox": list(proposal.bbox_xywh),
            "area": proposal.area,
            "predicted_iou": proposal.predicted_iou,
            "stability_score": proposal.stability_score,
            "crop_box": [0.0, 0.0, float(image.width), float(image.height)],
            "point_coords": [list(proposal.point_xy)],
        }
        for number, proposal in enumerate(proposals, start=first_id)
    ]
    about = {
        "image_id": image.image_id,
        "width": image.width,
        "height": image.height,
        "file_name": image.file_name,
    }
    return {"image": about, "annotations": annotations}


def read_proposal(
    values: Mapping[str, Any], image: ImageKey, form: Format, *, where: str, tally: Tally
) -> Proposal | None:
    """The reverse of both, for one mask; what is put right is counted in ``tally``.

    Args:
        values: An entry of a COCO results list, or of the annotations of an SA-1B file.
        image: That the mask belongs to.
        form: Which of the two.
        where: What to name in an error.
        tally: Is added to.

    Returns:
        The proposal; None where the mask has no pixel.

    Raises:
        AnnotationError: A mask that is malformed or of another size than its image, or a score out of range.
    """
    mask = rle.parse(values.get("segmentation"), height=image.height, width=image.width, where=where)
    score = _score(values, _SCORES[form], where, highest=_BIGGEST_SCORE[form])
    stability = NO_STABILITY
    if form == "sa1b" and "stability_score" in values:
        stability = _score(values, "stability_score", where)
    point = _point(values, where) if form == "sa1b" else NO_POINT
    area = rle.area(mask)
    if area == 0:
        tally.left_out_empty += 1
        return None
    box = rle.bbox_xywh(mask)
    tally.masks += 1
    tally.images.add(image.image_id)
    tally.capped_scores += score > 1
    tally.other_areas += "area" in values and values["area"] != area
    tally.other_boxes += "bbox" in values and not _is_box(values["bbox"], box)
    return Proposal(mask["counts"], image.height, image.width, area, box, min(score, 1.0), stability, point)


def repeated(proposals: Iterable[Proposal]) -> Proposal | None:
    """One that is there twice with the same scores and prompt, or None."""
    (found, times), *_ = [*Counter(proposals).most_common(1), (None, 0)]
    return found if times > 1 else None


def _segmentation(proposal: Proposal) -> dict[str, object]:
    return {"size": [proposal.height, proposal.width], "counts": proposal.rle_counts}


def _score(values: Mapping[str, Any], name: str, where: str, *, highest: float = 1.0) -> float:
    value = values.get(name)
    # NaN is not within the bounds either.
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= highest:
        got = repr(value) if name in values else f"no {name}"
        raise AnnotationError(f"{name} is not a score", where=where, expected="a number from 0 to 1", got=got)
    return float(value)


def _point(values: Mapping[str, Any], where: str) -> tuple[float, float]:
    points = values.get("point_coords")
    if not points and "point_coords" not in values:
        return NO_POINT
    if isinstance(points, list) and points and isinstance(points[0], list) and len(points[0]) == 2:
        x, y = points[0]
        if all(isinstance(v, int | float) and not isinstance(v, bool) and math.isfinite(v) for v in (x, y)):
            return float(x), float(y)
    raise AnnotationError("point_coords is not a point", where=where, expected="[[x, y]] in pixels", got=points)


def _is_box(stated: object, box: tuple[float, ...]) -> bool:
    if not isinstance(stated, list) or len(stated) != 4:
        return False
    if not all(isinstance(v, int | float) for v in stated):
        return False
    return all(abs(a - b) <= _BOX_TOLERANCE for a, b in zip(stated, box, strict=True))
