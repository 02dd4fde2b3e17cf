"""Shape families of the embedded scenes, as closed outlines in a unit frame.

A family is a function ``(rng) -> list of outlines``; an outline is ``[V, 2] float64`` (x, y) with the
shape's extent about 1, the first outline is filled and every later one is a hole. Parameters vary
inside a family, so that a class is more than one silhouette.

Two disjoint groups: :data:`BENCHMARK_FAMILIES` are the classes of the demo, the tests and the tables;
:data:`START_FAMILIES` are what the pretrained start (``scenes-base``) saw instead.
"""

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

Outline = NDArray[np.float64]
Family = Callable[[np.random.Generator], list[Outline]]


def _circle(radius: float = 1.0, num_vertices: int = 48, *, start: float = 0.0, sweep: float = 2 * np.pi) -> Outline:
    angles = start + sweep * np.arange(num_vertices) / num_vertices
    return np.asarray(radius * np.stack([np.cos(angles), np.sin(angles)], axis=1))


def _star_polygon(num_tips: int, inner: float) -> Outline:
    angles = np.pi * np.arange(2 * num_tips) / num_tips - np.pi / 2
    radii = np.where(np.arange(2 * num_tips) % 2 == 0, 1.0, inner)
    return np.asarray(radii[:, None] * np.stack([np.cos(angles), np.sin(angles)], axis=1))


def _points(*xy: tuple[float, float]) -> Outline:
    return np.asarray(xy, dtype=np.float64)


def disk(rng: np.random.Generator) -> list[Outline]:
    """A disk, nearly round."""
    return [_circle() * [1.0, rng.uniform(0.85, 1.0)]]


def ring(rng: np.random.Generator) -> list[Outline]:
    """An annulus: what is seen through the hole is not the object."""
    return [_circle(), _circle(rng.uniform(0.42, 0.6))]


def triangle(rng: np.random.Generator) -> list[Outline]:
    """A triangle, from equilateral to moderately skewed."""
    angles = np.array([0.0, 2.1, 4.2]) + rng.uniform(-0.25, 0.25, 3)
    return [np.stack([np.cos(angles), np.sin(angles)], axis=1)]


def box(rng: np.random.Generator) -> list[Outline]:
    """A rectangle, aspect 0.55 to 0.95."""
    aspect = rng.uniform(0.55, 0.95)
    return [_points((-1, -aspect), (1, -aspect), (1, aspect), (-1, aspect)) * 0.85]


def star(rng: np.random.Generator) -> list[Outline]:
    """A five-pointed star."""
    return [_star_polygon(5, rng.uniform(0.4, 0.52))]


def cross(rng: np.random.Generator) -> list[Outline]:
    """A plus sign."""
    a = rng.uniform(0.26, 0.4)
    quarter = [(a, -1.0), (a, -a), (1.0, -a)]
    turns = [quarter]
    for _ in range(3):
        turns.append([(-y, x) for x, y in turns[-1]])
    return [_points(*[xy for turn in turns for xy in turn])]


def crescent(rng: np.random.Generator) -> list[Outline]:
    """A moon: an outer arc closed by a shallower inner one."""
    half = rng.uniform(2.0, 2.3)
    outer = _circle(1.0, 40, start=-half, sweep=2 * half * 40 / 39)
    centre, tip = rng.uniform(-0.85, -0.65), outer[-1]
    radius = float(np.hypot(tip[0] - centre, tip[1]))
    reach = float(np.arctan2(tip[1], tip[0] - centre))
    inner = _circle(radius, 30, start=reach, sweep=-2 * reach * 30 / 29) + [centre, 0.0]
    return [np.concatenate([outer, inner]) + [0.1, 0.0]]


def heart(rng: np.random.Generator) -> list[Outline]:
    """A heart."""
    t = 2 * np.pi * np.arange(60) / 60
    x = np.sin(t) ** 3
    y = -(13 * np.cos(t) - 5 * np.cos(2 * t) - 2 * np.cos(3 * t) - np.cos(4 * t)) / 15.0
    return [np.stack([x, y * rng.uniform(0.85, 1.0)], axis=1)]


