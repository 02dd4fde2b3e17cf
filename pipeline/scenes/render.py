"""Draw one embedded scene: image, visible instance masks, classes and colours, from a seed.

What makes the scenes the papers' problem in small: same-class instances with similar colours that
touch and overlap (a weak teacher merges them), parts with a texture of their own (a promptable
segmenter cuts them out), shading, textured background, unlabelled clutter, blur and noise.
"""

import colorsys
from dataclasses import dataclass, field

import cv2
import numpy as np
from numpy.typing import NDArray

from pipeline.scenes.shapes import Family, Outline

COLOURS: dict[str, float] = {
    "red": 0.0,
    "orange": 0.075,
    "yellow": 0.15,
    "green": 0.34,
    "cyan": 0.5,
    "blue": 0.62,
    "purple": 0.76,
    "pink": 0.9,
}
"""Colour names and their hue in [0, 1); fills stay within 0.02 of it."""

MIN_VISIBLE_PIXELS = 80
MIN_VISIBLE_SHARE = 0.45
_SUBPIXEL_BITS = 4


@dataclass(frozen=True)
class SceneStyle:
    """What varies between data sets; the defaults are the benchmark's difficulty."""

    size: int = 192
    """Height and width in pixels."""
    num_instances: tuple[int, int] = (3, 10)
    """Instances wanted per scene, both ends included; crowded scenes may end with fewer."""
    radius_share: tuple[float, float] = (0.065, 0.17)
    """Instance radius as a share of ``size``."""
    touching_probability: float = 0.55
    """Chance that the next instance touches the previous one and shares its class and colour."""
    part_probability: float = 0.4
    """Chance that an instance has a part with a texture of its own."""
    num_clutter: tuple[int, int] = (2, 10)
    """Unlabelled strokes and specks on the background."""
    noise_sigma: tuple[float, float] = (2.0, 9.0)
    """Standard deviation of the pixel noise, in grey levels."""


@dataclass(frozen=True)
class SceneInstance:
    """One visible object."""

    family: str
    colour: str
    mask: NDArray[np.bool_]
    """[H, W], the visible pixels only: masks of one scene never overlap."""


@dataclass(frozen=True)
class Scene:
    """One image and what is in it, in drawing order (later instances lie on top)."""

    image: NDArray[np.uint8]
    """[H, W, 3] RGB."""
    instances: list[SceneInstance] = field(default_factory=list)


@dataclass(frozen=True)
class _Placed:
    family: str
    colour: str
    hue: float
    centre: NDArray[np.float64]
    radius: float
    mask: NDArray[np.bool_]
    outlines: list[Outline]


def draw_scene(rng: np.random.Generator, families: dict[str, Family], style: SceneStyle) -> Scene:
    """Draw one scene. The same generator state gives the same scene, bit for bit, on one platform."""
    placed = _place_instances(rng, families, style)
    image = _draw_ground(rng, style)
    for instance in placed:
        _paint_instance(rng, image, instance, style)
    owner = np.zeros((style.size, style.size), np.int32)
    for number, instance in enumerate(placed, start=1):
        owner[instance.mask] = number
    instances = [SceneInstance(p.family, p.colour, owner == number) for number, p in enumerate(placed, start=1)]
    return Scene(_photograph(rng, image, style), instances)


def _place_instances(rng: np.random.Generator, families: dict[str, Family], style: SceneStyle) -> list[_Placed]:
    """Reject a candidate that would hide too much of what is there already, or lie mostly outside."""
    wanted = int(rng.integers(style.num_instances[0], style.num_instances[1] + 1))
    placed: list[_Placed] = []
    visible: list[NDArray[np.bool_]] = []
    for _ in range(8 * wanted):
        if len(placed) == wanted:
            break
        candidate = _propose(rng, families, style, placed)
        area = int(candidate.mask.sum())
        if area < MIN_VISIBLE_PIXELS or area < 0.6 * _full_area(candidate):
            continue
        left = [mask & ~candidate.mask for mask in visible]
        if all(_still_visible(seen, whole.mask) for seen, whole in zip(left, placed, strict=True)):
            placed.append(candidate)
            visible = [*left, candidate.mask]
    return placed


