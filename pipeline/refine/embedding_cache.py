"""SAM's image embeddings, kept for the images used last: prompts are cheap, encoding is not."""

import sys
from collections import OrderedDict
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import InputError
from pipeline.refine.interface import check_number
from pipeline.sam.batches import BatchSize, in_batches
from pipeline.sam.interface import ImageEmbedding, SamBackend


class EmbeddingCache:
    """A least-recently-used cache by image id; call it like the refiner's ``embed``."""

    def __init__(self, backend: SamBackend, *, size: int) -> None:
        """Keep at most ``size`` embeddings (scenes-nano: 1.3 MB each, SAM 2.1 large: 30 MB in fp32, half in bf16).

        Raises:
            ConfigError: a size below 1.
        """
        check_number("cached_embeddings", size, low=1, high=float("inf"), whole=True)
        self._backend, self._size = backend, size
        self._kept: OrderedDict[int, ImageEmbedding] = OrderedDict()
        self._prepared = 0
        self._fits = sys.maxsize

    def __contains__(self, image_id: int) -> bool:
        """Whether the image need not be given."""
        return image_id in self._kept

    def __call__(self, image_id: int, image: NDArray[np.uint8] | None) -> ImageEmbedding:
        """The embedding of an image; ``image`` [H, W, 3] uint8 RGB may be None if it is cached."""
        if image_id in self._kept:
            self._kept.move_to_end(image_id)
            return self._kept[image_id]
        self._encode({image_id: image})
        return self._kept[image_id]

    def prepare(self, images: Mapping[int, NDArray[np.uint8] | None]) -> None:
        """Have the embeddings of a step's images: those not kept are encoded as one batch.

        They are all there until `prepare` is called again, even if they are more than the cache keeps otherwise. Where
        the GPU's memory is not enough for the batch, smaller ones are encoded, down to one at a time, from then on.

        Args:
            images: By id, [H, W, 3] uint8 RGB; None is enough for images that are kept.

        Raises:
            InputError: no pixels of an image that is not kept.
            torch.OutOfMemoryError: even a single one needs more.
        """
        self._prepared = len(images)
        for image_id in images:
            if image_id in self._kept:
                self._kept.move_to_end(image_id)
        self._encode({image_id: image for image_id, image in images.items() if image_id not in self._kept})

    def _encode(self, images: Mapping[int, NDArray[np.uint8] | None]) -> None:
        """Encode and keep images; those used longest ago go."""
        pixels = [_pixels(image_id, image) for image_id, image in images.items()]
        self._kept.update(zip(images, self._embeddings(pixels), strict=True))
        while len(self._kept) > max(self._size, self._prepared):
            self._kept.popitem(last=False)

    def _embeddings(self, pixels: Sequence[NDArray[np.uint8]]) -> Iterable[ImageEmbedding]:
        wished = min(len(pixels), self._fits)
        batch = BatchSize(wished)
        found = [
            embedding
            for part in in_batches(len(pixels), batch, lambda part: self._backend.embed(pixels[part]))
            for embedding in part
        ]
        if batch.fits < wished:
            self._fits = batch.fits
        return found


def _pixels(image_id: int, image: NDArray[np.uint8] | None) -> NDArray[np.uint8]:
    if image is None:
        raise InputError("an image is needed to prompt SAM", where=f"image {image_id}", got="no pixels")
    return image
