"""The pretrained weights that a detector's backbone starts from (``backbone_checkpoint``): a file, or a download."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pipeline.errors import CheckpointError, EnvironmentProblemError

_GIVE_A_FILE = "--cfg-options backbone_checkpoint=FILE; None starts from random values"


def check_backbone_weights(config: Any) -> None:
    """Refuse a file that is not there or cannot be loaded; a name to download is tried when the network is built.

    Raises:
        CheckpointError: see :func:`pipeline.models.weights.read_checkpoint`.
    """
    from pipeline.models.weights import read_checkpoint

    wanted = _wanted(config)
    if wanted is None or "://" in wanted:
        return
    if not Path(wanted).is_file():
        raise CheckpointError(
            "the pretrained weights of the backbone are not there",
            where=wanted,
            expected="a file, or a name such as torchvision://resnet50",
            fix=f"correct the path: {_GIVE_A_FILE}",
        )
    read_checkpoint(wanted)


def without_unwanted_weights(config: Any) -> None:
    """``backbone_checkpoint=None``: the backbone starts from random values, in place."""
    start = _start(config)
    if start is not None and start.get("type") == "Pretrained" and start.get("checkpoint") is None:
        _backbone(config).init_cfg = None


@contextmanager
def told_if_not_had(config: Any) -> Iterator[None]:
    """Name the setting where a download fails.

    Raises:
        EnvironmentProblemError: there is no network, or nothing there.
    """
    wanted = _wanted(config)
    try:
        yield
    except OSError as error:  # URLError, HTTPError and time-outs are such
        if wanted is None or "://" not in wanted:
            raise
        raise EnvironmentProblemError(
            "the pretrained weights of the backbone cannot be downloaded",
            where=f"backbone_checkpoint={wanted}",
            got=f"{type(error).__name__}: {error}",
            fix=f"once on a machine with network (they stay in torch's hub folder, TORCH_HOME), or {_GIVE_A_FILE}",
        ) from error


def _wanted(config: Any) -> str | None:
    start = _start(config)
    found = start.get("checkpoint") if start is not None and start.get("type") == "Pretrained" else None
    return None if found is None else str(found)


def _start(config: Any) -> Any:
    backbone = _backbone(config)
    return None if backbone is None else backbone.get("init_cfg")


def _backbone(config: Any) -> Any:
    return (config.model.get("detector") or config.model).get("backbone")
