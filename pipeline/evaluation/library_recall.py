"""How well a proposal library covers annotated instances: the limit of every refiner that matches against it."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from pipeline.masks.rle import Rle, pairwise_iou


@dataclass(frozen=True)
class LibraryRecall:
    """Overlaps of the instances of some images with their proposals."""

    best_of_instances: tuple[float, ...]
    """IoU of each instance with its best proposal; 0 where there is none."""
    best_of_proposals: tuple[float, ...]
    """IoU of each proposal with its best instance."""

    def at(self, iou: float) -> float | None:
        """Share of the instances that some proposal covers with more than this IoU; None without instances."""
        return float(np.mean(np.array(self.best_of_instances) > iou)) if self.best_of_instances else None

    @property
    def proposals_on_objects(self) -> float | None:
        """Share of the proposals with more than 0.5 IoU with an instance; None without proposals."""
        return float(np.mean(np.array(self.best_of_proposals) > 0.5)) if self.best_of_proposals else None

    def __add__(self, other: "LibraryRecall") -> "LibraryRecall":
        """Of both sets of images."""
        return LibraryRecall(
            self.best_of_instances + other.best_of_instances, self.best_of_proposals + other.best_of_proposals
        )


def library_recall(truth: Sequence[Rle], proposals: Sequence[Rle]) -> LibraryRecall:
    """Compare the instances of one image with its proposals, all of one size."""
    iou = pairwise_iou(truth, proposals)
    return LibraryRecall(tuple(iou.max(axis=1, initial=0).tolist()), tuple(iou.max(axis=0, initial=0).tolist()))
