"""The strong view of an unlabelled image for the student: colour jitter on top of the weak view.

SemiRES (ICML 2024) names RandomColorJitter; released: with probability 0.5 brightness, contrast and saturation times
U(0.75, 1.25) and hue plus U(-0.25, 0.25), in a random order. There it falls on tensors that are normalised already,
which are then normalised once more; here it belongs before the normalisation. (Given a normalised tensor, this does
what is released: blending clamps it to [0, 1].)
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torchvision.transforms.v2 import functional

from pipeline.data.referring.words import names_colour
from pipeline.errors import ConfigError

_STEPS: tuple[Callable[[Tensor, float], Tensor], ...] = (
    functional.adjust_brightness,
    functional.adjust_contrast,
    functional.adjust_saturation,
    functional.adjust_hue,
)
_HUE = 3


@dataclass(frozen=True)
class JitterSettings:
    """How far colours move; the defaults are those of the released SemiRES."""

    probability: float = 0.5
    brightness: float = 0.25
    """Largest change of the factor, 0 to 1; likewise contrast and saturation."""
    contrast: float = 0.25
    saturation: float = 0.25
    hue: float = 0.25
    """Largest shift of the hue, 0 to 0.5; 0.25 is a quarter of the circle: red becomes green or violet."""
    keep_named_colours: bool = False
    """Leave the hue alone where the sentence names a colour (not in the paper)."""

    def __post_init__(self) -> None:
        """Refuse what is out of range (ConfigError)."""
        for name, largest in (("probability", 1), ("brightness", 1), ("contrast", 1), ("saturation", 1), ("hue", 0.5)):
            value = getattr(self, name)
            if not 0 <= value <= largest:
                raise ConfigError("colour jitter", where=name, expected=f"0 to {largest}", got=value)


def jittered(
    images: Tensor, sentences: Sequence[str], settings: JitterSettings, *, generator: torch.Generator
) -> Tensor:
    """Change the colours of every image by draws of its own; no geometry.

    Args:
        images: [B, 3, H, W], uint8 or float in [0, 1], on any device.
        sentences: B texts.
        settings: How far.
        generator: On the CPU. An image takes the same number of draws whatever comes of them.

    Returns:
        [B, 3, H, W] of the same type.
    """
    views = []
    for image, sentence in zip(images, sentences, strict=True):
        fires = float(torch.rand((), generator=generator)) < settings.probability
        shifts = (2 * torch.rand(4, generator=generator) - 1).tolist()
        order = torch.randperm(4, generator=generator).tolist()
        if not fires:
            views.append(image)
            continue
        spared = {_HUE} if settings.keep_named_colours and names_colour(sentence) else set()
        views.append(_changed(image, settings, shifts, [step for step in order if step not in spared]))
    return torch.stack(views)


def _changed(image: Tensor, settings: JitterSettings, shifts: Sequence[float], order: Sequence[int]) -> Tensor:
    """One image [3, H, W] after the steps in ``order``; bytes are rounded once, at the end."""
    reach = (settings.brightness, settings.contrast, settings.saturation, settings.hue)
    is_bytes = image.dtype == torch.uint8
    view = image.float() / 255 if is_bytes else image
    for step in order:
        by = shifts[step] * reach[step]
        view = _STEPS[step](view, by if step == _HUE else 1 + by)
    return (view * 255).round().clamp(0, 255).to(torch.uint8) if is_bytes else view
