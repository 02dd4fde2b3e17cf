"""A training config of this project as a config of stock mmdet: the network and how an image gets into it."""

import inspect
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mmengine.config import Config
from mmengine.utils import get_object_from_string

from jobs.networks import transforms_config
from pipeline.errors import ConfigError

PLAIN = {
    "pipeline.models.mask2former.DistilledMask2Former": "Mask2Former",
    "pipeline.models.mask2former.Float32PixelDecoder": "MSDeformAttnPixelDecoder",
    "pipeline.models.mask2former.WeightedMask2FormerHead": "Mask2FormerHead",
    "pipeline.data.transforms.PackSample": "PackDetInputs",
}
"""Class of ours -> mmdet's, which does the same where nothing is learnt."""
STOCK = ("mmdet", "mmcv", "mmengine", "torch")
META_KEYS = ("img_id", "img_path", "ori_shape", "img_shape", "scale_factor")
_LABELLING = ("refiner", "pseudo_labels")
"""Settings that may stand beside a plain network, for pseudo-label."""


def plain_config(config: Config, names: Sequence[str], *, where: Path) -> dict[str, Any]:
    """What stock mmdet needs: ``model``, ``test_dataloader`` with its transforms, ``visualizer``, ``default_scope``.

    Images are read here as RGB, by mmdet as BGR, hence the preprocessor's ``bgr_to_rgb`` is turned round.

    Args:
        config: Of a teacher or student, placeholders filled.
        names: Classes, in label order.
        where: For messages.

    Raises:
        ConfigError: a class that mmdet does not have; all of them are named.
    """
    tree = config.to_dict()["model"]
    if "detector" in tree:
        outer = tree["data_preprocessor"]
        tree = {**tree["detector"], "data_preprocessor": outer.get("data_preprocessor", outer)}
    foreign: list[str] = []
    model = _plain({name: value for name, value in tree.items() if name not in _LABELLING}, foreign)
    transforms = _plain(Config({"all": transforms_config(config)}).to_dict()["all"], foreign)
    if foreign:
        raise ConfigError(
            "this network has parts that stock mmdet has not, so it cannot be exported",
            where=where,
            expected=f"classes of {', '.join(STOCK)}, or {', '.join(PLAIN)}",
            got=", ".join(dict.fromkeys(foreign)),
            fix="register them where the network is to be used, and train with mmdet's own classes otherwise",
        )
    for transform in transforms:
        if transform["type"] == "PackDetInputs":
            transform["meta_keys"] = META_KEYS
    model["data_preprocessor"]["bgr_to_rgb"] = not model["data_preprocessor"].get("bgr_to_rgb", False)
    dataset = {
        "type": "BaseDetDataset",
        "metainfo": {"classes": tuple(names)},
        "test_mode": True,
        "pipeline": [{"type": "LoadImageFromFile"}, *transforms],
    }
    return {
        "default_scope": "mmdet",
        "model": model,
        "test_dataloader": {
            "batch_size": 1,
            "num_workers": 0,
            "sampler": {"type": "DefaultSampler", "shuffle": False},
            "dataset": dataset,
        },
        "visualizer": {
            "type": "DetLocalVisualizer",
            "vis_backends": [{"type": "LocalVisBackend"}],
            "name": "visualizer",
        },
    }


def _plain(value: Any, foreign: list[str]) -> Any:
    """The same tree with mmdet's classes, without settings that only ours have and without weights to fetch."""
    if isinstance(value, list | tuple):
        return type(value)(_plain(item, foreign) for item in value)
    if not isinstance(value, Mapping):
        return value
    kind = value.get("type")
    path = kind if isinstance(kind, str) else f"{kind.__module__}.{kind.__name__}" if kind is not None else ""
    own = _own_settings(path) if path in PLAIN else ()
    plain = {name: _plain(item, foreign) for name, item in value.items() if name not in own and name != "type"}
    if _is_pretrained(plain.get("init_cfg")):
        plain["init_cfg"] = None
    if not path:
        return plain
    if "." in path and path not in PLAIN and path.split(".", 1)[0] not in STOCK:
        foreign.append(path)
    return {"type": PLAIN.get(path, path.rpartition(".")[2]), **plain}


def _own_settings(path: str) -> tuple[str, ...]:
    """Names of the arguments that a class of ours adds to those of mmdet's."""
    constructor = vars(get_object_from_string(path)).get("__init__")
    if constructor is None:
        return ()
    named = (inspect.Parameter.KEYWORD_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    parameters = inspect.signature(constructor).parameters.values()
    return tuple(parameter.name for parameter in parameters if parameter.kind in named and parameter.name != "self")


def _is_pretrained(init: Any) -> bool:
    return isinstance(init, Mapping) and init.get("type") == "Pretrained"
