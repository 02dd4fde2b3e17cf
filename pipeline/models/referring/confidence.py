"""Dropping the pseudo-labels that a teacher is least sure of: the filter that SemiRES compares PWA with (Table 4).

The paper does not say what confidence is. Here it is the mean probability of the object over the pixels of the
teacher's mask, which does not depend on how much background there is; a mask without a pixel has none and is not
judged (``learn_empty`` decides about those).
"""

import math

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn


def mask_confidence(probability: NDArray[np.float32]) -> float | None:
    """Mean of the probabilities above one half of a map [H, W], in (0.5, 1]; None where there is none."""
    inside = probability[probability > 0.5]
    return float(inside.mean(dtype=np.float64)) if inside.size else None


class ConfidenceFilter(nn.Module):
    """Keeps what is not below a quantile of the pseudo-labels seen last; the checkpoint remembers them."""

    history: Tensor
    """[window] float32 confidences, in a ring."""
    num_seen: Tensor
    """How many there have been, int64."""

    def __init__(self, *, share: float, window: int) -> None:
        """Start without a past.

        Args:
            share: What is dropped, in [0, 1).
            window: How many confidences are remembered.
        """
        super().__init__()
        self.share = share
        self.register_buffer("history", torch.zeros(window, dtype=torch.float32))
        self.register_buffer("num_seen", torch.zeros((), dtype=torch.int64))

    def keeps(self, confidence: float) -> bool:
        """Judge one pseudo-label by those before it, then remember it.

        Everything is kept until there are as many as make one dropped one likely (20 for a share of 0.05).
        """
        seen, window = int(self.num_seen), len(self.history)
        past = self.history[: min(seen, window)].cpu().numpy()
        keeps = self.share == 0 or len(past) < min(math.ceil(1 / self.share), window)
        keeps = keeps or confidence >= float(np.quantile(past, self.share))
        self.history[seen % window] = confidence
        self.num_seen += 1
        return keeps
