"""Files of referring expressions: REFER's pickles, the same as JSON (gRefCOCO), and those of the embedded scenes.

Everything wrong with the objects that are asked for is told together, as of a COCO file.
"""

import json
import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from data_schemas.expressions import Expression
from pipeline.data.coco_entries import is_id
from pipeline.data.coco_problems import Problems
from pipeline.data.referring.safe_pickle import read_pickle, restored
from pipeline.errors import ConfigError, InputError

Format = Literal["refer", "scenes"]
Row = Mapping[str, object]
ALL = "all"
NO_TARGET = -1
"""``ann_id`` of an expression that means nothing in the image (gRefCOCO)."""
_LETTERED = ("testA", "testB", "testC")
_LOG = logging.getLogger(__name__)


@dataclass(frozen=True)
class Sentence:
    """One expression. A blank field of the file takes the other's text."""

    sentence_id: int
    text: str
    """REFER's ``sent``: lower case, cleaned; what is trained on."""
    raw: str
    """REFER's ``raw``: as it was written; what is evaluated on. The scenes have one text for both."""


@dataclass(frozen=True)
class ReferredObject:
    """What one or several sentences mean in one image."""

    ref_id: int
    image_id: int
    annotation_ids: tuple[int, ...]
    """None: nothing in the image is meant; several: all of them are (gRefCOCO)."""
    split: str
    sentences: tuple[Sentence, ...]


@dataclass(frozen=True)
class LeftOut:
    """What was read and is not used, and why."""

    blank_sentences: int = 0
    """Without a letter in either field."""
    objects_without_sentence: int = 0
    """All of whose sentences were blank."""
    objects_without_pixel: int = 0
    """Whose annotations cover no pixel."""


NOTHING_LEFT_OUT = LeftOut()


def read_objects(path: Path, *, split: str, file_format: Format | None = None) -> tuple[list[ReferredObject], LeftOut]:
    """Read the objects of one split.

    Args:
        path: ``.p`` (REFER's pickle) or ``.json`` (a list of refs, or of ``data_schemas.expressions``).
        split: As the file names it; ``all`` takes everything. As in REFER, ``testA`` is whatever test split has the
            letter A (``testAB``), and ``test`` every split whose name holds it.
        file_format: refer | scenes; None tells them apart.

    Returns:
        Objects in the order of the file, and what was left out.

    Raises:
        AnnotationError: the first 20 of all problems of the split together.
        ConfigError: a split that the file does not have, with those that it has.
        InputError: no such file, or no file of expressions.
    """
    path = Path(path)
    rows = _rows(path)
    known_format = file_format or ("scenes" if "sentence" in rows[0] else "refer")
    there = dict.fromkeys(str(row.get("split")) for row in rows)
    chosen = [row for row in rows if in_split(str(row.get("split")), split)]
    if not chosen:
        expected = f"one of {sorted(there)}, or {ALL!r}"
        raise ConfigError("unknown split", where=path, expected=expected, got=split, fix="correct split in the config")
    problems = Problems(path)
    objects = _scene_objects(chosen, problems) if known_format == "scenes" else _refer_objects(chosen, problems)
    problems.raise_if_any()
    return _without_blanks(objects, path)


def in_split(name: str, wanted: str) -> bool:
    """Whether an object whose split is called ``name`` is of the split ``wanted``; see :func:`read_objects`."""
    if wanted in _LETTERED:
        return name.startswith("test") and wanted[-1] in name[len("test") :]
    return wanted == ALL or ("test" in name if wanted == "test" else name == wanted)


def _rows(path: Path) -> list[Row]:
    content = read_pickle(path) if path.suffix in (".p", ".pkl") else _read_json(path)
    if isinstance(content, list) and content and all(isinstance(row, dict) for row in content):
        return content
    raise InputError(
        "not a file of referring expressions",
        where=path,
        expected="a list of objects, each with its sentences",
        got="an empty list" if content == [] else type(content).__name__,
        fix="pass refs(...).p, grefs(...).json, or the expressions of the scenes",
    )