def _still_visible(seen: NDArray[np.bool_], whole: NDArray[np.bool_]) -> bool:
    return bool(seen.sum() >= max(MIN_VISIBLE_PIXELS, MIN_VISIBLE_SHARE * whole.sum()))


def _propose(
    rng: np.random.Generator, families: dict[str, Family], style: SceneStyle, placed: list[_Placed]
) -> _Placed:
    radius = style.size * rng.uniform(*style.radius_share)
    if placed and rng.random() < style.touching_probability:
        near = placed[int(rng.integers(len(placed)))]
        family, colour = near.family, near.colour
        hue = near.hue + rng.uniform(-0.008, 0.008)
        radius = near.radius * rng.uniform(0.8, 1.25)
        angle = rng.uniform(0, 2 * np.pi)
        reach = (radius + near.radius) * rng.uniform(0.7, 0.97)
        centre = near.centre + reach * np.array([np.cos(angle), np.sin(angle)])
    else:
        family = str(rng.choice(list(families)))
        colour = str(rng.choice(list(COLOURS)))
        hue = COLOURS[colour] + rng.uniform(-0.02, 0.02)
        centre = rng.uniform(0.3 * radius, style.size - 0.3 * radius, 2)
    angle, stretch = rng.uniform(0, 2 * np.pi), rng.uniform(0.85, 1.0)
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    outlines = [(o * [radius, radius * stretch]) @ turn.T + centre for o in families[family](rng)]
    return _Placed(family, colour, hue, centre, radius, _fill(outlines, style.size), outlines)


def _fill(outlines: list[Outline], size: int) -> NDArray[np.bool_]:
    canvas = np.zeros((size, size), np.uint8)
    for value, outline in zip([1] + [0] * (len(outlines) - 1), outlines, strict=True):
        cv2.fillPoly(
            canvas, [np.round(outline * (1 << _SUBPIXEL_BITS)).astype(np.int32)], value, cv2.LINE_8, _SUBPIXEL_BITS
        )
    return canvas.astype(bool)


def _full_area(instance: _Placed) -> float:
    """Area in pixels of the outline, the part outside the canvas included (shoelace formula)."""
    areas = [_shoelace(outline) for outline in instance.outlines]
    return areas[0] - sum(areas[1:])


def _shoelace(outline: Outline) -> float:
    x, y = outline.T
    return 0.5 * abs(float(x @ np.roll(y, -1) - y @ np.roll(x, -1)))


def _rgb(hue: float, saturation: float, value: float) -> NDArray[np.float32]:
    return 255 * np.array(colorsys.hsv_to_rgb(hue % 1, np.clip(saturation, 0, 1), np.clip(value, 0, 1)), np.float32)


