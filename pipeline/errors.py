"""Every error a user can cause, as one tree.

PipelineError                 exit 1   unexpected (the base; never raised itself)
├── InputError                exit 3   a file, an image, an annotation or a value is wrong
│   ├── ImageError                     one image cannot be decoded (stages catch it per image)
│   ├── AnnotationError                a COCO file or one of its entries is wrong
│   ├── CheckpointError                not a checkpoint, the wrong one, or not safe to load
│   └── ConfigError                    an unknown key, a wrong type, a value out of range
├── StoreMismatchError        exit 3   a store made with other images, SAM weights or settings
├── StoreDamagedError         exit 5   a file of a store is missing or fails its checksum
├── TooManyQuarantinedError   exit 4   more bad images than allowed
└── EnvironmentProblemError   exit 6   no GPU, a missing package, no Ray cluster, no room

A message says what is wrong, where, what was expected, what was found, and what to do next.
"""

import re
from pathlib import Path

_READ_BY_A_WORKER = re.compile(r"Caught \w+ in DataLoader worker process \d+\.\nOriginal Traceback")


class PipelineError(Exception):
    """Base of all of them; prints as up to five short lines."""

    exit_code = 1

    def __init__(
        self,
        what: str,
        *,
        where: str | Path | None = None,
        expected: object = None,
        got: object = None,
        fix: str | None = None,
    ) -> None:
        what = self._in_its_words(what)
        self.what, self.where, self.expected, self.got, self.fix = what, where, expected, got, fix
        lines = [what]
        lines += [f"  where:    {where}"] if where is not None else []
        lines += [f"  expected: {expected}"] if expected is not None else []
        lines += [f"  got:      {got}"] if got is not None else []
        lines += [f"  next:     {fix}"] if fix is not None else []
        super().__init__("\n".join(lines))

    @classmethod
    def _in_its_words(cls, what: str) -> str:
        """The message alone: torch's DataLoader gives its process's whole traceback, which the message ends, for it."""
        if not _READ_BY_A_WORKER.match(what):
            return what
        return what.rpartition(f"\n{cls.__module__}.{cls.__qualname__}: ")[2].rstrip("\n")

    def __reduce__(self) -> tuple[object, ...]:
        """Keep the parts when the error crosses a process boundary."""
        return _rebuild, (type(self), self.what, self.where, self.expected, self.got, self.fix)


def _rebuild(
    kind: type[PipelineError], what: str, where: str | Path | None, expected: object, got: object, fix: str | None
) -> PipelineError:
    return kind(what, where=where, expected=expected, got=got, fix=fix)


class InputError(PipelineError):
    """A file, an image, an annotation or a value given by the user is wrong."""

    exit_code = 3


class ImageError(InputError):
    """One image cannot be decoded."""


class AnnotationError(InputError):
    """A COCO file, or one entry of it, is wrong."""


class CheckpointError(InputError):
    """A file is not a checkpoint, is the wrong one, or cannot be loaded safely."""


class ConfigError(InputError):
    """A configuration has an unknown key, a wrong type or a value out of range."""


class StoreMismatchError(PipelineError):
    """A store was made from other images, other SAM weights or other settings."""

    exit_code = 3


class StoreDamagedError(PipelineError):
    """A file of a store is missing or does not have the recorded checksum."""

    exit_code = 5


class TooManyQuarantinedError(PipelineError):
    """The work is finished, but more images were bad than the set share."""

    exit_code = 4


class EnvironmentProblemError(PipelineError):
    """The machine lacks something: a GPU, a package, a Ray cluster, room on a disk."""

    exit_code = 6
