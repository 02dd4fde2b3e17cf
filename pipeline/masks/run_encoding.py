"""COCO strings from foreground runs, for many masks in one pass of numpy and without a pixel."""

import numpy as np
from numpy.typing import NDArray

_MAX_CHARS = 7  # 35 bits: more than any count of an image can need


def encode_runs(spans: NDArray[np.int64], offsets: NDArray[np.int64], *, height: int, width: int) -> list[str]:
    """Encode K masks, byte for byte as pycocotools does.

    Args:
        spans: [R, 2] int64 start and end (exclusive) as column * height + row; within a mask they rise and do not
            overlap, but may touch.
        offsets: [K + 1] int64: the runs of mask k are spans[offsets[k]:offsets[k + 1]].
        height: Pixels.
        width: Pixels.

    Returns:
        K strings.
    """
    num = len(offsets) - 1
    mask = np.repeat(np.arange(num), np.diff(offsets))
    is_new = np.ones(len(spans), bool)
    is_new[1:] = (spans[1:, 0] > spans[:-1, 1]) | (mask[1:] != mask[:-1])
    starts, ends, mask = spans[is_new, 0], spans[np.append(is_new[1:], True)[: len(spans)], 1], mask[is_new]
    # Each mask as the places where its value changes, between the first pixel and the end of the image.
    runs_of = np.bincount(mask, minlength=num)
    last = np.cumsum(runs_of) - 1
    reaches_end = np.zeros(num, bool)
    some = runs_of > 0
    reaches_end[some] = ends[last[some]] == height * width
    lengths = 2 * runs_of + ~reaches_end  # COCO writes no background run of length 0 at the end
    first = np.cumsum(lengths) - lengths
    places = np.full(int(lengths.sum()), height * width, np.int64)
    at = first[mask] + 2 * (np.arange(len(mask)) - (last - runs_of + 1)[mask])
    places[at], places[at + 1] = starts, ends
    counts = np.diff(places, prepend=0)
    counts[first] = places[first]
    return _pack(counts, first, lengths)


def _pack(counts: NDArray[np.int64], first: NDArray[np.int64], lengths: NDArray[np.int64]) -> list[str]:
    """5 bits a character, low bits first, sign in the last; from the 4th count of a mask on, differences."""
    position = np.arange(len(counts)) - np.repeat(first, lengths)
    values = counts.copy()
    late = np.flatnonzero(position > 2)
    values[late] -= counts[late - 2]
    chars = np.zeros((len(values), _MAX_CHARS), np.uint8)
    used = np.zeros(chars.shape, bool)
    pending = np.ones(len(values), bool)
    for place in range(_MAX_CHARS):
        low = values & 0x1F
        values = values >> 5
        is_done = values == np.where(low & 0x10, -1, 0)  # what is left is only the sign that `low` already shows
        chars[:, place] = low + np.where(is_done, 48, 48 + 0x20)
        used[:, place] = pending
        pending &= ~is_done
        if not pending.any():
            break
    text = chars[used].tobytes().decode("ascii")
    ends = np.cumsum(used.sum(1))[first + lengths - 1] if len(first) else first
    return [text[start:end] for start, end in zip([0, *ends.tolist()], ends.tolist(), strict=False)]
