"""Which images of a referring-expression set are labelled, in the split files of ``pipeline/data/splits.py``.

A split is drawn per image, so that all objects of an image are labelled or none is: an image whose masks are known
must not be called unlabelled for its other objects.
"""

import random
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Literal

from pipeline.data.referring.sets import ReferSet
from pipeline.data.splits import Split, draw_split, labelled_count, load_split, split_of
from pipeline.errors import ConfigError, InputError

Draw = Literal["nested", "published"]


def draw_refer_split(refer_set: ReferSet, *, percent: float, seed: int = 0, draw: Draw = "nested") -> Split:
    """Draw labelled images among those that the objects are in.

    Args:
        refer_set: One split of the expressions (``train``); masks are not needed.
        percent: Above 0, at most 100 (paper: 0.5, 1, 2, 5). The floor of it is taken, at least 1 image.
        seed: Of the draw; the published one has 0.
        draw: nested (``draw_split``: 1 % is inside 5 %) | published (as released with SemiRES: ``random.sample`` of
            the image ids in the order in which the expressions file first names them).

    Raises:
        ConfigError: an unknown draw.
        InputError: percent out of range, or no object.
    """
    if draw not in ("nested", "published"):
        raise ConfigError("unknown draw", expected="nested | published", got=draw)
    if not refer_set.objects:
        raise InputError("no referred object to draw from", where=refer_set.coco.image_root)
    if draw == "nested":
        return draw_split(refer_set.referred_images, percent=percent, seed=seed)
    ids = refer_set.image_ids
    chosen = random.Random(seed).sample(ids, labelled_count(len(ids), percent))
    return replace(split_of(refer_set.referred_images, chosen, percent=percent, seed=seed), draw="published")


def load_refer_split(path: Path, refer_set: ReferSet, *, source: Sequence[str | Path] = ()) -> Split:
    """Read a split of the images that the objects are in, or of all images of the annotation file.

    The latter is what ``s4m-pipeline split`` draws for instance segmentation: both tasks can share it. ``source`` as of
    ``load_split``.

    Raises:
        InputError: no split file, a damaged one, or one of other images.
    """
    return load_split(path, refer_set.referred_images, or_of=refer_set.coco, source=source)
