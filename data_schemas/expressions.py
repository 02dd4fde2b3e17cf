"""One referring expression: a sentence that means exactly one object of one image, in the manner of REFER."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass

import pyarrow as pa

EXPRESSION_VERSION = 1
EXPRESSION_SCHEMA = pa.schema(
    [
        pa.field("ref_id", pa.int64(), nullable=False),
        pa.field("sentence_id", pa.int64(), nullable=False),
        pa.field("image_id", pa.int64(), nullable=False),
        pa.field("annotation_id", pa.int64(), nullable=False),
        pa.field("sentence", pa.string(), nullable=False),
        pa.field("split", pa.string(), nullable=False),
    ],
    metadata={"schema": "expressions", "version": str(EXPRESSION_VERSION)},
)


@dataclass(frozen=True)
class Expression:
    """A row of :data:`EXPRESSION_SCHEMA`. All sentences about one object share its ``ref_id``."""

    ref_id: int
    """The referred object, unique in a split."""
    sentence_id: int
    """Unique in a split."""
    image_id: int
    annotation_id: int
    """Of the object in the split's COCO file."""
    sentence: str
    split: str

    def as_dict(self) -> dict[str, int | str]:
        """For JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, row: Mapping[str, object]) -> "Expression":
        """Read one JSON object.

        Raises:
            ValueError: a key is missing or unknown, or a value has another type.
        """
        kinds = cls.__annotations__
        if set(row) != set(kinds):
            raise ValueError(f"expression: expected the keys {sorted(kinds)}, got {sorted(row)}")
        for key, kind in kinds.items():
            if type(row[key]) is not kind:
                raise ValueError(f"expression: {key} must be {kind.__name__}, got {row[key]!r}")
        if not str(row["sentence"]).strip():
            raise ValueError("expression: the sentence is empty")
        return cls(**row)  # type: ignore[arg-type]
