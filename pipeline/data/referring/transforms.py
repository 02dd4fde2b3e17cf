"""Transforms of referred objects: a fixed square, the weak view, flips that the sentence follows, and the packing.

All of them take and give the dict of a sample (:class:`~pipeline.data.referring.dataset.ReferDataset`); masks are
under ``gt_mask`` or ``hidden_mask``, where there are any. Randomness is numpy's global generator, which a stream
seeds for every sample; every transform draws as many numbers whatever comes of them.
"""

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageFilter

from pipeline.data.instance_dataset import Record
from pipeline.data.referring.sample import META_KEYS, ReferSample
from pipeline.data.referring.words import mirrored, upside_down
from pipeline.errors import ConfigError
from pipeline.masks.warp import warp_to_view

_MASKS = ("gt_mask", "hidden_mask")


class ResizeToSquare:
    """Bring image and masks to ``size`` x ``size`` pixels; the aspect ratio is not kept (paper: 480).

    One sampling rule: a pixel stands for its centre. The image is bilinear with Pillow's widened filter where it
    shrinks, as in the released code; a mask takes the pixel under the centre.
    """

    def __init__(self, size: int = 480) -> None:
        if size < 1:
            raise ConfigError("size of the square", where="ResizeToSquare.size", expected="1 or more", got=size)
        self.size = size

    def __call__(self, sample: Record) -> Record:
        """Resize ``img``, the masks and the homography."""
        height, width = sample["img"].shape[:2]
        scale = np.diag([self.size / width, self.size / height, 1.0])
        square = (self.size, self.size)
        sample["img"] = np.asarray(Image.fromarray(sample["img"]).resize(square, Image.Resampling.BILINEAR))
        for key in _MASKS:
            if key in sample:
                sample[key] = warp_to_view(sample[key][None], scale, view_hw=square)[0]
        return _moved(sample, scale)


class RandomBlur:
    """Gaussian blur of a fixed radius (paper: RandomGaussianBlur; as released: p = 0.5, radius 1, Pillow's)."""

    def __init__(self, probability: float = 0.5, radius: float = 1.0) -> None:
        _refuse_no_share(probability, "RandomBlur.probability")
        self.probability, self.radius = probability, radius

    def __call__(self, sample: Record) -> Record:
        """Blur ``img`` or leave it."""
        if np.random.random() < self.probability:
            sample["img"] = np.asarray(Image.fromarray(sample["img"]).filter(ImageFilter.GaussianBlur(self.radius)))
        return sample


class FlipWithWords:
    """Flip the image and exchange the words for sides in the sentence; neither where the words are doubtful.

    Not in the papers, whose flips have probability 0: the words would be wrong. Top and bottom only make sense where
    there is no gravity, as in the scenes.
    """

    def __init__(self, horizontal: float = 0.5, vertical: float = 0.0) -> None:
        """Take the probability of either flip, 0 to 1."""
        _refuse_no_share(horizontal, "FlipWithWords.horizontal")
        _refuse_no_share(vertical, "FlipWithWords.vertical")
        self.horizontal, self.vertical = horizontal, vertical

    def __call__(self, sample: Record) -> Record:
        """Flip ``img``, masks, homography and ``sentence``, or nothing."""
        draws = np.random.random(2)
        if draws[0] < self.horizontal:
            sample = _flipped(sample, mirrored(sample["sentence"]), axis=1)
        if draws[1] < self.vertical:
            sample = _flipped(sample, upside_down(sample["sentence"]), axis=0)
        return sample


class HideReferredTruth:
    """Move the mask of an image that counts as unlabelled where no loss looks: it only measures pseudo-labels."""

    def __call__(self, sample: Record) -> Record:
        """Rename the key; what is meant, if anything, is not told either."""
        if "gt_mask" in sample:
            sample["hidden_mask"] = sample.pop("gt_mask")
        sample["has_target"] = True
        return sample


class PackReferred:
    """Make of a sample what the networks take."""

    def __call__(self, sample: Record) -> Record:
        """Return ``inputs`` [3, H, W] uint8 RGB and ``data_samples``, a :class:`ReferSample`."""
        packed = ReferSample(metainfo={key: sample[key] for key in META_KEYS})
        if "gt_mask" in sample:
            packed.gt_mask = _tensor(sample["gt_mask"])
        if "hidden_mask" in sample:
            packed.hidden_truth = _tensor(sample["hidden_mask"])
        return {"inputs": _tensor(sample["img"].transpose(2, 0, 1)), "data_samples": packed}


def _flipped(sample: Record, sentence: str | None, *, axis: int) -> Record:
    if sentence is None:
        return sample
    sample["sentence"] = sentence
    for key in ("img", *_MASKS):
        if key in sample:
            sample[key] = np.flip(sample[key], axis)
    height, width = sample["img"].shape[:2]
    matrix = np.diag([-1.0, 1.0, 1.0] if axis == 1 else [1.0, -1.0, 1.0])
    matrix[:2, 2] = (width, 0) if axis == 1 else (0, height)
    return _moved(sample, matrix)


def _moved(sample: Record, matrix: NDArray[np.float64]) -> Record:
    """The sample with a step from the view so far to the next one in its homography."""
    sample["homography_matrix"] = (matrix @ sample["homography_matrix"]).astype(np.float32)
    sample["img_shape"] = sample["img"].shape[:2]
    return sample


def _tensor(values: NDArray[np.generic]) -> torch.Tensor:
    return torch.from_numpy(np.array(values, order="C"))


def _refuse_no_share(value: float, where: str) -> None:
    if not 0 <= value <= 1:
        raise ConfigError("not a probability", where=where, expected="0 to 1", got=value)
