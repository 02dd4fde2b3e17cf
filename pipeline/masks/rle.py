"""COCO run-length masks: strict parsing, encoding, and foreground runs without decoding a pixel.

The only importer of pycocotools besides the evaluation oracle. Pixels are enumerated column by column (flat index
= column * height + row), as COCO does. pycocotools decodes malformed codes to wrong masks without a word, so every
code is unpacked and checked here with numpy before the library sees it.
"""

import math
from collections.abc import Sequence
from typing import TypedDict

import numpy as np
from numpy.typing import NDArray
from pycocotools import mask as coco_mask

from data_schemas.proposals import Proposal
from pipeline.errors import AnnotationError
from pipeline.masks.run_lengths import even_counts, malformed, runs_of_codes, runs_of_counts

MAX_MASK_PIXELS = 200_000_000  # refuse a forged `size` before anything of that size is allocated
_SHORTEST_POLYGON = 6  # numbers: three points
_SHOWN = 40  # characters of a wrong value in a message


class Rle(TypedDict):
    """A compressed COCO mask: `size` is [height, width], `counts` the COCO string."""

    size: list[int]
    counts: str


def of_proposal(proposal: Proposal) -> Rle:
    """The mask of a row of the library."""
    return Rle(size=[proposal.height, proposal.width], counts=proposal.rle_counts)


def encode(mask: NDArray[np.bool_]) -> Rle:
    """Encode one mask.

    Args:
        mask: [H, W] bool (or 0/1 integers).

    Returns:
        The compressed code, byte for byte what pycocotools writes.
    """
    return encode_many(np.asarray(mask)[None])[0]


def encode_many(masks: NDArray[np.bool_]) -> list[Rle]:
    """Encode N masks in one library call.

    Args:
        masks: [N, H, W] bool (or 0/1 integers), N may be 0.

    Returns:
        N compressed codes in the same order.
    """
    masks = np.asarray(masks)
    if masks.ndim != 3:
        raise ValueError(f"masks must be [N, H, W], got shape {masks.shape}")
    if len(masks) == 0:
        return []
    pixels = np.asfortranarray(masks.astype(bool, copy=False).view(np.uint8).transpose(1, 2, 0))  # [H, W, N]
    return [_as_rle(code) for code in coco_mask.encode(pixels)]


def decode(rle: Rle) -> NDArray[np.bool_]:
    """Decode one mask.

    Returns:
        [H, W] bool.

    Raises:
        AnnotationError: the code is malformed, too large, or does not cover exactly H * W pixels.
    """
    height, width = _checked_size(rle["size"], where="RLE")
    return dense(runs(rle), height=height, width=width)


def area(rle: Rle) -> int:
    """Return the number of foreground pixels, from the runs alone."""
    spans = runs(rle)
    return int((spans[:, 1] - spans[:, 0]).sum())


def pairwise_iou(rles: Sequence[Rle], others: Sequence[Rle]) -> NDArray[np.float64]:
    """Intersection over union [N, M] of every mask with every other, decoding none; all of one size."""
    if not rles or not others:
        return np.zeros((len(rles), len(others)))
    return np.asarray(coco_mask.iou(list(rles), list(others), [0] * len(others)), np.float64)


