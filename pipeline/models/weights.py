"""Weights in and out of the networks, never through a pickle that could run code."""

import pickle
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mmengine.logging import HistoryBuffer
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from pipeline.errors import CheckpointError

ASSETS = Path(__file__).parents[1] / "assets"
EMBEDDED = {
    "scenes-base": ASSETS / "scenes_base.safetensors",
    "refer-lavt-base": ASSETS / "refer_lavt_base.safetensors",
    "refer-rela-base": ASSETS / "refer_rela_base.safetensors",
}
"""Starts that are shipped with the package, by name."""
CLASS_LAYERS = r"panoptic_head\.cls_embed\."
"""A start for other classes has none of these."""
_OF_ONE_TRAINING = r"^feature_projection\."
"""Serves one training's loss and no prediction: the map to SAM's channels of the feature matching."""


def read_checkpoint(path: str | Path) -> dict[str, Any]:
    """Read a checkpoint file safely.

    Args:
        path: An embedded name, a ``.safetensors`` file, or a ``.pth`` that holds tensors and plain values only
            (checkpoints of this pipeline and of mmengine do).

    Returns:
        ``state_dict`` and whatever else is in it.

    Raises:
        CheckpointError: no such file, not a checkpoint, or one that would run code when loaded.
    """
    file = EMBEDDED.get(str(path), Path(path))
    if not file.is_file():
        raise CheckpointError(
            "no such checkpoint",
            where=file,
            expected=f"a file, or one of {sorted(EMBEDDED)}",
            fix="train it first, or correct the path",
        )
    try:
        if file.suffix == ".safetensors":
            return {"state_dict": load_file(file)}
        with torch.serialization.safe_globals(_safe_globals()):
            loaded = torch.load(file, map_location="cpu", weights_only=True)
    except (SafetensorError, RuntimeError, EOFError, OSError, ValueError, KeyError) as error:
        raise CheckpointError("not a checkpoint", where=file, got=_short(error), fix="give another file") from error
    except Exception as error:  # UnpicklingError: unknown classes; anything else: damaged bytes
        raise CheckpointError(
            "this checkpoint cannot be loaded safely",
            where=file,
            expected="tensors and plain values only",
            got=_short(error),
            fix="convert it to safetensors where you trust it",
        ) from error
    checkpoint = loaded if isinstance(loaded, dict) and "state_dict" in loaded else {"state_dict": loaded}
    state = checkpoint["state_dict"]
    if not (isinstance(state, Mapping) and state and all(isinstance(value, Tensor) for value in state.values())):
        raise CheckpointError(
            "not a checkpoint",
            where=file,
            expected="tensors by name",
            got=type(state).__name__,
            fix="give another file",
        )
    return checkpoint


def _safe_globals() -> list[Any]:
    """What a checkpoint of mmengine needs beside tensors: numpy arrays in the log buffers of its message hub.

    mmengine's own list has ``getattr``, from which a pickle can build a way to any object. Its checkpoints use it for
    one thing, methods of :class:`HistoryBuffer`, so that is all it does here.
    """
    numbers = [type(np.dtype(kind)) for kind in ("float32", "float64", "int32", "int64", "uint32", "bool")]
    inner = np._core.multiarray  # type: ignore[attr-defined]
    arrays = [np.ndarray, np.dtype, inner._reconstruct, inner.scalar]
    return [*arrays, *numbers, HistoryBuffer, (_log_statistic, "builtins.getattr")]


def _log_statistic(owner: object, name: object) -> Any:
    """``HistoryBuffer.<min | max | mean | current>``, and nothing else."""
    if owner is not HistoryBuffer or name not in ("min", "max", "mean", "current"):
        raise pickle.UnpicklingError(f"getattr of {owner!r} is not allowed")
    return getattr(HistoryBuffer, str(name))


def read_weights(path: str | Path, *, prefix: str | None = None) -> dict[str, Tensor]:
    """State dict of one network, with plain names.

    Args:
        path: As :func:`read_checkpoint`.
        prefix: ``student`` or ``teacher``: which network of a student checkpoint. Ignored where there is only one.

    Raises:
        CheckpointError: also where the checkpoint holds two networks and none is named.
    """
    state: Mapping[str, Tensor] = read_checkpoint(path)["state_dict"]
    networks = {name.split(".", 1)[0] for name in state} & {"student", "teacher"}
    if not networks:
        return dict(state)
    if prefix not in networks:
        raise CheckpointError("which network?", where=path, expected=f"one of {sorted(networks)}", got=prefix)
    start = f"{prefix}."
    return {name.removeprefix(start): value for name, value in state.items() if name.startswith(start)}


def load_network(model: nn.Module, weights: Mapping[str, Tensor], *, where: str | Path, may_lack: str = "") -> None:
    """Load weights into a network, strictly.

    Args:
        model: The network.
        weights: By plain name.
        where: Named in errors.
        may_lack: Pattern of parameters that may be absent (they keep their initial values). What only served the
            loss of a training may always be absent, or there and not used.

    Raises:
        CheckpointError: other names or shapes than the network's.
    """
    own = model.state_dict()
    optional = f"{_OF_ONE_TRAINING}|{may_lack}" if may_lack else _OF_ONE_TRAINING
    missing = [n for n in own if n not in weights and not re.search(optional, n)]
    surplus = [n for n in weights if n not in own and not re.search(_OF_ONE_TRAINING, n)]
    shapes = [n for n in own if n in weights and weights[n].shape != own[n].shape]
    if missing or surplus or shapes:
        raise CheckpointError(
            "the weights are of another network",
            where=where,
            expected=f"{len(own)} tensors of {type(model).__name__}",
            got=f"missing {_some(missing)}; unknown {_some(surplus)}; other shape {_some(shapes)}",
            fix="use the config that this checkpoint was trained with",
        )
    model.load_state_dict({name: weights[name].to(own[name].dtype) for name in own if name in weights}, strict=False)


def _some(names: list[str]) -> str:
    return "none" if not names else f"{len(names)} such as {names[0]}"


def _short(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
