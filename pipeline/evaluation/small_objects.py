"""The smallest objects of a set: which expressions SemiRES' table 9 is about.

The paper orders "the samples" of each split by the area of the true mask and takes the first 5 or 10 %. What it leaves
open is settled here, and each choice can be changed: a sample is an expression (an evaluation sample of the released
code; an object with many sentences weighs more), the area is in native pixels, ties go by ref_id, the count is the
floor of the share. Only the evaluation is narrowed; nothing is trained on small objects alone.
"""

from dataclasses import dataclass
from typing import Literal

from pipeline.data.referring.sets import ReferSet
from pipeline.data.splits import labelled_count
from pipeline.errors import ConfigError, InputError

_UNITS, _AREAS = ("expression", "object"), ("native", "square")


@dataclass(frozen=True)
class SmallObjectProtocol:
    """The choices that table 9 leaves open."""

    unit: Literal["expression", "object"] = "expression"
    """What there are 5 % of."""
    area: Literal["native", "square"] = "native"
    """Pixels of the image itself | share of the image, which orders as pixels do once all are one square."""

    def __post_init__(self) -> None:
        """Refuse other choices (ConfigError)."""
        for name, choices in (("unit", _UNITS), ("area", _AREAS)):
            if getattr(self, name) not in choices:
                raise ConfigError("small objects", where=name, expected=choices, got=getattr(self, name))


DEFAULT_PROTOCOL = SmallObjectProtocol()


def smallest_objects(
    refer_set: ReferSet, percent: float, protocol: SmallObjectProtocol = DEFAULT_PROTOCOL
) -> frozenset[tuple[int, int]]:
    """Expressions of the smallest objects.

    Args:
        refer_set: One split, with masks; expressions without a target do not count.
        percent: Above 0, at most 100 (paper: 5 and 10). At least one expression or object is taken.
        protocol: What is ordered, and by which area.

    Returns:
        (ref_id, sentence_id) of each.

    Raises:
        InputError: percent out of range, or no object with a mask.
    """
    areas = []
    for thing in refer_set.objects:
        if thing.annotation_ids:
            image = refer_set.coco.by_id[thing.image_id]
            whole = image.height * image.width if protocol.area == "square" else 1
            areas.append((refer_set.truth_area(thing) / whole, thing.ref_id, thing))
    if not areas:
        raise InputError("no object with a mask", where=refer_set.coco.image_root, fix="read the masks of the set")
    areas.sort(key=lambda entry: entry[:2])
    if protocol.unit == "object":
        areas = areas[: labelled_count(len(areas), percent)]
    pairs = [(ref_id, sentence.sentence_id) for _, ref_id, thing in areas for sentence in thing.sentences]
    return frozenset(pairs if protocol.unit == "object" else pairs[: labelled_count(len(pairs), percent)])