def _draw_ground(rng: np.random.Generator, style: SceneStyle) -> NDArray[np.float32]:
    """[H, W, 3] float32: a gradient between two muted colours, cloudy texture, clutter."""
    size = style.size
    hue = rng.uniform()
    first = _rgb(hue, rng.uniform(0.05, 0.4), rng.uniform(0.25, 0.85))
    second = _rgb(hue + rng.uniform(-0.15, 0.15), rng.uniform(0.05, 0.4), rng.uniform(0.25, 0.85))
    blend = _cloud(rng, size, cells=int(rng.integers(2, 5)))
    background = first + (second - first) * blend[..., None]
    background = background + rng.uniform(5, 28) * (_cloud(rng, size, cells=int(rng.integers(12, 40)))[..., None] - 0.5)
    if rng.random() < 0.4:
        background = background + rng.uniform(4, 16) * _stripes(rng, size)[..., None]
    background = np.ascontiguousarray(background, np.float32)
    for _ in range(int(rng.integers(style.num_clutter[0], style.num_clutter[1] + 1))):
        colour = _rgb(rng.uniform(), rng.uniform(0.1, 0.7), rng.uniform(0.2, 0.95)).tolist()
        start = rng.uniform(0, size, 2).astype(int).tolist()
        if rng.random() < 0.6:
            end = (np.array(start) + rng.uniform(-0.4, 0.4, 2) * size).astype(int).tolist()
            cv2.line(background, start, end, colour, int(rng.integers(1, 3)), cv2.LINE_AA)
        else:
            cv2.circle(background, start, int(rng.integers(1, max(3, size // 48))), colour, -1, cv2.LINE_AA)
    return background


def _paint_instance(rng: np.random.Generator, image: NDArray[np.float32], instance: _Placed, style: SceneStyle) -> None:
    """Fill with shading and texture, give some instances a part and a rim; anti-aliased edge."""
    size = style.size
    saturation, value = rng.uniform(0.45, 0.9), rng.uniform(0.5, 0.95)
    fill = np.broadcast_to(_rgb(instance.hue, saturation, value), (size, size, 3)).astype(np.float32)
    fill = fill * (1 + rng.uniform(0.05, 0.3) * _ramp(rng, instance.centre, instance.radius, size))[..., None]
    texture = rng.random()
    if texture < 0.25:
        fill = fill + rng.uniform(6, 26) * _stripes(rng, size)[..., None]
    elif texture < 0.5:
        fill = fill + rng.uniform(15, 50) * (_cloud(rng, size, cells=int(rng.integers(16, 48)))[..., None] - 0.5)
    if rng.random() < style.part_probability:
        part = _ramp(rng, instance.centre, instance.radius, size) > rng.uniform(0.15, 0.5)
        other = _rgb(
            instance.hue + rng.uniform(-0.04, 0.04), saturation * rng.uniform(0.4, 1.2), value * rng.uniform(0.45, 0.8)
        )
        fill = np.where(part[..., None], 0.35 * fill + 0.65 * other, fill)
    alpha = cv2.GaussianBlur(instance.mask.astype(np.float32), (0, 0), 0.6)
    if rng.random() < 0.5:
        inside = cv2.GaussianBlur(instance.mask.astype(np.float32), (0, 0), 1.6)
        fill = fill * (1 - rng.uniform(0.15, 0.5) * (1 - np.clip(2 * inside - 1, 0, 1)))[..., None]
    image += alpha[..., None] * (fill - image)


def _photograph(rng: np.random.Generator, image: NDArray[np.float32], style: SceneStyle) -> NDArray[np.uint8]:
    """Uneven light, a little blur, pixel noise, then 8 bits."""
    light = 1 + rng.uniform(0, 0.25) * (_cloud(rng, style.size, cells=2) - 0.5)
    blurred = cv2.GaussianBlur(image * light[..., None], (0, 0), rng.uniform(0.3, 0.9))
    noisy = blurred + rng.normal(0, rng.uniform(*style.noise_sigma), image.shape)
    return np.clip(np.round(noisy), 0, 255).astype(np.uint8)


def _cloud(rng: np.random.Generator, size: int, *, cells: int) -> NDArray[np.float32]:
    """[H, W] float32 in about [0, 1]: smooth random values on a coarse lattice."""
    lattice = rng.random((cells, cells), dtype=np.float32)
    return np.asarray(cv2.resize(lattice, (size, size), interpolation=cv2.INTER_CUBIC), np.float32)


def _stripes(rng: np.random.Generator, size: int) -> NDArray[np.float32]:
    """[H, W] float32 in [-1, 1]: a plane wave of 4 to 14 pixels."""
    angle, period, phase = rng.uniform(0, np.pi), rng.uniform(4, 14), rng.uniform(0, 2 * np.pi)
    y, x = np.mgrid[0:size, 0:size].astype(np.float32)
    return np.asarray(np.sin((x * np.cos(angle) + y * np.sin(angle)) * 2 * np.pi / period + phase), np.float32)


def _ramp(rng: np.random.Generator, centre: NDArray[np.float64], radius: float, size: int) -> NDArray[np.float32]:
    """[H, W] float32: -1 to 1 across an instance, in a random direction."""
    angle = rng.uniform(0, 2 * np.pi)
    y, x = np.mgrid[0:size, 0:size].astype(np.float32)
    return np.asarray(((x - centre[0]) * np.cos(angle) + (y - centre[1]) * np.sin(angle)) / radius, np.float32)
