"""Which image stands where in an endless stream: shuffled passes, with images of rare classes repeated or without.

Repeat-factor sampling is that of Gupta et al. (LVIS, 2019). S4M's paper does not mention it; its released student draws
its labelled images so, with a threshold of 10.
"""

import math
from collections import Counter
from collections.abc import Collection, Sequence

import numpy as np
from numpy.typing import NDArray

from pipeline.data.coco import CocoSet
from pipeline.errors import ConfigError


def repeat_factors(image_classes: Sequence[Collection[int]], threshold: float) -> NDArray[np.float64]:
    """How often every image is to come in a pass, on average.

    A class that a share f of the images shows has the factor max(1, sqrt(threshold / f)); an image has the largest
    factor of its classes, and 1 without any.

    Args:
        image_classes: N images' classes; a class counts once an image.
        threshold: Share of images below which a class is rare. Above 1 every class is: images then come in proportion
            to 1 / sqrt(f) of their rarest class.

    Returns:
        [N] float64, 1 or more.

    Raises:
        ConfigError: a threshold that is no positive number.
    """
    is_number = isinstance(threshold, int | float) and not isinstance(threshold, bool)
    if not (is_number and 0 < threshold < math.inf):
        raise ConfigError(
            "not a threshold of repeat-factor sampling",
            where="repeat_threshold",
            expected="a number above 0, or None (off)",
            got=threshold,
        )
    images = Counter(label for classes in image_classes for label in set(classes))
    factor = {label: max(1.0, math.sqrt(threshold * len(image_classes) / n)) for label, n in images.items()}
    return np.array([max((factor[label] for label in classes), default=1.0) for classes in image_classes])


def classes_of_images(coco: CocoSet) -> list[set[int]]:
    """Labels of the objects that are taught, by image in the set's order; crowds and empty masks are not."""
    return [
        {coco.labels[a.category_id] for a in coco.annotations[image.image_id] if a.is_taught} for image in coco.images
    ]


class Passes:
    """Shuffled passes over N images; every position can be looked up without those before it."""

    def __init__(self, key: Sequence[int], num_images: int, *, factors: NDArray[np.float64] | None = None) -> None:
        """Take the seed and what is to be repeated.

        Args:
            key: Whole numbers, 0 or more, that with the number of a pass fix its order.
            num_images: N.
            factors: [N] float64 of :func:`repeat_factors`; None: every image once a pass.
        """
        self._key, self._num_images, self._factors = list(key), num_images, factors
        # A sum of whole numbers must not be rounded up by its last bit.
        self._length = num_images if factors is None else math.ceil(float(factors.sum()) - 1e-6)
        self._number, self._order = -1, np.zeros(0, dtype=np.int64)

    def __len__(self) -> int:
        """Return the positions of one pass, the same for all."""
        return self._length

    def index_at(self, position: int) -> int:
        """Index, 0 to N - 1, of the image at a position, 0 or more."""
        number, place = divmod(position, self._length)
        if self._number != number:
            rng = np.random.default_rng([*self._key, number])
            self._number, self._order = number, self._shuffled(rng)
        return int(self._order[place])

    def _shuffled(self, rng: np.random.Generator) -> NDArray[np.int64]:
        """One pass. An image with factor 2.3 comes twice or three times, three times in 30 % of the passes.

        The counts of one pass depend on each other (systematic sampling; LVIS rounds each by itself), so that all
        passes have one length. To fill it, factors are scaled up by less than one position together.
        """
        order = rng.permutation(self._num_images)
        if self._factors is None:
            return order
        reached = np.cumsum(self._factors[order])
        edges = reached[:-1] * (self._length / reached[-1])
        ticks = np.arange(self._length) + rng.random()
        return rng.permutation(order[np.searchsorted(edges, ticks, side="right")])
