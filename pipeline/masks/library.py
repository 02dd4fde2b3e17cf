"""The masks of one image by columns: sizes and boxes ready for arithmetic, codes to be unpacked only when asked."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import InputError
from pipeline.masks import rle


@dataclass(frozen=True, eq=False)
class MaskLibrary:
    """K masks of one image, in its canonical frame."""

    size_hw: tuple[int, int]
    """Of the image, pixels."""
    areas: NDArray[np.int64]
    """[K] foreground pixels, exact."""
    boxes_xywh: NDArray[np.float32]
    """[K, 4] pixels; no foreground pixel lies outside."""
    codes: tuple[bytes, ...]
    """K COCO compressed run lengths, column-major."""

    @classmethod
    def from_rles(cls, rles: Sequence[rle.Rle], *, size_hw: tuple[int, int]) -> "MaskLibrary":
        """Measure K codes (K may be 0).

        Raises:
            InputError: a mask has another size than its image.
            AnnotationError: a code is malformed.
        """
        for index, code in enumerate(rles):
            if tuple(code["size"]) != tuple(size_hw):
                raise another_size(size_hw, code["size"], where=f"mask {index} of {len(rles)}")
        runs, offsets = rle.runs_of_many(rles)
        covered = np.concatenate([[0], np.cumsum(runs[:, 1] - runs[:, 0])])
        boxes = np.array([rle.bbox_xywh(code) for code in rles], np.float32).reshape(-1, 4)
        codes = tuple(code["counts"].encode() for code in rles)
        return cls(size_hw, np.asarray(covered[offsets[1:]] - covered[offsets[:-1]], np.int64), boxes, codes)

    def __len__(self) -> int:
        """Return the number of masks."""
        return len(self.areas)

    def rles(self, chosen: NDArray[np.int64]) -> list[rle.Rle]:
        """The chosen masks as codes with their size."""
        size = list(self.size_hw)
        return [rle.Rle(size=size, counts=self.codes[index].decode()) for index in chosen.tolist()]

    def union(self, chosen: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Decode the union of the chosen masks.

        Args:
            chosen: [C] indices of masks; only these are unpacked.

        Returns:
            [H, W] bool.

        Raises:
            AnnotationError: a code is malformed.
        """
        runs, _ = rle.runs_of_many(self.rles(chosen))
        return rle.dense(runs, height=self.size_hw[0], width=self.size_hw[1])


def another_size(expected: Sequence[int], got: Sequence[int], *, where: str) -> InputError:
    """The error for masks that cannot be of this image."""
    return InputError(
        "a mask has another size than its image",
        where=where,
        expected=list(expected),
        got=list(got),
        fix="was the image replaced after the masks were made? make them again",
    )
