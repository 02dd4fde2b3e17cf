"""``SAM2AutomaticMaskGenerator`` on our models, for comparisons; no other module imports it."""

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from sam2 import automatic_mask_generator
from sam2.automatic_mask_generator import SAM2AutomaticMaskGenerator

from data_schemas.proposals import Proposal
from pipeline.masks import rle
from pipeline.sam.generator_settings import GeneratorSettings

_STRIDES = (4, 8, 16)
_SAME_IOU, _SAME_SHARE = 0.999, 0.99


def stock_generator(
    model: Any, settings: GeneratorSettings, *, points_per_batch: int | None = None
) -> SAM2AutomaticMaskGenerator:
    """The package's own generator with our settings.

    Args:
        model: a ``SAM2Base``.
        settings: what to keep; its ``min_mask_region_area`` means something else there and must be 0.
        points_per_batch: instead of that of the settings.
    """
    generator = SAM2AutomaticMaskGenerator(
        model,
        points_per_side=settings.points_per_side,
        points_per_batch=points_per_batch or settings.points_per_batch,
        pred_iou_thresh=settings.pred_iou_threshold,
        stability_score_thresh=settings.stability_score_threshold,
        stability_score_offset=settings.stability_score_offset,
        box_nms_thresh=settings.box_nms_threshold,
        crop_n_layers=settings.crop_n_layers,
        crop_nms_thresh=settings.crop_nms_threshold,
        crop_overlap_ratio=settings.crop_overlap_ratio,
        crop_n_points_downscale_factor=settings.crop_n_points_downscale_factor,
        use_m2m=settings.use_m2m,
        output_mode="coco_rle",
    )
    # The stock predictor takes every input for 1024 pixels wide.
    generator.predictor._bb_feat_sizes = [(model.image_size // stride,) * 2 for stride in _STRIDES]
    return generator


def stock_codes(found: Sequence[Mapping[str, Any]]) -> list[rle.Rle]:
    """The masks of the stock generator's answer, without empty ones."""
    return [
        rle.Rle(size=list(each["segmentation"]["size"]), counts=each["segmentation"]["counts"])
        for each in found
        if each["area"] > 0
    ]


def our_codes(found: Sequence[Proposal]) -> list[rle.Rle]:
    """The masks of proposals."""
    return [rle.of_proposal(each) for each in found]


def assert_same_masks(ours: Sequence[Proposal], stock: Sequence[Mapping[str, Any]]) -> None:
    """As many masks, and at least 99 % of them with a twin of IoU 0.999."""
    assert_same_codes(our_codes(ours), stock_codes(stock))


def assert_same_codes(mine: Sequence[rle.Rle], theirs: Sequence[rle.Rle]) -> None:
    """:func:`assert_same_masks` of any two ways."""
    assert len(mine) == len(theirs) > 0, f"{len(mine)} masks against {len(theirs)}"
    twins = rle.pairwise_iou(mine, theirs).max(axis=1) >= _SAME_IOU
    assert twins.mean() >= _SAME_SHARE, f"{(~twins).sum()} of {len(twins)} masks differ"


@contextmanager
def stage_times(generator: SAM2AutomaticMaskGenerator) -> Iterator[dict[str, float]]:
    """Seconds that the stock generator spends in each stage while the block runs; the rest is its own Python.

    The stages: ``encode``, ``decode``, ``upsample``, ``filter`` (stability, boxes, NMS) and ``rle``.
    """
    predictor, decoder = generator.predictor, generator.predictor.model.sam_mask_decoder
    seconds = dict.fromkeys(("encode", "decode", "upsample", "filter", "rle"), 0.0)

    def timed(stage: str, function: Any) -> Any:
        def call(*args: Any, **kwargs: Any) -> Any:
            synchronise()
            started = time.perf_counter()
            result = function(*args, **kwargs)
            synchronise()
            seconds[stage] += time.perf_counter() - started
            return result

        return call

    places = [
        (predictor, "set_image", "encode"),
        (predictor.model.sam_prompt_encoder, "forward", "decode"),
        (decoder, "forward", "decode"),
        (predictor._transforms, "postprocess_masks", "upsample"),
        (automatic_mask_generator, "calculate_stability_score", "filter"),
        (automatic_mask_generator, "batched_mask_to_box", "filter"),
        (automatic_mask_generator, "batched_nms", "filter"),
        (automatic_mask_generator, "mask_to_rle_pytorch", "rle"),
        (automatic_mask_generator, "coco_encode_rle", "rle"),
    ]
    before = [(owner, name, getattr(owner, name)) for owner, name, _ in places]
    for owner, name, stage in places:
        setattr(owner, name, timed(stage, getattr(owner, name)))
    try:
        yield seconds
    finally:
        for owner, name, function in before:
            setattr(owner, name, function)


@contextmanager
def watched_scores() -> Iterator[list[torch.Tensor]]:
    """The scores of the candidates that go into the generator's NMS while the block runs, call by call."""
    seen: list[torch.Tensor] = []
    original = automatic_mask_generator.batched_nms

    def watched(boxes: torch.Tensor, scores: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        seen.append(scores.detach().cpu())
        kept: torch.Tensor = original(boxes, scores, *args, **kwargs)
        return kept

    automatic_mask_generator.batched_nms = watched
    try:
        yield seen
    finally:
        automatic_mask_generator.batched_nms = original


def synchronise() -> None:
    """Wait for a GPU's work."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
