"""Referring expressions for the embedded scenes: sentences that mean exactly one object of the scene.

The grammar; ``x``, ``y`` are the centre of an object's visible pixels and area is its visible area::

    the NOUN                                                      the only NOUN
    the leftmost|rightmost|topmost|bottommost NOUN                extreme centre among the NOUNs
    the largest|smallest NOUN                                     extreme area among the NOUNs
    the NOUN on the left|on the right|at the top|at the bottom    the only NOUN with its centre in that half
    the second|third|fourth NOUN from the left|the top            in order of centres among the NOUNs
    the NOUN left of|right of|above|below the UNIQUE              the only other NOUN on that side of UNIQUE's centre
    the NOUN closest to the UNIQUE                                the other NOUN with the nearest centre

NOUN is ``[COLOUR] CLASS`` or ``[COLOUR] shape`` (a shape is any object); UNIQUE is a NOUN that only one object is.
A comparison is used only where it is clear at a glance (:data:`CLEAR_DISTANCE`, :data:`CLEAR_AREA`): these margins
make sentences rarer, never wrong.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from pipeline.scenes.render import Scene

CLEAR_DISTANCE = 0.03
"""Least difference of two centres that is called left, above or closer, as a share of the image side."""
CLEAR_AREA = 1.2
"""Least ratio of two areas that is called larger."""
ANYTHING = "shape"

# Words, the coordinate they speak of, and the sign that makes the meant object the smallest.
_EXTREMES = (("leftmost", "x", 1), ("rightmost", "x", -1), ("topmost", "y", 1), ("bottommost", "y", -1))
_HALVES = (("on the left", "x", 1), ("on the right", "x", -1), ("at the top", "y", 1), ("at the bottom", "y", -1))
_SIDES = (("left of", "x", 1), ("right of", "x", -1), ("above", "y", 1), ("below", "y", -1))
_ORDINALS = ("second", "third", "fourth")


@dataclass(frozen=True)
class SceneObject:
    """What a sentence can speak of."""

    family: str
    colour: str
    x: float
    """Centre of the visible pixels as a share of the image width, 0 left to 1 right."""
    y: float
    """Likewise of the height, 0 top to 1 bottom."""
    area: int
    """Visible pixels."""


@dataclass(frozen=True)
class Candidate:
    """A sentence that means exactly ``target``."""

    target: int
    """Index of the object."""
    kind: str
    """Rule of the grammar: name, extreme, size, half, ordinal, side or nearest."""
    sentence: str


def scene_objects(scene: Scene) -> list[SceneObject]:
    """Describe the instances of a scene, in their order."""
    objects = []
    for instance in scene.instances:
        rows, columns = np.nonzero(instance.mask)
        height, width = instance.mask.shape
        x, y = float((columns + 0.5).mean() / width), float((rows + 0.5).mean() / height)
        objects.append(SceneObject(instance.family, instance.colour, x, y, len(rows)))
    return objects


def describe(
    objects: Sequence[SceneObject], rng: np.random.Generator, *, max_per_object: int = 3
) -> list[tuple[int, str]]:
    """Choose sentences: per object up to ``max_per_object``, each by another rule of the grammar.

    Args:
        objects: all objects of one scene.
        rng: decides among the rules that apply and among the sentences of a rule.
        max_per_object: at least 1.

    Returns:
        (object index, sentence) by object; an object that no sentence tells apart has none.
    """
    by_object: dict[int, dict[str, list[str]]] = {index: {} for index in range(len(objects))}
    for candidate in candidates(objects):
        by_object[candidate.target].setdefault(candidate.kind, []).append(candidate.sentence)
    chosen: list[tuple[int, str]] = []
    for index, by_kind in by_object.items():
        kinds = [str(kind) for kind in rng.permutation(list(by_kind))[:max_per_object]]
        chosen += [(index, by_kind[kind][int(rng.integers(len(by_kind[kind])))]) for kind in kinds]
    return chosen


def candidates(objects: Sequence[SceneObject]) -> Iterator[Candidate]:
    """Every sentence of the grammar that clearly means exactly one object."""
    groups = _groups(objects)
    unique = {noun: members[0] for noun, members in groups.items() if len(members) == 1}
    for noun, members in groups.items():
        if noun in unique:
            yield Candidate(unique[noun], "name", f"the {noun}")
        else:
            yield from _extremes(objects, noun, members)
            yield from _sizes(objects, noun, members)
            yield from _halves(objects, noun, members)
            yield from _ordinals(objects, noun, members)
        for anchor_noun, anchor in unique.items():
            others = [member for member in members if member != anchor]
            yield from _sides(objects, noun, others, (anchor_noun, anchor))
            yield from _nearest(objects, noun, others, (anchor_noun, anchor))


def _groups(objects: Sequence[SceneObject]) -> dict[str, list[int]]:
    """Objects by every noun that names them."""
    groups: dict[str, list[int]] = {}
    for index, thing in enumerate(objects):
        nouns = (thing.family, f"{thing.colour} {thing.family}", ANYTHING, f"{thing.colour} {ANYTHING}")
        for noun in nouns:
            groups.setdefault(noun, []).append(index)
    return groups


def _along(objects: Sequence[SceneObject], members: Sequence[int], axis: str, sign: int) -> list[tuple[float, int]]:
    """(signed coordinate, index), smallest first."""
    return sorted((sign * float(getattr(objects[member], axis)), member) for member in members)


def _extremes(objects: Sequence[SceneObject], noun: str, members: Sequence[int]) -> Iterator[Candidate]:
    for word, axis, sign in _EXTREMES:
        (first, target), (second, _), *_ = _along(objects, members, axis, sign)
        if second - first >= CLEAR_DISTANCE:
            yield Candidate(target, "extreme", f"the {word} {noun}")


def _sizes(objects: Sequence[SceneObject], noun: str, members: Sequence[int]) -> Iterator[Candidate]:
    order = sorted(members, key=lambda member: objects[member].area)
    if objects[order[-1]].area >= CLEAR_AREA * objects[order[-2]].area:
        yield Candidate(order[-1], "size", f"the largest {noun}")
    if objects[order[1]].area >= CLEAR_AREA * objects[order[0]].area:
        yield Candidate(order[0], "size", f"the smallest {noun}")


def _halves(objects: Sequence[SceneObject], noun: str, members: Sequence[int]) -> Iterator[Candidate]:
    for words, axis, sign in _HALVES:
        (first, target), (second, _), *_ = _along(objects, members, axis, sign)
        middle = sign * 0.5
        if first <= middle - CLEAR_DISTANCE and second >= middle + CLEAR_DISTANCE:
            yield Candidate(target, "half", f"the {noun} {words}")


def _ordinals(objects: Sequence[SceneObject], noun: str, members: Sequence[int]) -> Iterator[Candidate]:
    for end, axis in (("left", "x"), ("top", "y")):
        order = _along(objects, members, axis, 1)
        for place, word in enumerate(_ORDINALS[: max(0, len(order) - 2)], start=1):
            (before, _), (here, target), (after, _) = order[place - 1 : place + 2]
            if min(here - before, after - here) >= CLEAR_DISTANCE:
                yield Candidate(target, "ordinal", f"the {word} {noun} from the {end}")


def _sides(
    objects: Sequence[SceneObject], noun: str, others: Sequence[int], anchor: tuple[str, int]
) -> Iterator[Candidate]:
    anchor_noun, anchor_index = anchor
    for words, axis, sign in _SIDES:
        limit = sign * float(getattr(objects[anchor_index], axis))
        order = [*_along(objects, others, axis, sign), (np.inf, -1)]  # the end stands for "nothing else"
        (first, target), (second, _) = order[0], order[min(1, len(order) - 1)]
        if first <= limit - CLEAR_DISTANCE and second >= limit + CLEAR_DISTANCE:
            yield Candidate(target, "side", f"the {noun} {words} the {anchor_noun}")


def _nearest(
    objects: Sequence[SceneObject], noun: str, others: Sequence[int], anchor: tuple[str, int]
) -> Iterator[Candidate]:
    anchor_noun, anchor_index = anchor
    centre = objects[anchor_index]
    order = sorted((float(np.hypot(objects[i].x - centre.x, objects[i].y - centre.y)), i) for i in others)
    if len(order) > 1 and order[1][0] - order[0][0] >= CLEAR_DISTANCE:
        yield Candidate(order[0][1], "nearest", f"the {noun} closest to the {anchor_noun}")
