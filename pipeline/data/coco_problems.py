"""Collect everything that is wrong with an annotation file, then tell it in one error."""

import difflib
import json
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from pipeline.errors import AnnotationError, InputError

MAX_TOLD = 20
FIX = "correct these entries in the annotation file, or remove them"


@dataclass(frozen=True)
class Problem:
    """One wrong entry."""

    what: str
    entry: str
    """Names the entry, as "annotation 17"."""
    expected: object = None
    got: object = None

    def __str__(self) -> str:
        """One line, for the list of several."""
        parts = [f"expected {self.expected}"] if self.expected is not None else []
        parts += [f"got {self.got}"] if self.got is not None else []
        return f"{self.entry}: {self.what}" + (f" ({', '.join(parts)})" if parts else "")


@dataclass
class Problems:
    """Problems of one file, in the order they were met."""

    file: Path
    found: list[Problem] = field(default_factory=list)

    def add(self, what: str, entry: str, *, expected: object = None, got: object = None) -> None:
        """Note one problem."""
        self.found.append(Problem(what, entry, expected, got))

    def add_error(self, error: InputError, entry: str) -> None:
        """Note the problem that an error of a checked part describes."""
        self.found.append(Problem(error.what, entry, error.expected, error.got))

    def raise_if_any(self) -> None:
        """Raise one AnnotationError: a single problem in full, or a list of the first 20 of several."""
        if not self.found:
            return
        first = self.found[0]
        if len(self.found) == 1:
            where = f"{self.file}, {first.entry}"
            raise AnnotationError(first.what, where=where, expected=first.expected, got=first.got, fix=FIX)
        lines = [f"\n    - {problem}" for problem in self.found[:MAX_TOLD]]
        if len(self.found) > MAX_TOLD:
            lines.append(f"\n    ... and {len(self.found) - MAX_TOLD} more")
        raise AnnotationError(
            f"{len(self.found)} problems in an annotation file", where=self.file, got="".join(lines), fix=FIX
        )


def nearest_name(name: str, names: Iterable[str]) -> str:
    """End of a message: the closest of ``names``, or nothing where none is close."""
    close = difflib.get_close_matches(name, list(names), n=1)
    return f"; did you mean {close[0]!r}?" if close else ""


def read_coco_json(path: Path) -> dict[str, list[dict[str, object]]]:
    """Read a COCO file and check its outer form.

    Returns:
        The lists ``images``, ``annotations`` and ``categories`` of JSON objects; absent ones are empty,
        except that ``images`` must be there.

    Raises:
        AnnotationError: missing, not JSON, or not a COCO data set.
    """
    parsed = _read_json(path)
    if isinstance(parsed, list):
        raise AnnotationError(
            "not a COCO data set: the file holds a list",
            where=path,
            expected="an object with images, categories and annotations",
            got="a list; a results file?",
            fix="pass the instances file of the data set",
        )
    if not isinstance(parsed, dict) or "images" not in parsed:
        got = f"keys {sorted(parsed)[:10]}" if isinstance(parsed, dict) else type(parsed).__name__
        raise AnnotationError(
            "not a COCO data set: no list of images",
            where=path,
            expected="an object with images, categories and annotations",
            got=got,
            fix="pass the instances file of the data set",
        )
    return {key: _objects(parsed.get(key), key, path) for key in ("images", "annotations", "categories")}


def _read_json(path: Path) -> object:
    try:
        return json.loads(path.read_bytes())
    except FileNotFoundError as error:
        raise AnnotationError("annotation file not found", where=path, fix="check the path in the config") from error
    except OSError as error:
        fix = "name a COCO file that may be read"
        raise AnnotationError("annotation file cannot be read", where=path, got=error.strerror, fix=fix) from error
    except (ValueError, RecursionError) as error:  # JSONDecodeError and UnicodeDecodeError are ValueErrors
        raise AnnotationError(
            "annotation file is not JSON",
            where=path,
            expected="one complete JSON document",
            got=str(error),
            fix="was the download or the export cut off? write the file again",
        ) from error


def _objects(entries: object, key: str, path: Path) -> list[dict[str, object]]:
    if entries is None:
        return []
    if isinstance(entries, list) and all(isinstance(entry, dict) for entry in entries):
        return entries
    raise AnnotationError(
        f"{key!r} is not a list of objects", where=path, expected="[{...}, ...]", got=type(entries).__name__, fix=FIX
    )
