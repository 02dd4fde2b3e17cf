"""What every refiner takes and gives: teacher masks in, refined masks and an outcome for each out.

A refiner works in the canonical frame (the pixels of the decoded original image) and never knows the view: the caller
maps the teacher's probabilities in and the result back. N and the order of instances never change.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal, Protocol, get_args

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import ConfigError
from pipeline.masks.window import Window, bounding_window

Outcome = Literal["matched", "kept", "empty", "dropped"]
"""matched: the mask comes from SAM. kept: it is the teacher's. empty: the teacher's, and it has no pixel. dropped: SAM
does not bear the teacher's mask out, and none is given."""

Unmatched = Literal["keep", "drop"]
"""What becomes of a teacher mask for which SAM has none, or none that is accepted. Both papers keep it."""

UNMATCHED: tuple[str, ...] = get_args(Unmatched)


@dataclass(frozen=True)
class TeacherMasks:
    """The teacher's instances of one image, in the canonical frame."""

    probabilities: NDArray[np.float32]
    """[N, H, W] foreground probability, 0 outside the visible region."""
    visible: NDArray[np.bool_]
    """[H, W] canonical pixels that the view showed."""
    labels: NDArray[np.int64]
    """[N] class indices."""
    scores: NDArray[np.float32]
    """[N] class scores."""

    def __post_init__(self) -> None:
        """Refuse shapes that do not belong together.

        Raises:
            ValueError: naming the shapes.
        """
        count = len(self.probabilities)
        fits = self.probabilities.ndim == 3 and self.probabilities.shape[1:] == self.visible.shape
        if not fits or self.labels.shape != (count,) or self.scores.shape != (count,):
            raise ValueError(
                f"probabilities {self.probabilities.shape}, visible {self.visible.shape}, labels {self.labels.shape} "
                f"and scores {self.scores.shape} do not belong together: expected [N, H, W], [H, W], [N], [N]"
            )

    @property
    def masks(self) -> NDArray[np.bool_]:
        """[N, H, W] bool: probability above one half (strict), inside the visible region."""
        masks = np.zeros(self.probabilities.shape, dtype=bool)
        seen, visible = masks[:, *self.window], self.visible[self.window]
        np.greater(self.probabilities[:, *self.window], 0.5, out=seen)
        if not visible.all():  # turned: the window has corners that are not visible
            seen &= visible
        return masks

    @cached_property
    def window(self) -> Window:
        """Rows and columns of all that is visible."""
        return bounding_window(self.visible)

    @property
    def size_hw(self) -> tuple[int, int]:
        """Height and width of the canonical frame in pixels."""
        return self.visible.shape[0], self.visible.shape[1]

    def __len__(self) -> int:
        """Return the number of instances."""
        return len(self.probabilities)


@dataclass(frozen=True)
class Refined:
    """The refined instances, one for each of the teacher's, in the same order."""

    masks: NDArray[np.bool_]
    """[N, H, W] bool, inside the visible region."""
    weights: list[NDArray[np.float32] | None]
    """N loss weights per pixel, [H, W] each; None means 1 everywhere."""
    outcomes: list[Outcome]
    """N outcomes; a mask that is dropped has no pixel."""


class Refiner(Protocol):
    """Improves teacher masks. The student step never asks which refiner it holds."""

    def refine(
        self, image_id: int, image: NDArray[np.uint8] | None, masks: TeacherMasks, rng: np.random.Generator
    ) -> Refined:
        """Refine the instances of one image.

        Args:
            image_id: Which image, for refiners that read a store or a cache.
            image: [H, W, 3] uint8 RGB canonical; None is enough for refiners that read a library.
            masks: The teacher's instances.
            rng: All randomness comes from here.

        Returns:
            As many instances as came in, in the same order.
        """


def teacher_outcomes(masks: NDArray[np.bool_]) -> list[Outcome]:
    """Name what remains when nothing is refined.

    Args:
        masks: [N, H, W] bool teacher masks.

    Returns:
        "kept", or "empty" for a mask without a pixel.
    """
    return ["kept" if mask.any() else "empty" for mask in masks]


def drop_unmatched(masks: NDArray[np.bool_], outcomes: list[Outcome]) -> None:
    """Empty, in place, the masks [N, H, W] that are kept, and say so in their outcomes."""
    for index, outcome in enumerate(outcomes):
        if outcome == "kept":
            masks[index], outcomes[index] = False, "dropped"


def check_number(
    name: str, value: object, *, low: float = 0.0, high: float = 1.0, whole: bool = False, optional: bool = False
) -> None:
    """Refuse a setting of a refiner that is not a number in [low, high].

    Args:
        name: The setting.
        value: What was given.
        low: Smallest legal value.
        high: Largest legal value.
        whole: Only integers are legal.
        optional: None (off) is legal too.

    Raises:
        ConfigError: naming the setting.
    """
    if optional and value is None:
        return
    is_number = isinstance(value, int if whole else int | float) and not isinstance(value, bool)
    if not (is_number and low <= float(value) <= high):  # type: ignore[arg-type]
        raise ConfigError(
            "a refiner setting is out of range",
            where=name,
            expected=f"a {'whole ' if whole else ''}number from {low:g} to {high:g}",
            got=value,
            fix=f"correct `{name}` in the refiner's settings",
        )


def check_choice(name: str, value: object, choices: Sequence[str]) -> None:
    """Refuse a setting of a refiner that is not one of the choices.

    Raises:
        ConfigError: naming the setting.
    """
    if value not in choices:
        raise ConfigError(
            "a refiner setting is unknown",
            where=name,
            expected=" | ".join(choices),
            got=value,
            fix=f"correct `{name}` in the refiner's settings",
        )