def bbox_xywh(rle: Rle) -> tuple[float, float, float, float]:
    """Return the tight box (x, y, width, height) in pixels; all zero for an empty mask."""
    spans = runs(rle)
    if len(spans) == 0:
        return 0.0, 0.0, 0.0, 0.0
    height = rle["size"][0]
    first, last = spans[:, 0], spans[:, 1] - 1
    x0, x1 = int(first[0]) // height, int(last[-1]) // height + 1
    if (first // height != last // height).any():  # a run that turns a column touches the bottom and the top
        return float(x0), 0.0, float(x1 - x0), float(height)
    y0, y1 = int((first % height).min()), int((last % height).max()) + 1
    return float(x0), float(y0), float(x1 - x0), float(y1 - y0)


def runs(rle: Rle) -> NDArray[np.int64]:
    """Return the foreground runs of one mask without decoding it.

    Returns:
        [R, 2] int64: start and end (exclusive), column-major flat pixel index, ascending, never empty, never touching.

    Raises:
        AnnotationError: as `decode`.
    """
    return runs_of_many([rle])[0]


def runs_of_many(rles: Sequence[Rle]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return the foreground runs of K masks, concatenated; all strings are unpacked in one numpy pass.

    Returns:
        runs [R, 2] int64 as in `runs`, and offsets [K + 1] int64: those of mask k are runs[offsets[k]:offsets[k + 1]].

    Raises:
        AnnotationError: a code is malformed, too large, or does not cover exactly H * W pixels.
    """
    sizes = [_checked_size(rle["size"], where="RLE") for rle in rles]
    pixels = np.array([height * width for height, width in sizes], dtype=np.int64)
    return runs_of_codes([rle["counts"].encode(errors="surrogatepass") for rle in rles], pixels, where="RLE")


def from_runs(spans: NDArray[np.int64], *, height: int, width: int) -> Rle:
    """Encode the union of foreground runs.

    Args:
        spans: [R, 2] int64 start, end (exclusive), column-major, in any order, overlapping or not.
        height: Pixels.
        width: Pixels.

    Returns:
        The canonical code: what `encode` gives for the same pixels.
    """
    return from_edges(union_runs(spans).ravel(), height=height, width=width)


def from_edges(edges: NDArray[np.int64], *, height: int, width: int) -> Rle:
    """Encode a mask from the places where its pixels change.

    Args:
        edges: [2 R] int64 strictly rising: start, end (exclusive), start, ... of its runs, column-major.
        height: Pixels.
        width: Pixels.

    Returns:
        The canonical code: what `encode` gives for the same pixels.
    """
    pixels = height * width
    counts = np.diff(np.concatenate([[0], edges, [pixels]])).astype(np.uint32)
    if len(edges) and edges[-1] == pixels:
        counts = counts[:-1]  # COCO writes no background run of length 0 at the end
    # An array of C's own type: a list of Python numbers takes six times as long on the way in.
    return _as_rle(coco_mask.frPyObjects({"size": [height, width], "counts": counts}, height, width))


def shared_pixels(rle: Rle, area: int, codes: Sequence[bytes]) -> NDArray[np.int64]:
    """Pixels that one mask shares with each of K others of its size; for codes that were checked before.

    Args:
        rle: The one mask.
        area: Its foreground pixels, 1 or more.
        codes: K COCO strings.

    Returns:
        [K] int64, exact.
    """
    if not codes:
        return np.zeros(0, np.int64)
    others = [{"size": rle["size"], "counts": code} for code in codes]
    # Against "crowds" the ratio is shared / area: a double, so that the whole number comes back by rounding.
    shares = coco_mask.iou([rle], others, [1] * len(others))
    return np.asarray(np.rint(shares[0] * area), np.int64)


def union_runs(spans: NDArray[np.int64]) -> NDArray[np.int64]:
    """Merge runs that overlap or touch.

    Args:
        spans: [R, 2] int64 start, end (exclusive), in any order.

    Returns:
        [S, 2] int64 ascending, disjoint, not touching, none of length 0.
    """
    spans = np.asarray(spans, dtype=np.int64).reshape(-1, 2)
    spans = spans[spans[:, 1] > spans[:, 0]]
    if len(spans) == 0:
        return spans
    spans = spans[np.argsort(spans[:, 0], kind="stable")]
    reach = np.maximum.accumulate(spans[:, 1])
    opens = np.concatenate([[True], spans[1:, 0] > reach[:-1]])
    closes = np.concatenate([opens[1:], [True]])
    return np.stack([spans[opens, 0], reach[closes]], axis=1)


def dense(spans: NDArray[np.int64], *, height: int, width: int) -> NDArray[np.bool_]:
    """Paint foreground runs.

    Args:
        spans: [R, 2] int64 start, end (exclusive), column-major, in any order.
        height: Pixels.
        width: Pixels.

    Returns:
        [height, width] bool, C-contiguous: the union of the runs.
    """
    mask = np.zeros((height, width), dtype=bool)
    spans = union_runs(spans)
    if len(spans):
        first, last = int(spans[0, 0]) // height, int(spans[-1, 1] - 1) // height + 1  # columns that have a pixel
        lengths = np.diff(spans.ravel(), prepend=first * height, append=last * height)
        values = np.zeros(len(lengths), dtype=bool)
        values[1::2] = True
        mask[:, first:last] = np.repeat(values, lengths).reshape(last - first, height).T
    return mask


def parse(segmentation: object, *, height: int, width: int, where: str) -> Rle:
    """Turn the `segmentation` of a COCO annotation into a checked, canonical code.

    Args:
        segmentation: A list of polygons (flat x, y lists; united), or an RLE dict with a list of counts, a compressed
            string or compressed bytes.
        height: Height of the image in pixels.
        width: Width of the image in pixels.
        where: What to name in an error, for example "instances.json, annotation 17".

    Returns:
        The canonical compressed code. Its area may be 0: whether that is an error is for the caller to say.

    Raises:
        AnnotationError: anything about it is not as COCO defines it.
    """
    _checked_size([height, width], where=where)
    if isinstance(segmentation, dict):
        return _parse_rle(segmentation, height=height, width=width, where=where)
    if isinstance(segmentation, list | tuple):
        return _parse_polygons(segmentation, height=height, width=width, where=where)
    raise AnnotationError(
        "a segmentation is neither polygons nor RLE",
        where=where,
        expected="a list of polygons, or a dict with size and counts",
        got=type(segmentation).__name__,
        fix="correct or remove this annotation",
    )


def _parse_polygons(polygons: Sequence[object], *, height: int, width: int, where: str) -> Rle:
    if len(polygons) == 0:
        raise AnnotationError("a segmentation has no polygon", where=where, fix="correct or remove this annotation")
    points = [_checked_polygon(polygon, height=height, width=width, where=where) for polygon in polygons]
    codes = coco_mask.frPyObjects(points, height, width)
    # Released SemiRES adds the polygons and keeps pixels equal to 1, so overlaps become holes: we take the union.
    return _as_rle(coco_mask.merge(codes))


def _checked_polygon(polygon: object, *, height: int, width: int, where: str) -> list[float]:
    def refuse(expected: str, got: object) -> AnnotationError:
        return AnnotationError(
            "a polygon is malformed", where=where, expected=expected, got=got, fix="correct or remove this annotation"
        )

    if not isinstance(polygon, list | tuple):
        raise refuse("a flat list x1, y1, x2, y2, ...", type(polygon).__name__)
    try:
        numbers = np.asarray(polygon)
    except (ValueError, OverflowError) as error:
        raise refuse("a flat list of numbers", str(error)) from error
    if numbers.ndim != 1 or numbers.size < _SHORTEST_POLYGON or numbers.size % 2:
        raise refuse("three points or more, x and y for each", f"{numbers.size} numbers")
    if numbers.dtype.kind not in "iuf" or not np.isfinite(numbers).all():
        odd = [number for number in polygon if not (isinstance(number, int | float) and abs(number) < math.inf)]
        raise refuse("finite numbers", ", ".join(repr(number)[:_SHOWN] for number in (odd or polygon)[:3]))
    # Rasterising walks the outline pixel by pixel: an outline of 1e9 pixels would take all memory.
    limits = np.array([width, height], dtype=np.float64)
    points = numbers.astype(np.float64).reshape(-1, 2)
    if (points < -limits).any() or (points > 2 * limits).any():
        raise refuse(f"points in or near the {width} x {height} image", f"{points.min()} to {points.max()}")
    return [float(number) for number in points.ravel()]


def _parse_rle(segmentation: dict[object, object], *, height: int, width: int, where: str) -> Rle:
    missing = {"size", "counts"} - set(segmentation)
    if missing:
        raise malformed(where, "size and counts", f"no {' and no '.join(sorted(missing))}")
    if _checked_size(segmentation["size"], where=where) != (height, width):
        raise AnnotationError(
            "the size of an RLE differs from its image",
            where=where,
            expected=[height, width],
            got=segmentation["size"],
            fix="was the image resized? export the annotations again",
        )
    code = segmentation["counts"]
    pixels = np.array([height * width])
    if isinstance(code, str | bytes):
        packed = code.encode(errors="surrogatepass") if isinstance(code, str) else code
        spans, _ = runs_of_codes([packed], pixels, where=where)
    else:
        spans, _ = runs_of_counts(*even_counts(_checked_counts(code, where=where)), pixels, where=where)
    return from_runs(spans, height=height, width=width)


def _checked_counts(code: object, *, where: str) -> NDArray[np.int64]:
    if not isinstance(code, list | tuple):
        raise malformed(where, "counts as a list, a string or bytes", type(code).__name__)
    try:
        counts = np.asarray(code)
    except (ValueError, OverflowError) as error:
        raise malformed(where, "a flat list of whole numbers", str(error)) from error
    if counts.ndim != 1 or counts.size == 0 or counts.dtype.kind not in "iu":
        raise malformed(where, "a flat list of whole numbers", f"{counts.dtype} of shape {counts.shape}")
    if (counts > MAX_MASK_PIXELS).any():  # before the cast and the sum, which could wrap around
        raise malformed(where, f"counts of at most {MAX_MASK_PIXELS}", int(counts.max()))
    return counts.astype(np.int64)


def _checked_size(size: object, *, where: str) -> tuple[int, int]:
    is_pair = isinstance(size, list | tuple) and len(size) == 2
    if not (is_pair and all(isinstance(side, int | np.integer) and not isinstance(side, bool) for side in size)):  # type: ignore[attr-defined]
        raise malformed(where, "size as two whole numbers [height, width]", size)
    height, width = (int(side) for side in size)  # type: ignore[attr-defined]
    if height < 1 or width < 1 or height * width > MAX_MASK_PIXELS:
        raise malformed(where, f"1 to {MAX_MASK_PIXELS} pixels", f"{height} x {width}")
    return height, width


def _as_rle(code: dict[str, object]) -> Rle:
    """Give the bytes of pycocotools as text, which JSON and Parquet can hold."""
    height, width = code["size"]  # type: ignore[misc]
    return Rle(size=[int(height), int(width)], counts=code["counts"].decode())  # type: ignore[attr-defined,has-type]