def hexagon(rng: np.random.Generator) -> list[Outline]:
    """A hexagon, slightly stretched."""
    return [_circle(1.0, 6) * [1.0, rng.uniform(0.75, 1.0)]]


def arrow(rng: np.random.Generator) -> list[Outline]:
    """A block arrow."""
    shaft, neck = rng.uniform(0.2, 0.35), rng.uniform(-0.1, 0.25)
    upper = [(-1.0, -shaft), (neck, -shaft), (neck, -0.75), (1.0, 0.0)]
    return [_points(*upper, (neck, 0.75), (neck, shaft), (-1.0, shaft))]


def capsule(rng: np.random.Generator) -> list[Outline]:
    """A pill: a rectangle with round ends."""
    r = rng.uniform(0.3, 0.45)
    right = _circle(r, 20, start=-np.pi / 2, sweep=np.pi * 20 / 19) + [1.0 - r, 0.0]
    return [np.concatenate([right, -right])]


def gear(rng: np.random.Generator) -> list[Outline]:
    """A toothed wheel with a small bore."""
    teeth = int(rng.integers(7, 10))
    angles = 2 * np.pi * np.arange(4 * teeth) / (4 * teeth)
    radii = np.where(np.arange(4 * teeth) % 4 < 2, 1.0, 0.76)
    return [radii[:, None] * np.stack([np.cos(angles), np.sin(angles)], axis=1), _circle(0.28, 24)]


def drop(rng: np.random.Generator) -> list[Outline]:
    """A water drop."""
    t = 2 * np.pi * np.arange(50) / 50
    return [np.stack([np.cos(t), rng.uniform(0.8, 1.0) * np.sin(t) * np.sin(t / 2) ** 1.5], axis=1)]


def ell(rng: np.random.Generator) -> list[Outline]:
    """An L-shaped piece."""
    a, b = rng.uniform(-0.35, -0.05, 2)
    return [_points((-0.85, -0.9), (a, -0.9), (a, 0.9 + b - 0.3), (0.85, 0.9 + b - 0.3), (0.85, 0.9), (-0.85, 0.9))]


def bowtie(rng: np.random.Generator) -> list[Outline]:
    """Two triangles that meet in a waist."""
    w = rng.uniform(0.12, 0.22)
    return [_points((-1, -0.75), (0, -w), (1, -0.75), (1, 0.75), (0, w), (-1, 0.75))]


def flower(rng: np.random.Generator) -> list[Outline]:
    """Round petals around a centre."""
    petals, depth = int(rng.integers(5, 8)), rng.uniform(0.18, 0.28)
    t = 2 * np.pi * np.arange(96) / 96
    return [((1 - depth) + depth * np.cos(petals * t))[:, None] * np.stack([np.cos(t), np.sin(t)], axis=1)]


def bolt(rng: np.random.Generator) -> list[Outline]:
    """A lightning bolt."""
    s = rng.uniform(0.85, 1.1)
    return [_points((0.1, -1), (-0.6 * s, 0.15), (-0.05, 0.15), (-0.3, 1), (0.6 * s, -0.25), (0.05, -0.25), (0.45, -1))]


def arch(rng: np.random.Generator) -> list[Outline]:
    """A horseshoe: half an annulus with legs."""
    inner = rng.uniform(0.45, 0.6)
    outside = _circle(1.0, 24, start=np.pi, sweep=np.pi * 24 / 23)
    inside = _circle(inner, 24, start=2 * np.pi, sweep=-np.pi * 24 / 23)
    return [np.concatenate([outside, [[1.0, 0.8], [inner, 0.8]], inside, [[-inner, 0.8], [-1.0, 0.8]]])]


BENCHMARK_FAMILIES: dict[str, Family] = {
    "disk": disk,
    "ring": ring,
    "triangle": triangle,
    "box": box,
    "star": star,
    "cross": cross,
    "crescent": crescent,
    "heart": heart,
}
START_FAMILIES: dict[str, Family] = {
    "hexagon": hexagon,
    "arrow": arrow,
    "capsule": capsule,
    "gear": gear,
    "drop": drop,
    "ell": ell,
    "bowtie": bowtie,
    "flower": flower,
    "bolt": bolt,
    "arch": arch,
}
