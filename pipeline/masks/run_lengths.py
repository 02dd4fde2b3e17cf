"""COCO's run-length strings as arrays: counts, and from them foreground runs; many codes in one pass, nothing trusted.

A code is a list of counts, background and foreground in turn, column by column. Here every code starts at an even
place: one with an odd number of counts is followed by a foreground of 0 pixels. So all foregrounds have odd places,
and both running sums of the format are sums over every other place.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import AnnotationError

Ints = NDArray[np.int64]

_MAX_CHARS_PER_COUNT = 7  # 35 bits: more than any count of the largest mask that is legal can need
_SHOWN = 40  # bytes of a wrong code in a message
_ZERO, _MORE, _SIGN, _LOW = ord("0"), 0x20, 0x10, 0x1F


def malformed(where: str, expected: object, got: object) -> AnnotationError:
    """The error for a mask that is not as COCO defines it."""
    return AnnotationError(
        "an RLE mask is malformed", where=where, expected=expected, got=got, fix="export this annotation again"
    )


def runs_of_codes(codes: Sequence[bytes], pixels: Ints, *, where: str) -> tuple[Ints, Ints]:
    """Foreground runs of K strings.

    Args:
        codes: 5 bits a character, low bits first, the sign in the last; from the 4th count on, differences.
        pixels: [K] height x width of each mask.
        where: For errors.

    Returns:
        runs [R, 2] start, end (exclusive), column-major flat pixel index, per mask ascending, never empty, never
        touching; and offsets [K + 1]: those of mask k are runs[offsets[k]:offsets[k + 1]].

    Raises:
        AnnotationError: A string is malformed, or does not cover its mask exactly.
    """
    values, lengths = _values(codes, where)
    counts, offsets = _to_even_places(values, lengths)
    # Differences to the count before the last: the first two and the third count of a code stand for themselves.
    first = counts[offsets[:-1]]
    counts[offsets[:-1]] = 0
    for parity in (0, 1):
        chain = np.cumsum(counts[parity::2])
        before = np.concatenate([[0], chain])[offsets[:-1] // 2]
        counts[parity::2] = chain - np.repeat(before, np.diff(offsets) // 2)
    counts[offsets[:-1]] = first
    odd = lengths % 2 == 1
    counts[offsets[1:][odd] - 1] = 0
    return runs_of_counts(counts, offsets, pixels, where=where)


def runs_of_counts(counts: Ints, offsets: Ints, pixels: Ints, *, where: str) -> tuple[Ints, Ints]:
    """Foreground runs of K lists of counts.

    Args:
        counts: [C] of all masks, each with an even number of counts.
        offsets: [K + 1] where each begins.
        pixels: [K] height x width of each mask.
        where: For errors.

    Returns:
        As :func:`runs_of_codes`.

    Raises:
        AnnotationError: A count is negative, or a list does not cover its mask exactly.
    """
    if len(counts) and counts.min() < 0:
        raise malformed(where, "counts of 0 or more", int(counts.min()))
    total = np.concatenate([[0], np.cumsum(counts)])
    covered = total[offsets[1:]] - total[offsets[:-1]]
    wrong = np.flatnonzero(covered != pixels)
    if len(wrong):
        raise malformed(where, f"counts that sum to {pixels[wrong[0]]} (height x width)", int(covered[wrong[0]]))
    runs = total[1:].reshape(-1, 2) - np.repeat(total[offsets[:-1]], np.diff(offsets) // 2)[:, None]
    return _canonical(runs, offsets // 2)


def even_counts(counts: Ints) -> tuple[Ints, Ints]:
    """One list of counts [C] as :func:`runs_of_counts` takes it: counts and offsets."""
    return _to_even_places(counts, np.array([len(counts)], np.int64))


def _values(codes: Sequence[bytes], where: str) -> tuple[Ints, Ints]:
    """Numbers of all strings, concatenated, and how many each has: [K]."""
    sizes = np.array([len(code) for code in codes], dtype=np.int64)
    if len(sizes) == 0:
        return np.zeros(0, np.int64), np.zeros(0, np.int64)
    if sizes.min() == 0:
        raise malformed(where, "a COCO RLE string", "an empty string")
    chars = np.frombuffer(b"".join(codes), dtype=np.uint8) - np.uint8(_ZERO)  # what is below wraps around
    if chars.max() > _MORE + _LOW:
        place = int(np.argmax(chars > _MORE + _LOW))
        last = int(np.cumsum(sizes)[np.searchsorted(np.cumsum(sizes), place, side="right")])
        shown = b"".join(codes)[place : min(last, place + _SHOWN)].decode(errors="replace")
        raise malformed(where, "characters '0' to 'o' only", repr(shown))
    ends = np.flatnonzero(chars < _MORE)
    last_chars = np.cumsum(sizes) - 1
    if (chars[last_chars] >= _MORE).any():
        raise malformed(where, "a complete last count", "a string that is cut off")
    lengths = np.diff(ends, prepend=-1)
    longest = int(lengths.max())
    if longest > _MAX_CHARS_PER_COUNT:
        raise malformed(where, f"at most {_MAX_CHARS_PER_COUNT} characters a count", longest)
    values = ((chars[ends] ^ _SIGN).astype(np.int64)) - _SIGN
    places = np.arange(len(ends))
    for step in range(1, longest):
        places = places[lengths[places] > step]
        values[places] = (values[places] << 5) + (chars[ends[places] - step] & _LOW)
    return values, np.diff(np.searchsorted(ends, last_chars) + 1, prepend=0)


def _to_even_places(values: Ints, lengths: Ints) -> tuple[Ints, Ints]:
    """Every code at an even place; returns counts, and offsets [K + 1]."""
    offsets = np.concatenate([[0], np.cumsum(lengths + lengths % 2)])
    if len(values) == offsets[-1]:
        return values.copy(), offsets
    counts = np.zeros(offsets[-1], np.int64)
    shifts = offsets[:-1] - (np.cumsum(lengths) - lengths)
    counts[np.arange(len(values)) + np.repeat(shifts, lengths)] = values
    return counts, offsets


def _canonical(runs: Ints, offsets: Ints) -> tuple[Ints, Ints]:
    """Drop empty runs, join runs that a background of 0 had split: the same runs for every spelling of a mask."""
    filled = runs[:, 1] > runs[:, 0]
    runs, offsets = runs.compress(filled, axis=0), _counted(filled)[offsets]  # ten times faster than runs[filled]
    opens = np.ones(len(runs), bool)
    np.not_equal(runs[1:, 0], runs[:-1, 1], out=opens[1:])
    opens[offsets[:-1][offsets[:-1] < len(runs)]] = True  # what the mask before ends with is another matter
    if not opens.all():
        closes = np.concatenate([opens[1:], [True]])
        runs, offsets = np.stack([runs[opens, 0], runs[closes, 1]], axis=1), _counted(opens)[offsets]
    return runs, offsets


def _counted(chosen: NDArray[np.bool_]) -> Ints:
    """How many of the first 0, 1, ... are chosen."""
    return np.concatenate([[0], np.cumsum(chosen)])
