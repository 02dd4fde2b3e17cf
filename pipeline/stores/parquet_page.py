"""The header of a Parquet page (Thrift's compact protocol): how long it is, and how long the page."""

from collections.abc import Sequence

_STOP, _BOOLEANS, _BYTE, _VARINTS, _DOUBLE, _BINARY, _STRUCT = 0, (1, 2), 3, (4, 5, 6), 7, 8, 12
_NEXT_INT32 = 0x15  # a 32-bit number, one field further


def page_sizes(data: Sequence[int], at: int) -> tuple[int, int]:
    """Sizes of the page whose header begins at ``data[at]``.

    Returns:
        Bytes of its values when unpacked, and as they are stored behind the header.

    Raises:
        ValueError: There is no header.
        IndexError: It is cut off.
    """
    start, numbers = at, []
    for _ in ("type", "uncompressed size", "compressed size"):
        if data[at] != _NEXT_INT32:
            raise ValueError(f"no page header at byte {start}")
        number, at = _varint(data, at + 1)
        numbers.append(number >> 1)
    return numbers[1], numbers[2]


def header_end(data: Sequence[int], at: int) -> int:
    """First byte behind the header that begins at ``data[at]``; errors as :func:`page_sizes`."""
    while data[at] != _STOP:
        kind, is_long = data[at] & 0x0F, data[at] >> 4 == 0
        at += 1
        if is_long:
            _, at = _varint(data, at)
        at = _value_end(data, at, kind)
    return at + 1


def _value_end(data: Sequence[int], at: int, kind: int) -> int:
    if kind in _BOOLEANS:
        return at
    if kind == _BYTE:
        return at + 1
    if kind == _DOUBLE:
        return at + 8
    if kind == _STRUCT:
        return header_end(data, at)
    if kind not in (*_VARINTS, _BINARY):
        raise ValueError(f"a page header has no field of kind {kind}")
    number, at = _varint(data, at)
    return at + number if kind == _BINARY else at


def _varint(data: Sequence[int], at: int) -> tuple[int, int]:
    number = shift = 0
    while data[at] & 0x80:
        number |= (data[at] & 0x7F) << shift
        at, shift = at + 1, shift + 7
    return number | data[at] << shift, at + 1
