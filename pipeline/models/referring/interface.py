"""What every referring-expression network gives: two-channel logits, and ReLA's two further outputs."""

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

from mmengine.model import BaseModule
from torch import Tensor

BACKGROUND, OBJECT = 0, 1
"""Channels of the logits."""


@dataclass(frozen=True)
class ReferOutput:
    """What a network says of B pairs of an image and a sentence."""

    logits: Tensor
    """[B, 2, H/4, W/4], channels :data:`BACKGROUND` and :data:`OBJECT`."""
    minimap: Tensor | None = None
    """[B, 2, R] logits of the R regions of ReLA, row by row; None where the network has no regions."""
    no_target: Tensor | None = None
    """[B, 2] logits of "there is an object" and "there is none"; None where the network cannot tell."""

    def select(self, images: slice) -> "ReferOutput":
        """The part of some images, for one forward over labelled and unlabelled ones."""
        minimap = None if self.minimap is None else self.minimap[images]
        no_target = None if self.no_target is None else self.no_target[images]
        return ReferOutput(self.logits[images], minimap, no_target)


class ReferNetwork(BaseModule):
    """Base of the networks.

    The whole loss of a batch is ``pixel_loss_weight * cross entropy of the upsampled logits`` plus the auxiliary
    losses, which come with their weights.
    """

    pixel_loss_weight: float = 1.0

    @abstractmethod
    def forward(self, images: Tensor, sentences: Sequence[str]) -> ReferOutput:
        """Segment.

        Args:
            images: [B, 3, H, W] normalised; H and W are multiples of 32.
            sentences: B of them.
        """

    @abstractmethod
    def auxiliary_losses(self, output: ReferOutput, targets: Tensor, has_target: Tensor) -> dict[str, Tensor]:
        """Losses beside the pixels' cross entropy, by name, weighted, one for each image.

        Args:
            output: Of :meth:`forward`.
            targets: [B, H, W] bool, the object's mask.
            has_target: [B] bool, whether the sentence speaks of anything.

        Returns:
            Values [B] whose mean is the loss of the batch.
        """

    @abstractmethod
    def upsample(self, logits: Tensor, size_hw: tuple[int, int]) -> Tensor:
        """Logits [B, 2, h, w] at another size, by the network's own rule: [B, 2, H, W]."""
