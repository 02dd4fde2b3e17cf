"""The strong view of an unlabelled image: colour, grey, blur (S4M's SimCLR-style list)."""

import torch
from torch import Tensor
from torchvision.transforms import v2

_STRONG = v2.Compose(
    [
        v2.RandomApply([v2.ColorJitter(0.4, 0.4, 0.4, 0.1)], p=0.8),
        v2.RandomGrayscale(p=0.2),
        v2.RandomApply([v2.GaussianBlur(kernel_size=9, sigma=(0.1, 2.0))], p=0.5),
    ]
)


def strong_view(image: Tensor) -> Tensor:
    """Change the colours and the sharpness of an image, not its geometry.

    Args:
        image: [3, H, W] uint8 RGB. Randomness is torch's global generator, which every step seeds.

    Returns:
        [3, H, W] uint8.
    """
    strong: Tensor = _STRONG(image)
    return strong.to(torch.uint8)
