"""Answers to sentences as a JSON list: what ``pseudo-label`` writes of referring expressions, and ``evaluate`` reads.

Each entry has ``image_id``, ``ref_id``, ``sentence_id``, ``sentence``, ``segmentation`` (COCO run lengths at the
image's own size; a mask may have no pixel), ``score``, ``outcome`` and ``no_target`` (the probability that nothing is
meant, null where the network cannot tell). Readers need ``sentence_id`` and ``segmentation``.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from data_schemas.pseudo_labels import PseudoLabel
from pipeline.data.coco_problems import Problems
from pipeline.data.referring.sets import ReferSet
from pipeline.errors import AnnotationError, InputError
from pipeline.masks import rle

RESULTS, NETWORK = "results.json", "network.json"
"""Answers after refinement, and before, in a run directory of ``pseudo-label``."""


def as_answers(
    rows: Iterable[PseudoLabel], sentences: Mapping[int, tuple[int, str]], which: Literal["network", "refined"]
) -> list[dict[str, Any]]:
    """Entries of the masks before or after refinement.

    Args:
        rows: Whose ``category_id`` is the sentence's id.
        sentences: Sentence id -> object's ``ref_id`` and text.
        which: network (before refinement) | refined.
    """
    return [
        {
            "image_id": row.image_id,
            "ref_id": sentences[row.category_id][0],
            "sentence_id": row.category_id,
            "sentence": sentences[row.category_id][1],
            "segmentation": rle.Rle(size=[row.height, row.width], counts=getattr(row, f"{which}_rle")),
            "score": row.score,
            "outcome": row.outcome,
            "no_target": row.no_target,
        }
        for row in rows
    ]


@dataclass(frozen=True)
class Answer:
    """What a network or a refiner says of one sentence."""

    code: rle.Rle
    """At the image's own size; packed, because a split has ten thousand of them."""
    no_target: float | None = None
    """The probability that nothing is meant; None where it is not said."""


def read_answers(file: Path, refer_set: ReferSet) -> dict[int, Answer]:
    """Answers by sentence id.

    Args:
        file: A JSON list of answers.
        refer_set: The sentences; answers to others are not read.

    Raises:
        InputError: no such file, or no such list.
        AnnotationError: masks that do not fit their images, no probability, or two answers to a sentence (the first
            20).
    """
    images = {s.sentence_id: refer_set.coco.by_id[o.image_id] for o in refer_set.objects for s in o.sentences}
    answers: dict[int, Answer] = {}
    problems = Problems(file)
    for place, entry in enumerate(read_entries(file, what="list of answers")):
        sentence_id: Any = entry.get("sentence_id")
        where = f"answer {place}"
        image = images.get(sentence_id) if isinstance(sentence_id, int) else None
        if image is None:
            continue
        if sentence_id in answers:
            problems.add("two answers to a sentence", where, expected="one", got=f"sentence {sentence_id} again")
            continue
        try:
            code = rle.parse(entry.get("segmentation"), height=image.height, width=image.width, where=where)
            answers[sentence_id] = Answer(code, _no_target(entry, where))
        except AnnotationError as error:
            problems.add_error(error, where)
    problems.raise_if_any()
    return answers


def _no_target(entry: Mapping[str, Any], where: str) -> float | None:
    value = entry.get("no_target")
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= 1:
        raise AnnotationError("no_target is no probability", where=where, expected="0 to 1, or null", got=repr(value))
    return float(value)


def read_entries(file: Path, *, what: str) -> Sequence[Mapping[str, Any]]:
    """A JSON list of objects, unchecked; an InputError that says it is no ``what`` where it is anything else."""
    try:
        entries = json.loads(file.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise refused(file, str(error), what=what) from error
    if not isinstance(entries, list) or not all(isinstance(entry, Mapping) for entry in entries):
        raise refused(file, type(entries).__name__, what=what)
    return entries


def refused(path: Path, got: str, *, what: str) -> InputError:
    """The error for a path that is nothing that ``pseudo-label`` writes."""
    return InputError(
        f"no {what}",
        where=path,
        expected="a JSON list of results with their segmentation, as pseudo-label writes it, or its run directory",
        got=got,
        fix="s4m-pipeline pseudo-label CONFIG CHECKPOINT, or correct the path",
    )
