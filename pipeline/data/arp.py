"""Augmentation with refined pseudo-labels (ARP): instances of one image pasted into another, both ways.

Pure functions on arrays; the inputs are never changed.

Eq: S4M/arp
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal, TypeVar, get_args

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import ConfigError
from pipeline.masks.overlap import mask_areas
from pipeline.masks.window import Window, bounding_window

PasteMode = Literal["static", "moved"]
"""static: same coordinates (the paper, released Cityscapes). moved: rescaled, anywhere (released COCO)."""


_Value = TypeVar("_Value", bound=np.generic)


@dataclass(frozen=True)
class Sample:
    """One image with its instances."""

    image: NDArray[np.uint8]
    """[H, W, 3]."""
    masks: NDArray[np.bool_]
    """[N, H, W]."""
    labels: NDArray[np.int64]
    """[N] class indices."""
    weights: tuple[NDArray[np.float32] | None, ...] | None = None
    """N loss weights per pixel, [H, W] each, None for 1 everywhere; None if no instance has any."""

    def __post_init__(self) -> None:
        """Refuse shapes that do not belong together (ValueError)."""
        count = len(self.labels)
        weights_fit = self.weights is None or len(self.weights) == count
        if self.masks.shape != (count, *self.image.shape[:2]) or not weights_fit:
            raise ValueError(
                f"image {self.image.shape}, masks {self.masks.shape} and labels {self.labels.shape} "
                "do not belong together: expected [H, W, 3], [N, H, W], [N], and N weights if any"
            )

    def weight_list(self) -> list[NDArray[np.float32] | None]:
        """Return the weights as a list of N, whether or not any instance has some."""
        return [None] * len(self.labels) if self.weights is None else list(self.weights)


@dataclass(frozen=True)
class ArpSettings:
    """How instances are pasted."""

    mode: PasteMode = "static"
    min_source_area: int = 0
    """Smaller instances are not pasted, in pixels. Paper: all are pasted (0). Released: 3000."""
    scale_range: tuple[float, float] = (0.8, 1.2)
    """Uniform size factor of "moved" instances."""
    min_visible_pixels: int = 16
    """An instance that was pasted or covered and keeps fewer pixels is dropped. Released: 1, slivers survive."""
    min_visible_share: float = 0.05
    """The same as a share of its area before it was covered. Released: 0."""
    pair_fraction: float = 1.0
    """Share of a batch that takes part. Released: 0.5, that is max(1, b // 4) pairs."""

    def __post_init__(self) -> None:
        """Refuse values out of range.

        Raises:
            ConfigError: naming the setting.
        """
        low, high = self.scale_range
        legal = {
            "mode": (self.mode in get_args(PasteMode), "static | moved"),
            "min_source_area": (self.min_source_area >= 0, "0 or more pixels"),
            "scale_range": (0 < low <= high, "0 < smallest <= largest"),
            "min_visible_pixels": (self.min_visible_pixels >= 1, "1 pixel or more"),
            "min_visible_share": (0 <= self.min_visible_share <= 1, "a share from 0 to 1"),
            "pair_fraction": (0 <= self.pair_fraction <= 1, "a share from 0 to 1"),
        }
        for name, (is_legal, expected) in legal.items():
            if not is_legal:
                raise ConfigError(
                    "an ARP setting is out of range",
                    where=name,
                    expected=expected,
                    got=getattr(self, name),
                    fix=f"correct `{name}` in the augmentation's settings",
                )


@dataclass(frozen=True)
class _Patch:
    """A source instance as it will lie in the receiver: where it is taken from and where it goes, pixel by pixel."""

    source_rows: NDArray[np.int64] | slice
    source_columns: NDArray[np.int64] | slice
    top: int
    left: int
    mask: NDArray[np.bool_]
    """[h, w] which of its pixels are pasted."""

    @property
    def window(self) -> Window:
        """Where it goes."""
        height, width = self.mask.shape
        return slice(self.top, self.top + height), slice(self.left, self.left + width)

    def taken_from(self, source: NDArray[_Value]) -> NDArray[_Value]:
        """What it takes of the source's pixels [H, W, ...]: [h, w, ...]."""
        return source[self.source_rows][:, self.source_columns]


def augment_batch(samples: Sequence[Sample], settings: ArpSettings, rng: np.random.Generator) -> list[Sample]:
    """Mix disjoint random pairs of a batch, both ways; images without a partner come back as they are.

    Args:
        samples: b samples; fewer than two are legal and stay as they are.
        settings: How to paste.
        rng: Source of randomness.

    Returns:
        b samples in the same order.
    """
    mixed = list(samples)
    for first, second in pair_up(len(samples), settings.pair_fraction, rng):
        mixed[first], mixed[second] = mix_pair(samples[first], samples[second], settings, rng)
    return mixed


def pair_up(batch_size: int, pair_fraction: float, rng: np.random.Generator) -> list[tuple[int, int]]:
    """Draw disjoint pairs.

    Args:
        batch_size: b.
        pair_fraction: Share of the batch that takes part: 1 pairs every image (all but one if b is odd), 0.5 gives the
            max(1, b // 4) pairs of the released code, 0 none.
        rng: Source of randomness.

    Returns:
        Pairs of indices below b.
    """
    if batch_size < 2 or pair_fraction == 0:
        return []
    num_pairs = max(1, int(batch_size * pair_fraction / 2))
    order = rng.permutation(batch_size)[: 2 * num_pairs].reshape(num_pairs, 2)
    return [(int(first), int(second)) for first, second in order]


def mix_pair(first: Sample, second: Sample, settings: ArpSettings, rng: np.random.Generator) -> tuple[Sample, Sample]:
    """Paste the instances of each sample into the other; both start from the unchanged state.

    Args:
        first: One sample.
        second: The other; another size is legal.
        settings: How to paste.
        rng: Source of randomness.

    Returns:
        The two receivers, first and second.
    """
    return paste(second, first, settings, rng), paste(first, second, settings, rng)


def paste(source: Sample, receiver: Sample, settings: ArpSettings, rng: np.random.Generator) -> Sample:
    """Paste the instances of one sample into another.

    Eq: S4M/arp (S4M, Eq. 4): x' = M * x_source + (1 - M) * x_receiver with M the union of the pasted masks; the labels
    are the receiver's, then the pasted ones. The receiver's masks lose the pasted pixels and only those: its own
    overlaps stay, while the released code cuts them by query order. "moved" patches come from different places, so a
    later one covers an earlier one; "static" patches are one picture and keep their overlaps.

    Args:
        source: Gives instances.
        receiver: Gives the image and its own instances.
        settings: How to paste.
        rng: Source of randomness ("moved" only).

    Returns:
        A new sample of the receiver's size. Covered or pasted instances that keep too few pixels are dropped, and so
        are empty ones.
    """
    # What would be dropped below is not pasted in the first place: no pixels without a label.
    least = max(settings.min_source_area, settings.min_visible_pixels)
    chosen = np.flatnonzero(mask_areas(source.masks) >= least)
    size_hw = (receiver.image.shape[0], receiver.image.shape[1])
    place = _placed if settings.mode == "static" else _moved
    patches = [place(source.masks[index], size_hw, settings, rng) for index in chosen]
    image, pasted, covered = _painted(receiver.image, source.image, patches, keep_overlaps=settings.mode == "static")
    mixed = Sample(
        image,
        np.concatenate([receiver.masks & ~covered, pasted]),
        np.concatenate([receiver.labels, source.labels[chosen]]),
        _mixed_weights(source, receiver, chosen, patches, pasted, covered),
    )
    full_areas = [np.count_nonzero(patch.mask) for patch in patches]
    areas_before = np.concatenate([mask_areas(receiver.masks), np.array(full_areas, dtype=np.int64)])
    return _without_slivers(mixed, areas_before, num_own=len(receiver.labels), settings=settings)


def _painted(
    image: NDArray[np.uint8], source: NDArray[np.uint8], patches: Sequence[_Patch], *, keep_overlaps: bool
) -> tuple[NDArray[np.uint8], NDArray[np.bool_], NDArray[np.bool_]]:
    """Paste the pixels of all patches in order.

    Returns:
        The image; which pixels each patch has, [P, H, W] bool, with those that a later one covers only if overlaps
        are kept; which any has, [H, W] bool.
    """
    image = image.copy()
    pasted = np.zeros((len(patches), *image.shape[:2]), dtype=bool)
    covered = np.zeros(image.shape[:2], dtype=bool)
    for mask, patch in zip(pasted[::-1], patches[::-1], strict=True):  # the last one lies on top
        new = patch.mask & ~covered[patch.window]
        np.copyto(image[patch.window], patch.taken_from(source), where=new[..., None])  # Eq: S4M/arp
        mask[patch.window] = patch.mask if keep_overlaps else new
        covered[patch.window] |= new
    return image, pasted, covered


def _placed(
    mask: NDArray[np.bool_], size_hw: tuple[int, int], settings: ArpSettings, rng: np.random.Generator
) -> _Patch:
    """The same coordinates; what lies outside a smaller receiver is cut off."""
    rows, columns = bounding_window(mask[: size_hw[0], : size_hw[1]])
    return _Patch(rows, columns, rows.start, columns.start, mask[rows, columns])


def _moved(
    mask: NDArray[np.bool_], size_hw: tuple[int, int], settings: ArpSettings, rng: np.random.Generator
) -> _Patch:
    """Rescaled by nearest sampling, at a random place where all of it fits; a random window of it if none does."""
    factor = rng.uniform(*settings.scale_range)
    window = bounding_window(mask)
    rows, top = _axis_placement(window[0], factor, size_hw[0], rng)
    columns, left = _axis_placement(window[1], factor, size_hw[1], rng)
    return _Patch(rows, columns, top, left, mask[rows][:, columns])


def _axis_placement(
    occupied: slice, factor: float, room: int, rng: np.random.Generator
) -> tuple[NDArray[np.int64], int]:
    """Along one axis with these occupied indices: the source of every pasted pixel, and where the first one goes."""
    length = occupied.stop - occupied.start
    new_length = max(1, round(length * factor))
    nearest = ((np.arange(new_length) + 0.5) * length / new_length).astype(np.int64)  # pixel centre
    source = occupied.start + nearest
    cut = int(rng.integers(0, max(new_length - room, 0) + 1))
    source = source[cut : cut + room]
    return source, int(rng.integers(0, room - len(source) + 1))


def _mixed_weights(
    source: Sample,
    receiver: Sample,
    chosen: NDArray[np.int64],
    patches: Sequence[_Patch],
    pasted: NDArray[np.bool_],
    covered: NDArray[np.bool_],
) -> tuple[NDArray[np.float32] | None, ...] | None:
    """Weights of the receiver's, then of the pasted instances.

    A teacher's doubt is about the pixels it saw. A pasted pixel is surely not the receiver's instance, and a pixel that
    was not pasted is surely not the pasted one: both weigh 1.
    """
    if source.weights is None and receiver.weights is None:
        return None
    mixed = [None if own is None else np.where(covered, np.float32(1), own) for own in receiver.weight_list()]
    source_weights = source.weight_list()
    for index, patch, mask in zip(chosen, patches, pasted, strict=True):
        weight = source_weights[index]
        placed = None
        if weight is not None:
            placed = np.ones(mask.shape, dtype=np.float32)
            placed[patch.window] = patch.taken_from(weight)
            placed[~mask] = 1
        mixed.append(placed)
    return tuple(mixed)


def _without_slivers(sample: Sample, areas_before: NDArray[np.int64], *, num_own: int, settings: ArpSettings) -> Sample:
    areas = mask_areas(sample.masks)
    is_large = (areas >= settings.min_visible_pixels) & (areas >= settings.min_visible_share * areas_before)
    is_untouched = (areas == areas_before) & (np.arange(len(areas)) < num_own)  # a small object of its own is no sliver
    kept = np.flatnonzero((is_large | is_untouched) & (areas > 0))
    weights = None if sample.weights is None else tuple(sample.weights[index] for index in kept)
    return replace(sample, masks=sample.masks[kept], labels=sample.labels[kept], weights=weights)
