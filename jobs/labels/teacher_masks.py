"""A teacher's masks from files, each beside the object that it is about: what ``correction-stats`` counts."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from jobs.demo_pictures import read_labels
from jobs.labels.answers import NETWORK, read_entries, refused
from pipeline.data.coco import CocoSet
from pipeline.data.coco_problems import Problems
from pipeline.data.referring.sets import ReferSet
from pipeline.errors import AnnotationError, InputError
from pipeline.evaluation.correction_statistics import assigned_objects
from pipeline.evaluation.results import parse_results
from pipeline.masks import rle

_MASKS = "teacher's masks"


@dataclass(frozen=True)
class TaughtImage:
    """One image's pseudo-labels before refinement."""

    image_id: int
    teacher: NDArray[np.bool_]
    """[N, H, W] masks that are about a known object, at the image's size."""
    truth: NDArray[np.bool_]
    """[N, H, W] the object of each."""
    num_without_object: int = 0
    """Masks that share no pixel with any object, or answer what means nothing; they are not in ``teacher``."""


def instances(labels: Path, coco: CocoSet) -> tuple[Iterator[TaughtImage], int]:
    """A detector's masks, each beside the annotated object that it shares most with; crowds are no objects.

    Args:
        labels: Run directory of ``pseudo-label`` (the masks before refinement are taken), or COCO results.
        coco: The images with their ground truth; images that it does not have are refused.

    Returns:
        The images that have masks, and how many they are.

    Raises:
        InputError: neither of the two, or of other images.
        AnnotationError: results that do not fit the ground truth.
    """
    codes = _codes_of_run(labels, coco) if labels.is_dir() else _codes_of_results(labels, coco)
    return _instances(codes, coco), len(codes)


def _instances(codes: Mapping[int, Sequence[rle.Rle]], coco: CocoSet) -> Iterator[TaughtImage]:
    for image_id in sorted(codes):
        size = coco.by_id[image_id].height, coco.by_id[image_id].width
        teacher = _dense(codes[image_id], size)
        objects = _dense([entry.rle for entry in coco.annotations[image_id] if not entry.iscrowd], size)
        about, which = assigned_objects(teacher, objects)
        yield TaughtImage(image_id, teacher[about], objects[which], len(teacher) - len(about))


def _codes_of_run(folder: Path, coco: CocoSet) -> dict[int, list[rle.Rle]]:
    if not (folder / "manifest.json").is_file():
        raise refused(folder, "a folder without manifest.json", what=_MASKS)
    rows = read_labels(folder)
    unknown = sorted(set(rows) - set(coco.by_id))
    if unknown:
        raise InputError(
            "pseudo-labels of images that the set does not have",
            where=folder,
            expected=f"ids of the {len(coco.images)} images of --annotations",
            got=f"{unknown[:5]} ({len(unknown)} in all)",
            fix="give --annotations the file with the ground truth of the images that were labelled",
        )
    return {i: [rle.Rle(size=[r.height, r.width], counts=r.network_rle) for r in found] for i, found in rows.items()}


def _codes_of_results(file: Path, coco: CocoSet) -> dict[int, list[rle.Rle]]:
    codes: dict[int, list[rle.Rle]] = {}
    for detection in parse_results(file, coco):
        codes.setdefault(detection.image_id, []).append(detection.rle)
    return codes


def referred(results: Path, refer_set: ReferSet) -> tuple[Iterator[TaughtImage], int]:
    """A referring network's masks, each beside what its sentence is about; those that mean nothing are counted apart.

    Args:
        results: JSON list of {ref_id, segmentation}, one entry for a sentence; other keys are not read. Masks without
            a pixel count. Of a run directory of ``pseudo-label`` its masks before refinement are taken.
        refer_set: Objects with their masks.

    Returns:
        The images that have masks, and how many they are.

    Raises:
        InputError: no such file, or no such list.
        AnnotationError: unknown objects, or masks that do not fit their images (the first 20).
    """
    by_image: dict[int, list[tuple[rle.Rle, int]]] = {}
    objects = {thing.ref_id: thing for thing in refer_set.objects}
    file = results / NETWORK if results.is_dir() else results
    problems = Problems(file)
    for place, entry in enumerate(read_entries(file, what=_MASKS)):
        where, ref_id = f"result {place}", entry.get("ref_id")
        thing = objects.get(ref_id) if isinstance(ref_id, int) else None
        if thing is None:
            problems.add("unknown object", where, expected="the ref_id of an object", got=repr(entry.get("ref_id")))
            continue
        image = refer_set.coco.by_id[thing.image_id]
        try:
            code = rle.parse(entry.get("segmentation"), height=image.height, width=image.width, where=where)
        except AnnotationError as error:
            problems.add_error(error, where)
            continue
        by_image.setdefault(thing.image_id, []).append((code, thing.ref_id))
    problems.raise_if_any()
    return _referred(by_image, refer_set), len(by_image)


def _referred(by_image: Mapping[int, Sequence[tuple[rle.Rle, int]]], refer_set: ReferSet) -> Iterator[TaughtImage]:
    objects = {thing.ref_id: thing for thing in refer_set.objects}
    for image_id, found in sorted(by_image.items()):
        size = refer_set.coco.by_id[image_id].height, refer_set.coco.by_id[image_id].width
        about = [(code, objects[ref_id]) for code, ref_id in found if objects[ref_id].annotation_ids]
        truth = [refer_set.truth(thing) for _, thing in about]
        yield TaughtImage(
            image_id,
            _dense([code for code, _ in about], size),
            np.stack(truth) if truth else np.zeros((0, *size), bool),
            len(found) - len(about),
        )


def _dense(codes: Sequence[rle.Rle], size_hw: tuple[int, int]) -> NDArray[np.bool_]:
    return np.stack([rle.decode(code) for code in codes]) if codes else np.zeros((0, *size_hw), bool)
