"""A JSON file that holds one long list, read item by item: memory for one item, however large the file."""

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from pipeline.errors import AnnotationError, InputError

_CHUNK_BYTES = 1 << 20
_NEAR_THE_END = 16
"""Characters: a cut inside a number, a literal or an escape is complained of this far before the end at most."""
_BLANK = re.compile(r"[ \t\r\n]*")


@dataclass(frozen=True)
class Item:
    """One object of the list."""

    place: int
    """In the list, from 0."""
    start: int
    """First byte in the file."""
    end: int
    """Byte after the last."""
    value: dict[str, object]


def items(path: Path) -> Iterator[Item]:
    """All objects of a file that holds a JSON list of objects; text beyond ASCII in them is not decoded.

    Raises:
        AnnotationError: Not there, not such a list, or cut off; says where.
    """
    try:
        with path.open("rb") as file:
            yield from _Reader(path, file).items()
    except OSError as error:
        raise AnnotationError("file cannot be read", where=path, got=error.strerror, fix="correct the path") from error


def item_at(path: Path, start: int, end: int) -> dict[str, object]:
    """The object between two bytes of the file, as :func:`items` told them.

    Raises:
        InputError: The file changed meanwhile.
    """
    with path.open("rb") as file:
        file.seek(start)
        data = file.read(end - start)
    try:
        # As the checker read it, whatever the encoding of names that nobody asks for.
        value = json.loads(data.decode("latin-1"))
    except ValueError:
        value = None
    if not isinstance(value, dict):
        raise InputError("the file changed while it was read", where=path, fix="run the same command again")
    return value


class _Reader:
    """What was read and not handed out yet; one character for each byte, so that places are the file's."""

    def __init__(self, path: Path, file: BinaryIO) -> None:
        self.path, self.file = path, file
        self.text, self.at, self.base, self.is_over = "", 0, 0, False
        self.decoder = json.JSONDecoder()

    def items(self) -> Iterator[Item]:
        self._take("[", "a JSON list: [{...}, ...]")
        place = 0
        while self._next() != "]":
            if place:
                self._take(",", "a comma or the end of the list")
            if self._next() != "{":
                raise self._wrong("not a list of objects", "an object: {...}")
            start = self.base + self.at
            value = self._object(place)
            yield Item(place, start, self.base + self.at, value)
            place += 1
        self._take("]", "the end of the list")
        if self._next():
            raise self._wrong("something follows the list", "the end of the file")

    def _take(self, sign: str, expected: str) -> None:
        if self._next() != sign:
            raise self._wrong("not a list of objects", expected)
        self.at += 1

    def _next(self) -> str:
        """The next character that is not blank, "" at the end of the file."""
        while True:
            match = _BLANK.match(self.text, self.at)
            self.at = match.end() if match else self.at
            if self.at < len(self.text):
                return self.text[self.at]
            if not self._read():
                return ""

    def _object(self, place: int) -> dict[str, object]:
        while True:
            try:
                value, end = self.decoder.raw_decode(self.text, self.at)
            except (json.JSONDecodeError, RecursionError) as error:
                if _may_be_cut(error, len(self.text)) and self._read():
                    continue
                got = error.msg if isinstance(error, json.JSONDecodeError) else "too many brackets"
                is_cut = self.is_over and _may_be_cut(error, len(self.text), slack=0)
                what = f"item {place} of the list is " + ("cut off" if is_cut else "not JSON")
                raise self._wrong(what, "one complete JSON list", got) from error
            self.at = end
            found: dict[str, object] = value
            return found

    def _read(self) -> bool:
        # As much again as there is, so that a long item is not looked at once for each chunk.
        more = self.file.read(max(_CHUNK_BYTES, len(self.text) - self.at))
        self.is_over = not more
        self.base += self.at
        self.text, self.at = self.text[self.at :] + more.decode("latin-1"), 0
        return bool(more)

    def _wrong(self, what: str, expected: str, got: str | None = None) -> AnnotationError:
        seen = self.text[self.at : self.at + 20]
        return AnnotationError(
            what,
            where=f"{self.path}, byte {self.base + self.at}",
            expected=expected,
            got=got or (repr(seen) if seen else "the end of the file"),
            fix="was the download or the export cut off? write the file again",
        )


def _may_be_cut(error: Exception, length: int, slack: int = _NEAR_THE_END) -> bool:
    if not isinstance(error, json.JSONDecodeError):
        return False
    return error.msg.startswith("Unterminated string") or error.pos >= length - slack
