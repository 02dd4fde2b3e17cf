"""Which proposals of a library a rule accepts for a teacher mask, unpacking only those that it may accept.

Boxes and areas bound what two masks can share. A rule is asked first with the numbers most in its favour, which costs
a few additions for a whole library, and then with exact ones for what is left. All rules here are monotone (more
shared pixels, or fewer of the proposal, never make them refuse), so that the answer is that of the exact numbers
alone. Everything is counted over the visible region: a proposal is clipped to it before any ratio is taken.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from pipeline.masks.library import MaskLibrary
from pipeline.masks.query import QueryMask

Indices = NDArray[np.int64]
Edges = NDArray[np.int64]
"""[4, K] x0, y0, x1, y1 (exclusive) of boxes."""


@dataclass(frozen=True)
class Overlaps:
    """One teacher mask c against K proposals m_k, in visible pixels."""

    intersection: NDArray[np.int64]
    """[K] I_k: pixels of c and m_k."""
    proposal_area: NDArray[np.int64]
    """[K] A_k: visible pixels of m_k."""
    mask_area: int
    """A_c: pixels of c; never 0 when a rule is asked."""


@dataclass(frozen=True)
class AcceptRule:
    """A rule of acceptance; both functions give rising indices [C] int64, possibly none."""

    accept: Callable[[Overlaps], Indices]
    """Decides, from exact numbers; proposals that `may_accept` left out change nothing."""
    may_accept: Callable[[Overlaps], Indices]
    """All that could be accepted were these numbers exact, or I_k smaller, or A_k larger."""


class Matcher:
    """One library seen through one view: what the masks of an image share."""

    def __init__(
        self,
        library: MaskLibrary,
        visible: NDArray[np.bool_],
        rule: AcceptRule,
        *,
        max_area_ratio: float | None = None,
    ) -> None:
        """Look at the view.

        Args:
            library: K proposals of the image.
            visible: [H, W] canonical pixels that the view showed.
            rule: Which proposals to accept for one mask.
            max_area_ratio: A proposal larger than this multiple of the mask is not considered.
        """
        self._library, self._visible, self._rule, self._max_area_ratio = library, visible, rule, max_area_ratio
        self._edges = _edges(library.boxes_xywh)
        self._least_area, self._most_area = library.areas, library.areas
        if not visible.all():
            self._least_area, self._most_area = self._visible_areas()

    def accepted(self, mask: NDArray[np.bool_]) -> Indices:
        """Match one mask.

        Args:
            mask: [H, W] bool, inside the visible region.

        Returns:
            [C] int64 rising indices of the accepted proposals; none for an empty mask.
        """
        query = QueryMask.of(mask)
        if query.area == 0 or len(self._library) == 0:
            return np.zeros(0, np.int64)
        candidates = self._candidates(query)
        if len(candidates) == 0:
            return candidates
        shared = query.shared_with([self._library.codes[k] for k in candidates.tolist()])
        areas = self._exact_areas(candidates)
        if self._max_area_ratio is not None:
            eligible = areas <= self._max_area_ratio * query.area
            candidates, shared, areas = candidates[eligible], shared[eligible], areas[eligible]
        chosen = self._rule.accept(Overlaps(shared, areas, query.area))
        return np.asarray(candidates[chosen], np.int64)

    def _candidates(self, query: QueryMask) -> Indices:
        most_shared = np.minimum(_shared_box(self._edges, query.box), np.minimum(self._most_area, query.area))
        least_area = np.maximum(self._least_area, most_shared)
        candidates = self._rule.may_accept(Overlaps(most_shared, least_area, query.area))
        if self._max_area_ratio is not None:
            candidates = candidates[self._least_area[candidates] <= self._max_area_ratio * query.area]
        return candidates

    def _exact_areas(self, chosen: Indices) -> NDArray[np.int64]:
        """Visible pixels of some proposals; those that the view cuts are counted."""
        areas = self._most_area[chosen]
        cut = np.flatnonzero(self._least_area[chosen] < areas)
        if len(cut):
            areas[cut] = self._view.shared_with([self._library.codes[k] for k in chosen[cut].tolist()])
        return areas

    def _visible_areas(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """[K] bounds of the visible pixels of every proposal; equal where they are known without counting."""
        x0, y0, x1, y1 = self._view.box
        inside = _shared_box(self._edges, self._view.box)
        most = np.minimum(self._library.areas, inside)
        if self._view.area != (x1 - x0) * (y1 - y0):
            return np.zeros_like(most), most
        whole = _shared_box(self._edges, _EVERYWHERE)
        return np.maximum(self._library.areas - (whole - inside), 0), most

    @cached_property
    def _view(self) -> QueryMask:
        return QueryMask.of(self._visible)


_EVERYWHERE = (-(2**30), -(2**30), 2**30, 2**30)


def _edges(boxes_xywh: NDArray[np.float32]) -> Edges:
    boxes = boxes_xywh.T.astype(np.float64)
    return np.concatenate([np.floor(boxes[:2]), np.ceil(boxes[:2] + boxes[2:])]).astype(np.int64)


def _shared_box(edges: Edges, box: tuple[int, int, int, int]) -> NDArray[np.int64]:
    """Pixels that K boxes share with one, [K] int64."""
    sides = np.minimum(edges[2:], np.array([[box[2]], [box[3]]]))
    sides -= np.maximum(edges[:2], np.array([[box[0]], [box[1]]]))
    np.maximum(sides, 0, out=sides)
    return np.asarray(sides[0] * sides[1], np.int64)
