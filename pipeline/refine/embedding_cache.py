"""SAM's image embeddings, kept for the images used last: prompts are cheap, encoding is not."""

from collections import OrderedDict

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import InputError
from pipeline.refine.interface import check_number
from pipeline.sam.interface import ImageEmbedding, SamBackend


class EmbeddingCache:
    """A least-recently-used cache by image id; call it like the refiner's ``embed``."""

    def __init__(self, backend: SamBackend, *, size: int) -> None:
        """Keep at most ``size`` embeddings (scenes-nano: 1.3 MB each, SAM 2.1 large: 30 MB in fp32).

        Raises:
            ConfigError: a size below 1.
        """
        check_number("cached_embeddings", size, low=1, high=float("inf"), whole=True)
        self._backend, self._size = backend, size
        self._kept: OrderedDict[int, ImageEmbedding] = OrderedDict()

    def __contains__(self, image_id: int) -> bool:
        """Whether the image need not be given."""
        return image_id in self._kept

    def __call__(self, image_id: int, image: NDArray[np.uint8] | None) -> ImageEmbedding:
        """The embedding of an image; ``image`` [H, W, 3] uint8 RGB may be None if it is cached."""
        if image_id in self._kept:
            self._kept.move_to_end(image_id)
            return self._kept[image_id]
        if image is None:
            raise InputError("an image is needed to prompt SAM", where=f"image {image_id}", got="no pixels")
        self._kept[image_id] = self._backend.embed([image])[0]
        while len(self._kept) > self._size:
            self._kept.popitem(last=False)
        return self._kept[image_id]
