"""What a student step does, apart from the two networks and the refiner."""

from dataclasses import dataclass

from pipeline.errors import ConfigError


@dataclass(frozen=True)
class StudentSettings:
    """``model.settings`` of a student's config."""

    unlabelled_weight: float = 2.0
    """Weight of the pseudo-label loss (S4M: 2)."""
    learn_empty_batches: bool = False
    """Also learn from a worker's unlabelled batch without a single pseudo-label (released S4M: yes).

    Its only lesson is that everything is background, which a teacher that is confident of nothing does not know.
    """
    min_pixels: int = 16
    """Refined masks with fewer pixels in the view are dropped: no empty target at stride 4 is trained on."""
    distil_labelled: bool = False
    """Distil SAM on the labelled images in this stage too (S4M: only the teacher's training does)."""
    watch_quality: bool = True
    """Log pseudo-label quality where the unlabelled images carry hidden ground truth."""
    seed: int = 0
    """Of point sampling and pasting; the step and the worker are mixed in."""

    def __post_init__(self) -> None:
        """Refuse values out of range."""
        if not self.unlabelled_weight >= 0 or self.min_pixels < 1 or self.seed < 0:
            raise ConfigError(
                "student settings out of range",
                where="model.settings",
                expected="unlabelled_weight >= 0, min_pixels >= 1, seed >= 0",
                got=self,
            )
