"""A referring network asked about images and sentences: shared by evaluate, pseudo-label and predict.

The network itself is opened as any other (``jobs/networks.py``); images go through the transforms of the config's
validation set, so that a network is asked here as it is in training.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from mmengine.config import Config
from numpy.typing import NDArray

from jobs.networks import Transforms, as_batch
from pipeline.distill.self_similarity import View
from pipeline.models.pseudo_labels import TeacherQueries, to_canonical
from pipeline.models.referring.confidence import mask_confidence
from pipeline.models.referring.segmentor import no_target_probabilities
from pipeline.refine.interface import TeacherMasks

Image = NDArray[np.uint8]
_SENTENCES_AT_ONCE = 8


def is_referring(config: Config) -> bool:
    """Whether a config is of a network that reads sentences."""
    return "segmentor" in config.model or "network" in config.model


def pack_sentence(
    transforms: Transforms, image: Image, sentence: str, *, image_id: int = 0, path: str = ""
) -> dict[str, Any]:
    """An image [H, W, 3] uint8 RGB canonical and a sentence as a sample of a batch."""
    size_hw = image.shape[:2]
    return transforms(
        {
            "img": image,
            "img_id": image_id,
            "img_path": path,
            "img_shape": size_hw,
            "ori_shape": size_hw,
            "homography_matrix": np.eye(3, dtype=np.float32),
            "ref_id": 0,
            "sentence_id": 0,
            "sentence": sentence,
            "has_target": True,
        }
    )


@torch.no_grad()
def answer(model: Any, packed: Sequence[Mapping[str, Any]]) -> Sequence[Any]:
    """Samples with ``pred_mask`` [h, w] bool in the canonical frame, and what else ``ReferSegmentor.predict`` gives."""
    inputs, samples = as_batch(model, packed)
    found: Sequence[Any] = model.predict(inputs, samples)
    return found


@dataclass(frozen=True)
class TeacherAnswers:
    """What a network says of N sentences about one image."""

    masks: TeacherMasks
    """``labels`` are 0 to N - 1; ``scores`` are confidences (``confidence.py``), 0 where a mask has no pixel."""
    no_target: tuple[float | None, ...]
    """N probabilities that nothing is meant; None where the network cannot tell. The masks do not depend on them."""


@torch.no_grad()
def teacher_answers(model: Any, packed: Sequence[Mapping[str, Any]]) -> TeacherAnswers:
    """What a network says of N sentences about one image, in the canonical frame, before any refinement."""
    logits, no_target = [], []
    for start in range(0, len(packed), _SENTENCES_AT_ONCE):
        inputs, samples = as_batch(model, packed[start : start + _SENTENCES_AT_ONCE])
        output = model.segment(inputs, samples)
        background, target = model.upsampled(output, inputs).unbind(dim=1)
        logits.append(target - background)
        no_target += no_target_probabilities(output)
    every, view_hw = torch.cat(logits), (inputs.shape[2], inputs.shape[3])
    view = View(torch.as_tensor(samples[0].homography_matrix), tuple(samples[0].ori_shape[:2]), view_hw, view_hw)
    scores = [mask_confidence(one) or 0.0 for one in every.float().sigmoid().cpu().numpy()]
    queries = TeacherQueries(every, torch.arange(len(every)), torch.tensor(scores))
    return TeacherAnswers(to_canonical(queries, view), tuple(no_target))