def _read_json(path: Path) -> object:
    try:
        return json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        fix = "check the path, or fetch the file again"
        raise InputError("expressions cannot be read", where=path, got=str(error), fix=fix) from error


def _refer_objects(rows: Sequence[Row], problems: Problems) -> list[ReferredObject]:
    found: dict[int, ReferredObject] = {}
    for row in rows:
        where = f"ref {row.get('ref_id')}"
        before = len(problems.found)
        annotations = _annotation_ids(row.get("ann_id"), where, problems)
        ids = [_id(row, key, where, problems) for key in ("ref_id", "image_id")]
        sentences = _sentences(row.get("sentences"), where, problems)
        if len(problems.found) > before:
            continue
        if ids[0] in found:
            problems.add("ref_id used twice", where, expected="unique ids", got=row.get("ref_id"))
            continue
        found[ids[0]] = ReferredObject(ids[0], ids[1], annotations, str(row.get("split")), sentences)
    return list(found.values())


def _id(row: Row, key: str, where: str, problems: Problems) -> int:
    value = row.get(key)
    if isinstance(value, int) and is_id(value):
        return value
    problems.add(f"{key} is not a whole number", where, expected="an integer", got=repr(value))
    return 0


def _annotation_ids(value: object, where: str, problems: Problems) -> tuple[int, ...]:
    values: list[Any] = value if isinstance(value, list) else [value]
    if not all(is_id(entry) for entry in values):
        problems.add("ann_id is neither a whole number nor a list of them", where, got=repr(value))
        return ()
    return tuple(dict.fromkeys(entry for entry in values if entry != NO_TARGET))


def _sentences(value: object, where: str, problems: Problems) -> tuple[Sentence, ...]:
    if not isinstance(value, list) or not all(isinstance(entry, dict) for entry in value):
        problems.add("sentences are not a list of objects", where, expected="[{sent_id, sent, raw}, ...]")
        return ()
    sentences = []
    for entry in value:
        texts = [entry.get(key) for key in ("sent", "raw") if entry.get(key) is not None]
        if not texts or not all(isinstance(text, str) for text in texts):
            problems.add("a sentence without text", where, expected="sent, raw or both", got=repr(entry)[:80])
            continue
        number = _id(entry, "sent_id", where, problems)
        filled = [restored(text).strip() for text in (texts[0], texts[-1])]
        sentences.append(Sentence(number, filled[0] or filled[1], filled[1] or filled[0]))
    return tuple(sentences)


def _scene_objects(rows: Sequence[Row], problems: Problems) -> list[ReferredObject]:
    grouped: dict[int, list[Expression]] = {}
    for place, row in enumerate(rows):
        try:
            expression = Expression.from_dict(row)
        except ValueError as error:
            problems.add(str(error), f"expression {row.get('sentence_id')} (entry {place})")
            continue
        grouped.setdefault(expression.ref_id, []).append(expression)
    objects = []
    for ref_id, members in grouped.items():
        meant = {(e.image_id, e.annotation_id, e.split) for e in members}
        if len(meant) > 1:
            problems.add("sentences of one object mean several", f"ref {ref_id}", got=sorted(meant)[:5])
        first = members[0]
        sentences = tuple(Sentence(e.sentence_id, e.sentence.strip(), e.sentence.strip()) for e in members)
        objects.append(ReferredObject(ref_id, first.image_id, (first.annotation_id,), first.split, sentences))
    return objects


def _without_blanks(objects: Iterable[ReferredObject], path: Path) -> tuple[list[ReferredObject], LeftOut]:
    kept: list[ReferredObject] = []
    blank = unspoken = 0
    for thing in objects:
        sentences = tuple(sentence for sentence in thing.sentences if sentence.text)
        blank += len(thing.sentences) - len(sentences)
        unspoken += not sentences
        if sentences:
            kept.append(ReferredObject(thing.ref_id, thing.image_id, thing.annotation_ids, thing.split, sentences))
    if blank or unspoken:
        _LOG.warning("%s: left out %d blank sentences and %d objects without one", path, blank, unspoken)
    return kept, LeftOut(blank, unspoken)
