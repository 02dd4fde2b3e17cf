"""The device that a training asks for, and whether it is there."""

from collections.abc import Mapping
from typing import Any

from pipeline.errors import ConfigError, EnvironmentProblemError


def device_of(config: Any) -> str:
    """The config's ``device``: auto (a GPU where there is one) | cpu | cuda.

    Raises:
        ConfigError: another word.
    """
    wants = str(config.get("device", "auto"))
    if wants not in ("auto", "cpu", "cuda"):
        raise ConfigError("unknown device", where="device", expected="auto | cpu | cuda", got=wants)
    return wants


def refuse_missing_device(config: Any) -> None:
    """Check the config's ``device``.

    Raises:
        ConfigError: see :func:`device_of`.
        EnvironmentProblemError: cuda, and there is no GPU.
    """
    import torch

    wants = device_of(config)
    if wants == "cuda" and not torch.cuda.is_available():
        raise EnvironmentProblemError(
            "no GPU", where="device", expected=wants, got="torch sees none", fix="set device=cpu or device=auto"
        )


def refuse_missing_gpu(config: Any) -> None:
    """Check all that a training wants a GPU for: the network, half precision, a SAM beside it.

    Raises:
        ConfigError: see :func:`device_of`.
        EnvironmentProblemError: no GPU, or half precision (mmengine's, fp16 with a scaled loss) without one.
    """
    import torch

    refuse_missing_device(config)
    if not _is_on_gpu(config) and "AmpOptimWrapper" in str(config.get("optim_wrapper", {}).get("type")):
        raise EnvironmentProblemError(
            "half precision needs a GPU",
            where="optim_wrapper.type",
            expected="OptimWrapper on a CPU",
            got="AmpOptimWrapper",
            fix="train on a machine with a GPU, or in float32: --cfg-options optim_wrapper.type=OptimWrapper",
        )
    for key in ("model.refiner", "model.live_sam", "model.detector.live_sam"):
        block = _block(config, key)
        if str(block.get("device", "cpu")).startswith("cuda") and not torch.cuda.is_available():
            raise EnvironmentProblemError(
                "no GPU for SAM",
                where=f"{key}.device",
                expected=block["device"],
                got="torch sees none",
                fix=f"train on a machine with a GPU, or: --cfg-options {key}.device=cpu (slow)",
            )
    for key in ("model.live_sam", "model.detector.live_sam"):
        block = _block(config, key)
        is_on_gpu = str(block["device"]).startswith("cuda") if block.get("device") else _is_on_gpu(config)
        if block.get("precision") == "bf16" and not is_on_gpu:
            raise EnvironmentProblemError(
                "bf16 is for CUDA devices",
                where=f"{key}.precision",
                expected="fp32 on a CPU",
                got="bf16",
                fix=f"train on a machine with a GPU, or: --cfg-options {key}.precision=fp32",
            )


def _block(config: Any, key: str) -> Mapping[str, Any]:
    """A dict of a config by its dotted key, empty where it is not there."""
    found = config
    for name in key.split("."):
        found = found.get(name) or {}
    return dict(dict.items(found))


def _is_on_gpu(config: Any) -> bool:
    import torch

    return torch.cuda.is_available() and config.get("device", "auto") != "cpu"


def use_device(config: Any) -> None:
    """Make mmengine train on the config's ``device``.

    Raises:
        PipelineError: see :func:`refuse_missing_gpu`.
    """
    import mmengine.device.utils as mmengine_device

    refuse_missing_gpu(config)
    mmengine_device.DEVICE = "cuda" if _is_on_gpu(config) else "cpu"  # the runner asks get_device(), without a setter
