"""One image of a data set, as jobs hand it to workers and stores keep it."""

from dataclasses import dataclass

import pyarrow as pa

IMAGE_VERSION = 1
IMAGE_SCHEMA = pa.schema(
    [
        pa.field("image_id", pa.int64(), nullable=False),
        pa.field("file_name", pa.string(), nullable=False),
        pa.field("height", pa.int32(), nullable=False),
        pa.field("width", pa.int32(), nullable=False),
        pa.field("split", pa.string(), nullable=False),
    ],
    metadata={"schema": "images", "version": str(IMAGE_VERSION)},
)
SPLITS = ("labelled", "unlabelled", "train", "val")


@dataclass(frozen=True)
class ImageRow:
    """A row of :data:`IMAGE_SCHEMA`."""

    image_id: int
    file_name: str
    """Relative to the image root, '/' between parts."""
    height: int
    """Canonical pixels, EXIF orientation applied."""
    width: int
    split: str
    """One of :data:`SPLITS`."""

    def __post_init__(self) -> None:
        """Refuse what no reader could use."""
        if self.height < 1 or self.width < 1:
            raise ValueError(f"image {self.image_id}: size must be positive, got {self.height} x {self.width}")
        if self.split not in SPLITS:
            raise ValueError(f"image {self.image_id}: split must be one of {SPLITS}, got {self.split!r}")
