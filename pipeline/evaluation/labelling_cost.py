"""What labels cost: the table of SemiRES' appendix A for any set of referring expressions and any split.

The paper multiplies objects by a time for each mask. Where its table cannot be followed exactly (it counts 50,000
objects of RefCOCO, validation and test included, and 500 of them for 1 %), this one counts what is there: a split
names images, and the masks are those of their objects. Sentences are counted and not priced: unlabelled images have
theirs too.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from pipeline.data.referring.sets import ReferSet, ReferSource

SECONDS_PER_MASK = 79.2
"""22 worker hours for 1,000 masks, as the authors of COCO counted (Lin et al., 2014)."""


@dataclass(frozen=True)
class LabellingCost:
    """Of the labelled part of a set."""

    num_images: int
    num_objects: int
    """Referred objects; several may share a mask."""
    num_masks: int
    """Annotations, each once."""
    num_sentences: int
    num_vertices: int | None
    """Corners of the masks' polygons, each a click; None where a mask is no polygon."""
    seconds_per_mask: float

    @property
    def hours(self) -> float:
        """Of work on the masks."""
        return self.num_masks * self.seconds_per_mask / 3600


def labelling_cost(
    source: ReferSource, labelled: ReferSet | None = None, *, seconds_per_mask: float = SECONDS_PER_MASK
) -> LabellingCost:
    """Count what has to be drawn.

    Args:
        source: The files, as opened; no mask is decoded.
        labelled: Objects that are labelled; all of the source where None.
        seconds_per_mask: Work on one mask.
    """
    chosen = labelled or source.sentences
    wanted = {number for thing in chosen.objects for number in thing.annotation_ids}
    return LabellingCost(
        num_images=len(chosen.image_ids),
        num_objects=len(chosen.objects),
        num_masks=len(wanted),
        num_sentences=chosen.num_sentences,
        num_vertices=_vertices([entry.get("segmentation") for entry in source.entries if entry.get("id") in wanted]),
        seconds_per_mask=seconds_per_mask,
    )


def cost_table(costs: Mapping[str, LabellingCost]) -> str:
    """Markdown, one line for each named part."""
    lines = [
        "| labelled | images | objects | masks | sentences | polygon corners | hours |",
        "|---|---:|---:|---:|---:|---:|---:|",
    ]
    for name, cost in costs.items():
        corners = "-" if cost.num_vertices is None else f"{cost.num_vertices:,}"
        counts = f"{cost.num_images:,} | {cost.num_objects:,} | {cost.num_masks:,} | {cost.num_sentences:,}"
        lines.append(f"| {name} | {counts} | {corners} | {cost.hours:.2f} |")
    return "\n".join(lines)


@dataclass(frozen=True)
class TokenStatistics:
    """How long the sentences of a set are for a tokenizer."""

    num_sentences: int
    longest: int
    mean: float
    num_cut: int
    """Longer than the network reads."""


def token_statistics(
    refer_set: ReferSet, count_tokens: Callable[[str], int], *, max_tokens: int = 20, text: str = "sent"
) -> TokenStatistics:
    """Count the tokens of every sentence.

    Args:
        refer_set: Masks are not needed.
        count_tokens: Tokens of a text, with those that the network adds ([CLS], [SEP]).
        max_tokens: What the network reads (paper: 20).
        text: sent | raw: which text of a sentence.
    """
    sentences = [sentence for thing in refer_set.objects for sentence in thing.sentences]
    lengths: Sequence[int] = [count_tokens(s.text if text == "sent" else s.raw) for s in sentences]
    num_cut = sum(length > max_tokens for length in lengths)
    return TokenStatistics(len(lengths), max(lengths, default=0), sum(lengths) / max(len(lengths), 1), num_cut)


def _vertices(segmentations: Sequence[object]) -> int | None:
    """Corners of all polygons (flat lists of x and y)."""
    total = 0
    for polygons in segmentations:
        if not isinstance(polygons, list) or not all(isinstance(polygon, list) for polygon in polygons):
            return None
        total += sum(len(polygon) // 2 for polygon in polygons)
    return total
