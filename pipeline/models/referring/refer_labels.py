"""One unlabelled image's pseudo-label: what the teacher sees, refined in the canonical frame, back in the view."""

from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pipeline.distill.self_similarity import View
from pipeline.models.pseudo_labels import TeacherQueries, to_canonical, to_view
from pipeline.models.referring.confidence import mask_confidence
from pipeline.refine.build import weight_scope
from pipeline.refine.interface import Outcome, Refiner
from pipeline.refine.pixel_weight import pixel_weights


@dataclass(frozen=True)
class ReferLabel:
    """A pseudo-label in the pixels of the view."""

    mask: NDArray[np.bool_]
    """[H, W] what is learnt, unless the label is dropped."""
    weights: NDArray[np.float32] | None
    """[H, W] PWA weights; None is 1 everywhere."""
    outcome: Outcome
    own: NDArray[np.bool_]
    """[H, W] the teacher's mask, before refinement."""
    confidence: float | None
    """See ``confidence.py``; None where the teacher's mask has no pixel."""


def refer_label(
    logits: Tensor,
    view: View,
    *,
    refiner: Refiner,
    image_id: int,
    image: NDArray[np.uint8] | None,
    rng: np.random.Generator,
) -> ReferLabel:
    """Refine what the teacher says of one sentence about one image.

    A matched mask is the refiner's, sampled at the view's pixels. Anything else stays what it was in the view, with
    weights of its own probabilities there (SemiRES, Eq. 9 and 10): it does not go through the canonical frame. One that
    the refiner drops is not to be learnt.

    Args:
        logits: [H, W] of object against background, at the size of the view.
        view: Whole image, nothing padded.
        refiner: Any; whether it gives weights decides whether the label has some.
        image_id: Whose proposals or embedding.
        image: [H, W, 3] uint8 canonical, where the refiner needs it.
        rng: Of the refiner's draws.
    """
    probability = logits.float().sigmoid().cpu().numpy()
    own, confidence = probability > 0.5, mask_confidence(probability)
    score = torch.tensor([0.0 if confidence is None else confidence])
    teacher = to_canonical(TeacherQueries(logits[None], torch.zeros(1, dtype=torch.int64), score), view)
    refined = refiner.refine(image_id, image, teacher, rng)
    if refined.outcomes[0] == "matched":
        found = to_view(replace(refined, weights=[None]), teacher.labels, view, min_pixels=1)
        if len(found.masks):  # else it lies between the pixels of the view, and the label is as one without a match
            weights = None if refined.weights[0] is None else pixel_weights(probability)
            return ReferLabel(found.masks[0], weights, "matched", own, confidence)
    if refined.outcomes[0] == "dropped":
        return ReferLabel(own, None, "dropped", own, confidence)
    weights = None if weight_scope(refiner) == "off" else pixel_weights(probability)
    return ReferLabel(own, weights, "empty" if confidence is None else "kept", own, confidence)
