"""What becomes a proposal: the settings of ``SAM2AutomaticMaskGenerator``, and a few of ours."""

from dataclasses import dataclass

from pipeline.errors import ConfigError


@dataclass(frozen=True)
class GeneratorSettings:
    """What becomes a proposal. Defaults are those of the reference."""

    points_per_side: int = 32
    points_per_batch: int = 64
    """Clicks decoded together; memory only. Halved, for all later images too, where a GPU's memory is not enough."""
    pred_iou_threshold: float = 0.8
    """Keep masks whose predicted IoU is above this; 0 or less keeps all."""
    stability_score_threshold: float = 0.95
    """Keep masks at least this stable; 0 or less keeps all."""
    stability_score_offset: float = 1.0
    """Logits are cut at plus and minus this for the stability score."""
    box_nms_threshold: float = 0.7
    """Of two masks whose boxes overlap by more than this IoU, the one with the lower score goes."""
    crop_n_layers: int = 0
    """Look again at crops of the image, 4 in the first layer, 16 in the second, and so on."""
    crop_nms_threshold: float = 0.7
    """As box_nms_threshold, between masks of different crops; that of the smaller crop stays."""
    crop_overlap_ratio: float = 512 / 1500
    """Overlap of neighbouring crops, a share of the image's shorter side; halved from layer to layer."""
    crop_n_points_downscale_factor: int = 1
    """Divides points_per_side once for each layer."""
    min_mask_region_area: int = 0
    """Fill holes and drop islands smaller than this many pixels."""
    use_m2m: bool = False
    """Give every mask back to the decoder as a prompt and take what it makes of it."""
    max_proposals: int | None = None
    """Keep only the best so many."""
    coarse_points_per_side: int | None = None
    """Decode this coarser grid first, then only those clicks of the full one that lie in no small mask found so.
    Quicker and NOT the reference's result: docs/results/prompt_budget.json says what it costs in recall."""

    def __post_init__(self) -> None:
        """Refuse values that cannot mean anything, all at once."""
        wrong = [
            f"{name} = {getattr(self, name)}"
            for name, fits in {
                "points_per_side": self.points_per_side >= 1,
                "points_per_batch": self.points_per_batch >= 1,
                "pred_iou_threshold": self.pred_iou_threshold <= 1,
                "stability_score_threshold": self.stability_score_threshold <= 1,
                "stability_score_offset": self.stability_score_offset >= 0,
                "box_nms_threshold": 0 <= self.box_nms_threshold <= 1,
                "crop_n_layers": 0 <= self.crop_n_layers <= 4,
                "crop_nms_threshold": 0 <= self.crop_nms_threshold <= 1,
                "crop_overlap_ratio": 0 <= self.crop_overlap_ratio < 1,
                "crop_n_points_downscale_factor": self.crop_n_points_downscale_factor >= 1,
                "min_mask_region_area": self.min_mask_region_area >= 0,
                "max_proposals": self.max_proposals is None or self.max_proposals >= 1,
                "coarse_points_per_side": self.coarse_points_per_side is None
                or 1 <= self.coarse_points_per_side < self.points_per_side,
            }.items()
            if not fits  # NaN fits nothing
        ]
        if wrong:
            raise ConfigError("proposal settings out of range", where="GeneratorSettings", got="; ".join(wrong))
