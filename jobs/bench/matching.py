"""Benches of the proposal library: one image read by its id, and one teacher mask matched against 200 proposals."""

from collections.abc import Callable, Sequence
from functools import partial
from itertools import cycle
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
from numpy.typing import NDArray

from jobs.bench.cases import Case, blob, write_library
from pipeline.masks import rle
from pipeline.masks.library import MaskLibrary
from pipeline.refine.cpi import accept_cpi
from pipeline.refine.iom import above_threshold, accept_iom
from pipeline.refine.matching import AcceptRule, Matcher, Overlaps
from pipeline.stores.proposal_store import ProposalStore

_NUM_QUERIES = 24
_accept_cpi_u = partial(accept_cpi, cases="under")
_RULES = {"IOM": AcceptRule(accept_iom, above_threshold), "CPI-U": AcceptRule(_accept_cpi_u, _accept_cpi_u)}


def match_1x200_1080p(_: Path, *, size_hw: tuple[int, int] = (1080, 1920), num: int = 200) -> list[Case]:
    """One teacher mask against a library: which proposals are accepted. Every round takes the next of 24 masks.

    A mask is matched several times running, so that it is in the processor's cache, as one just computed would be.
    """
    height, width = size_hw
    rng = np.random.default_rng(0)
    codes = rle.encode_many(np.stack([blob(rng, height, width) for _ in range(num)]))
    library = MaskLibrary.from_rles(codes, size_hw=size_hw)
    queries = [mask for mask in (blob(rng, height, width) for _ in range(_NUM_QUERIES)) if mask.any()]
    return [
        Case(
            ours=_taking_turns(Matcher(library, np.ones(size_hw, bool), rule).accepted, queries, calls),
            other=_taking_turns(partial(way, codes, library.areas, rule), queries, calls),
            other_name=other_name,
            sizes={"rule": name, "proposals": num, "image": f"{height} x {width}"},
            check=np.testing.assert_array_equal,
            calls=calls,
        )
        for name, rule in _RULES.items()
        for other_name, way, calls in (
            ("pycocotools 1 x N", _by_runs, 10),
            ("decode all, count in numpy", _decoded, 3),
        )
    ]


def _taking_turns(
    call: Callable[[NDArray[np.bool_]], NDArray[np.int64]], queries: Sequence[NDArray[np.bool_]], calls: int
) -> Callable[[], NDArray[np.int64]]:
    turns = cycle([query for query in queries for _ in range(calls)])
    return lambda: call(next(turns))


def _by_runs(
    codes: Sequence[rle.Rle], areas: NDArray[np.int64], rule: AcceptRule, mask: NDArray[np.bool_]
) -> NDArray[np.int64]:
    """All IoUs from codes; the shared pixels follow from them, IoU (A_c + A_k) / (1 + IoU), and the rule from those."""
    iou, area = rle.pairwise_iou([rle.encode(mask)], codes)[0], int(np.count_nonzero(mask))
    shared = np.rint(iou * (area + areas) / (1 + iou)).astype(np.int64)
    return rule.accept(Overlaps(shared, areas, area))


def _decoded(
    codes: Sequence[rle.Rle], areas: NDArray[np.int64], rule: AcceptRule, mask: NDArray[np.bool_]
) -> NDArray[np.int64]:
    shared = np.array([np.count_nonzero(rle.decode(code) & mask) for code in codes])
    return rule.accept(Overlaps(shared, areas, int(np.count_nonzero(mask))))


def library_read(scratch: Path, *, num_images: int = 5_000) -> list[Case]:
    """The proposals of one image by id, from a library of 5,000 images, every time another image."""
    side = 192
    store = write_library(scratch / "store", num_images=num_images, proposals_per_image=30, side=side)
    files = sorted((scratch / "store/proposals").glob("*.parquet"))
    reader = ProposalStore.open(store)
    order = np.random.default_rng(1).permutation(num_images).tolist()
    for image_id in order:  # the footers: a training reads every shard's once
        reader.read_masks(image_id)
    mine, theirs = cycle(order), cycle(order)

    def table(turns: "cycle[int]") -> list[str]:
        found = pq.read_table(files, filters=[("image_id", "=", next(turns))])
        return sorted(found.column("rle_counts").to_pylist())

    def same_codes(library: MaskLibrary, codes: Sequence[str]) -> None:
        assert sorted(code.decode() for code in library.codes) == codes

    return [
        Case(
            ours=lambda: reader.read_masks(next(mine)),
            other=partial(table, theirs),
            other_name="pyarrow read_table with a filter",
            sizes={
                "images": num_images,
                "proposals an image": 30,
                "image": f"{side} x {side}",
                "files": len(files),
            },
            check=same_codes,
            calls=5,
        )
    ]
