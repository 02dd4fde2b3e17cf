"""What a mutual-learning step of SemiRES does, apart from the two networks and the refiner."""

from dataclasses import dataclass

from pipeline.errors import ConfigError
from pipeline.models.referring.refer_losses import CLASS_WEIGHTS, UNLABELLED_MIXES, ClassWeights, UnlabelledMix


@dataclass(frozen=True)
class ReferStudentSettings:
    """``model.settings`` of the config of a referring student."""

    supervised_weight: float = 1.0
    """Weight of the labelled images (the paper names it and gives no value; released: 10 with IOM, 1 with CPI)."""
    unlabelled_weight: float = 1.0
    """Weight of the unlabelled images."""
    class_weights: ClassWeights | None = CLASS_WEIGHTS
    """Of background and object pixels, of labelled images and of pseudo-labels without pixel weights; None: 1 and 1,
    as the paper writes."""
    pwa_class_weights: ClassWeights | None = None
    """The same of pseudo-labels with pixel weights (PWA)."""
    unsup_mix: UnlabelledMix = "per_image"
    """per_image: every unlabelled image weighs the same. halves: matched and unmatched make a half each (released)."""
    one_forward: bool = True
    """Labelled and strong views through the student together, as released; they share batch statistics then."""
    learn_empty: bool = True
    """Also learn that there is nothing, where the teacher sees nothing (as released); their rate is logged."""
    drop_share: float = 0.0
    """Share of pseudo-labels, the least sure, that are not learnt (SemiRES, Table 4: 0.05); see ``confidence.py``."""
    confidence_window: int = 2048
    """How many pseudo-labels of a worker ``drop_share`` is taken of."""
    legacy_double_norm: bool = False
    """Jitter normalised pixels and normalise them again (released). A defect: it clamps most of the image away."""
    watch_quality: bool = True
    """Log the IoU of pseudo-labels where the unlabelled images carry hidden ground truth."""
    seed: int = 0
    """Of a refiner's draws; the step and the worker are mixed in."""

    def __post_init__(self) -> None:
        """Refuse values out of range."""
        in_range = (
            min(self.supervised_weight, self.unlabelled_weight) >= 0
            and 0 <= self.drop_share < 1
            and self.confidence_window >= 1
            and self.seed >= 0
            and self.unsup_mix in UNLABELLED_MIXES
            and all(_are_weights(weights) for weights in (self.class_weights, self.pwa_class_weights))
        )
        if not in_range:
            raise ConfigError(
                "student settings out of range",
                where="model.settings",
                expected="weights >= 0, two class weights or None, 0 <= drop_share < 1, confidence_window >= 1, "
                f"seed >= 0, unsup_mix {' | '.join(UNLABELLED_MIXES)}",
                got=self,
            )


def _are_weights(weights: ClassWeights | None) -> bool:
    return weights is None or (len(weights) == 2 and min(weights) >= 0)
