"""Do the parts of a training's distillation fit together? Asked before anything is built."""

from collections.abc import Mapping, Sequence
from typing import Any

from jobs.settings import hydrate
from pipeline.distill.live_sam import LiveSamSettings, refuse_feature_matching_without_sam
from pipeline.errors import ConfigError

FROM_STORE, DRAWN = "LoadSimilarityTargets", "DrawTargetPoints"


def check_distillation(
    model: Mapping[str, Any], transforms: Sequence[tuple[str, Mapping[str, Any]]], *, where: object
) -> None:
    """Check the network's switches against what the training images carry.

    Args:
        model: Of the config; a student's network is below ``detector``.
        transforms: Name and settings of every transform of the training data that gives targets.
        where: For the message.

    Raises:
        ConfigError: a wrong live SAM; feature matching or drawn points without one; one without the pixels of the
            views; a student that is to distil what its images do not carry.
    """
    network = model.get("detector") or model
    live = network.get("live_sam")
    refuse_feature_matching_without_sam(network.get("distillation", "structural"), live)
    if live is not None:
        hydrate(LiveSamSettings, dict(live), where=f"{where}: live_sam")
    is_student = "detector" in model
    is_asked = bool((model.get("settings") or {}).get("distil_labelled", False)) if is_student else True
    if is_student and is_asked and not transforms:
        raise ConfigError(
            "the labelled images carry nothing to distil",
            where=f"{where}: model.settings.distil_labelled",
            expected=f"{FROM_STORE} or {DRAWN} in the labelled stream, before PackSample",
            got="neither",
        )
    for name, settings in transforms:
        has_view = name == DRAWN or bool(settings.get("keep_view", False))
        if name == DRAWN and live is None:
            raise ConfigError(
                f"{DRAWN} needs a SAM in the training step",
                where=f"{where}: live_sam of the network",
                expected="live_sam=dict(name=...)",
                got=live,
                fix=f"name a SAM there, or use {FROM_STORE}",
            )
        if is_asked and live is not None and not has_view:
            raise ConfigError(
                "a live SAM needs the pixels of the view",
                where=f"{where}: live_sam of the network",
                expected=f"{DRAWN}, or {FROM_STORE} with keep_view=True (its points, not its rows)",
                got=f"{name} without keep_view",
            )
    if is_asked and live is not None and not transforms:
        raise ConfigError(
            "a live SAM is asked at no point",
            where=f"{where}: live_sam of the network",
            expected=f"{DRAWN} in the labelled stream, before PackSample",
            got="no such transform",
        )
