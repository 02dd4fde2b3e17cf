"""One row of a labelling run: the Parquet schema and the frozen ``PseudoLabel``, before and after refinement."""

import math
from dataclasses import dataclass

import pyarrow as pa

PSEUDO_LABEL_VERSION = 1
OUTCOMES = ("matched", "kept", "empty", "dropped")
"""matched: the refined mask comes from SAM. kept: it is the network's. empty: the network's, without a pixel. dropped:
SAM does not bear it out, and the refined mask has no pixel; the first runs have none of these."""

PSEUDO_LABEL_SCHEMA = pa.schema(
    [
        pa.field("image_id", pa.int64(), nullable=False),
        pa.field("instance_id", pa.int32(), nullable=False),
        pa.field("category_id", pa.int64(), nullable=False),
        pa.field("score", pa.float32(), nullable=False),
        pa.field("outcome", pa.string(), nullable=False),
        pa.field("height", pa.int32(), nullable=False),
        pa.field("width", pa.int32(), nullable=False),
        pa.field("network_rle", pa.string(), nullable=False),
        pa.field("network_area", pa.int64(), nullable=False),
        pa.field("refined_rle", pa.string(), nullable=False),
        pa.field("refined_area", pa.int64(), nullable=False),
        pa.field("no_target", pa.float32()),
    ]
)


@dataclass(frozen=True, slots=True)
class PseudoLabel:
    """One instance that the network found and the refiner corrected, in the canonical frame of its image."""

    image_id: int
    instance_id: int
    """0, 1, ... inside the image, in the network's query order; of sentences by rising id."""
    category_id: int
    """Of the data set, not the network's class index; of an answer to a sentence the sentence's id."""
    score: float
    """Class probability, over the classes and no-object; of sentences the mean probability inside the mask, or 0."""
    outcome: str
    """One of :data:`OUTCOMES`."""
    height: int
    width: int
    network_rle: str
    """The mask before refinement: COCO compressed run lengths, column-major."""
    network_area: int
    """Foreground pixels of it."""
    refined_rle: str
    """The mask after refinement."""
    refined_area: int
    no_target: float | None = None
    """Of an answer to a sentence: the probability that nothing is meant. None where the network cannot tell, and in
    the first runs, which do not have the column; readers need no other version for it."""

    def __post_init__(self) -> None:
        """Refuse what no reader could use.

        Raises:
            ValueError: naming the field.
        """
        if self.outcome not in OUTCOMES:
            raise ValueError(f"outcome {self.outcome!r}, expected one of {OUTCOMES}")
        if not 0 <= self.score <= 1 or math.isnan(self.score):
            raise ValueError(f"score {self.score}, expected a probability")
        if self.no_target is not None and not 0 <= self.no_target <= 1:
            raise ValueError(f"no_target {self.no_target}, expected a probability")
        for name in ("network", "refined"):
            counts, area = getattr(self, f"{name}_rle"), getattr(self, f"{name}_area")
            if not counts or not counts.isascii():
                raise ValueError(f"{name}_rle is empty or not ASCII: {counts[:20]!r}")
            if not 0 <= area <= self.height * self.width:
                raise ValueError(f"{name}_area {area} in an image of {self.height * self.width} pixels")
