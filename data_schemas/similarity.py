"""Targets of the structural distillation: the Zarr layout, the frozen ``SimilarityTargets`` and its 8-bit form."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

SIMILARITY_VERSION = 1
Features = Literal["decoder", "encoder"]
"""What the rows compare: image tokens of SAM's mask decoder, conditioned by each point, or of its image encoder."""
INSIDE_GROUND_TRUTH, UNIFORM, NOT_COMPUTED = 0, 1, 255
"""Values of ``point_kind``; the last one fills the rows of quarantined images."""

MAX_QUANTISATION_ERROR = 1 / 255
"""Half a step of the 8-bit form: 256 levels over [-1, 1]."""
_ROUNDING_ROOM = 1e-3


def features_of(settings: Mapping[str, object]) -> str:
    """The features of a store by its settings; a store that does not say holds the decoder's, as all once did."""
    return str(settings.get("features", "decoder"))


@dataclass(frozen=True)
class SimilarityTargets:
    """P points of one image and, for each, its cosine to every cell of SAM's grid."""

    points_xy: NDArray[np.float32]
    """[P, 2] canonical pixels."""
    point_kind: NDArray[np.uint8]
    """[P]: 0 inside the ground truth, 1 uniform over the image."""
    similarity: NDArray[np.float32]
    """[P, gh, gw] in [-1, 1]."""

    def __post_init__(self) -> None:
        """Refuse arrays that do not speak of the same points."""
        num = len(self.points_xy)
        fits = self.points_xy.shape == (num, 2) and self.point_kind.shape == (num,)
        if not fits or self.similarity.ndim != 3 or len(self.similarity) != num:
            shapes = [self.points_xy.shape, self.point_kind.shape, self.similarity.shape]
            raise ValueError(f"expected shapes [P, 2], [P], [P, gh, gw], got {shapes}")


@dataclass(frozen=True)
class SimilarityLayout:
    """The sizes of the three arrays, known before the first image is computed."""

    num_points: int
    """P: points stored for each image."""
    grid_hw: tuple[int, int]
    """gh, gw: cells of the SAM decoder's grid."""
    rows_per_chunk: int = 64
    """Rows that are read and decompressed together: what one training step takes of one kind of point."""

    def __post_init__(self) -> None:
        """Refuse sizes that leave a chunk half filled."""
        if min(self.num_points, self.rows_per_chunk, *self.grid_hw) < 1 or self.num_points % self.rows_per_chunk:
            raise ValueError(f"num_points must be a positive multiple of rows_per_chunk, got {self}")

    def to_json(self) -> dict[str, object]:
        """As plain JSON values."""
        return {**asdict(self), "grid_hw": list(self.grid_hw)}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> "SimilarityLayout":
        """The reverse of :meth:`to_json`; raises KeyError, TypeError or ValueError."""
        gh, gw = data["grid_hw"]
        return cls(int(data["num_points"]), (int(gh), int(gw)), int(data["rows_per_chunk"]))


def quantise(similarity: NDArray[np.floating]) -> NDArray[np.uint8]:
    """Cosines to 8 bits: q = round((value + 1) * 127.5).

    Args:
        similarity: Any shape, in [-1, 1]; rounding beyond by less than 0.001 is clipped.

    Returns:
        Same shape, uint8; :func:`dequantise` of it is off by at most 1/255.

    Raises:
        ValueError: A value is not finite or outside [-1, 1].
    """
    values = np.asarray(similarity, dtype=np.float32)
    # NaN fails every comparison, so the test is written to need a success.
    if values.size and not (values.min() >= -1 - _ROUNDING_ROOM and values.max() <= 1 + _ROUNDING_ROOM):
        raise ValueError(f"a cosine is outside [-1, 1]: from {values.min()} to {values.max()}")
    levels: NDArray[np.uint8] = np.clip(np.rint((values + 1) * np.float32(127.5)), 0, 255).astype(np.uint8)
    return levels


def dequantise(levels: NDArray[np.uint8]) -> NDArray[np.float32]:
    """8 bits to cosines: q / 127.5 - 1, same shape, float32."""
    values: NDArray[np.float32] = np.divide(levels, np.float32(127.5), dtype=np.float32)
    values -= 1
    return values
