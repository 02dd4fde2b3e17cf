"""The colour jitter of SSD (Liu et al., 2016) on S4M's Cityscapes views: brightness, contrast, saturation, hue."""

from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from pipeline.errors import ConfigError

_HUES = 180
"""Of 8 bits: steps of two degrees."""


class ColourJitter:
    """A transform that changes the colours of ``img`` [H, W, 3] uint8 RGB and nothing else.

    Each change happens by chance, brightness first, contrast second or last. Values are rounded and cut off to 8 bits
    after each. Randomness is numpy's global generator, which the stream seeds for every sample.
    """

    def __init__(
        self,
        prob: float = 0.5,
        *,
        brightness: int = 32,
        contrast: tuple[float, float] = (0.5, 1.5),
        saturation: tuple[float, float] = (0.5, 1.5),
        hue: int = 18,
    ) -> None:
        """Take the ranges.

        Args:
            prob: Chance of each of the four changes; 0 changes nothing.
            brightness: Largest number of grey levels that are added or taken away.
            contrast: Range of the factor.
            saturation: Range of the factor.
            hue: Largest turn of the colour wheel, in steps of two degrees.

        Raises:
            ConfigError: no chance, or a range that is none.
        """
        is_chance = isinstance(prob, int | float) and 0 <= prob <= 1
        is_range = all(0 <= low <= high for low, high in (contrast, saturation)) and brightness >= 0
        if not (is_chance and is_range and 0 <= hue <= _HUES // 2):
            raise ConfigError(
                "colour jitter out of range",
                where="ColourJitter",
                expected="prob from 0 to 1, brightness 0 or more, ranges (low, high) of 0 or more, hue 0 to 90",
                got=f"prob={prob}, brightness={brightness}, contrast={contrast}, saturation={saturation}, hue={hue}",
            )
        self.prob, self.brightness, self.contrast = float(prob), brightness, contrast
        self.saturation, self.hue = saturation, hue

    def __call__(self, results: dict[str, Any]) -> dict[str, Any]:
        """Change ``img``; the array that was there stays as it is."""
        image: NDArray[np.uint8] = results["img"]
        if self._happens():
            image = _scaled(image, 1.0, np.random.uniform(-self.brightness, self.brightness))
        contrast_is_second = np.random.random() < 0.5
        if contrast_is_second:
            image = self._with_contrast(image)
        if self._happens():
            image = _with_saturation(image, np.random.uniform(*self.saturation))
        if self._happens():
            image = _with_hue(image, int(np.random.randint(-self.hue, self.hue + 1)))
        if not contrast_is_second:
            image = self._with_contrast(image)
        results["img"] = image
        return results

    def _happens(self) -> bool:
        return bool(np.random.random() < self.prob)

    def _with_contrast(self, image: NDArray[np.uint8]) -> NDArray[np.uint8]:
        return _scaled(image, np.random.uniform(*self.contrast), 0.0) if self._happens() else image

    def __repr__(self) -> str:
        """For the log of a training."""
        return f"ColourJitter(prob={self.prob})"


def _scaled(values: NDArray[np.uint8], factor: float, offset: float) -> NDArray[np.uint8]:
    scaled = np.rint(values.astype(np.float32) * factor + offset)
    return np.asarray(np.clip(scaled, 0, 255), np.uint8)


def _with_saturation(image: NDArray[np.uint8], factor: float) -> NDArray[np.uint8]:
    wheel = np.asarray(cv2.cvtColor(image, cv2.COLOR_RGB2HSV), np.uint8)
    wheel[..., 1] = _scaled(wheel[..., 1], factor, 0.0)
    return np.asarray(cv2.cvtColor(wheel, cv2.COLOR_HSV2RGB), np.uint8)


def _with_hue(image: NDArray[np.uint8], steps: int) -> NDArray[np.uint8]:
    wheel = np.asarray(cv2.cvtColor(image, cv2.COLOR_RGB2HSV), np.uint8)
    wheel[..., 0] = (wheel[..., 0].astype(np.int16) + steps) % _HUES
    return np.asarray(cv2.cvtColor(wheel, cv2.COLOR_HSV2RGB), np.uint8)
