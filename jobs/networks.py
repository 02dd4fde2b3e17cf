"""One plain network from a config and a checkpoint, and what it says of an image: shared by evaluate and pseudo-label.

Images go through the transforms of the config's validation set, so a network is asked here as it is in training. Its
view of an image is the whole image: identity homography where there is no resize; the data preprocessor pads the
canvas, and nothing that lies in the padding counts.
"""

import pipeline.models.mmcv_ops  # noqa: F401  isort: skip  (must come before mmdet)
import copy
import hashlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from mmdet.registry import MODELS
from mmengine.config import Config
from mmengine.dataset import Compose
from mmengine.registry import init_default_scope
from numpy.typing import NDArray

from data_schemas.manifest import digest
from jobs.config_files import load_config, parse_options
from jobs.settings import hydrate
from jobs.training.devices import refuse_missing_device
from jobs.training.placeholders import expand
from jobs.training.runs import STUDENT_PARTS, quieten
from jobs.training.starting_weights import refuse_run_directory
from pipeline.data.transforms import PackSample
from pipeline.errors import ConfigError, PipelineError
from pipeline.models import weights
from pipeline.models.mask2former import captured_output, view_of
from pipeline.models.pseudo_labels import PseudoLabelFilter, filter_queries, to_canonical
from pipeline.refine.interface import TeacherMasks

Which = Literal["student", "teacher"]
Transforms = Callable[[dict[str, Any]], dict[str, Any]]
_OURS = ("refiner", "pseudo_labels")
"""Settings of labelling that may stand in the config of a plain network; its constructor does not know them."""


def open_config(path: Path, cfg_options: Sequence[str], *, also_known: Sequence[str] = ()) -> Config:
    """Read a teacher's or student's config, overrides applied and placeholders filled.

    Args:
        path: A file of configs/teacher or configs/student, a copy, or the resolved config of a run.
        cfg_options: ``key=value``; settings of labelling may be given although the file has none.
        also_known: Further keys that need not be in the file.

    Raises:
        ConfigError: see ``load_config``; or no config of a network.
    """
    # Which settings these two have is checked where they are used: it depends on the refiner.
    free = [key for key in parse_options(cfg_options) if key.startswith(tuple(f"model.{name}." for name in _OURS))]
    config = load_config(path, cfg_options, also_known=[*free, "device", *also_known])
    expand(config)
    if "model" not in config._cfg_dict:
        raise ConfigError(
            "this config describes no network",
            where=path,
            expected="a file of configs/teacher or configs/student",
            got="no key `model`",
            fix="give the config that the checkpoint was trained with",
        )
    return config


def validated(config: Config) -> Which:
    """Network of a student that its training validates: the student, or what the config says (``predict_on``)."""
    which: Which = config.model.get("predict_on", "student")
    return which


def load_network(config: Config, checkpoint: str | Path, *, which: Which = "student") -> Any:
    """Build the network of a config and load a checkpoint into it, strictly.

    Args:
        config: From :func:`open_config`; ``device`` in it is cpu, cuda, cuda:n or auto (the default).
        checkpoint: Of a teacher's or a student's training, or a file with plain weights.
        which: Network of a student's checkpoint; of no matter where there is only one.

    Returns:
        An mmdet model in evaluation mode on its device. ``dataset_meta["classes"]`` holds the class names that it was
        trained with, where the checkpoint tells them.

    Raises:
        ConfigError: the network cannot be built.
        CheckpointError: not a checkpoint, or one of another network.
        EnvironmentProblemError: no such device.
    """
    quieten()
    refuse_missing_device(config)
    refuse_run_directory(checkpoint)
    content = weights.read_checkpoint(checkpoint)
    state = weights.read_weights(checkpoint, prefix=which)
    init_default_scope("mmdet")
    try:
        model = MODELS.build(_detector(config))
    except PipelineError:
        raise
    except Exception as error:  # a config may name anything
        got = f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
        raise ConfigError("the network of this config cannot be built", where="model", got=got) from error
    weights.load_network(model, state, where=checkpoint)
    model.dataset_meta = dict(content.get("meta", {}).get("dataset_meta") or {})
    wanted = str(config.get("device", "auto"))
    device = ("cuda" if torch.cuda.is_available() else "cpu") if wanted == "auto" else wanted
    return model.to(device).eval()


def _detector(config: Config) -> Any:
    """Config of the plain network with its data preprocessor."""
    model = config.model
    inner = next((name for name in STUDENT_PARTS if name in model), None)
    if inner is None:
        detector = copy.deepcopy(model)
        for name in _OURS:
            detector.pop(name, None)
        return detector
    detector = copy.deepcopy(model[inner])
    outer = copy.deepcopy(model.data_preprocessor)
    detector["data_preprocessor"] = outer.get("data_preprocessor", outer)
    return detector


def class_names(model: Any) -> tuple[str, ...] | None:
    """Names in label order, as the checkpoint tells them; None where it does not.

    Raises:
        ConfigError: as many names as the network has classes are expected.
    """
    names = model.dataset_meta.get("classes")
    if names is None:
        return None
    if len(names) != num_classes(model):
        raise ConfigError(
            "the checkpoint's class names do not fit the network",
            expected=f"{num_classes(model)} names",
            got=f"{len(names)}: {list(names)[:8]}",
            fix="use the config that this checkpoint was trained with",
        )
    return tuple(str(name) for name in names)


def num_classes(model: Any) -> int:
    """Classes that a network tells apart."""
    return int(model.panoptic_head.num_classes)


def filter_of(config: Config) -> PseudoLabelFilter:
    """Which queries become pseudo-labels: the config's ``model.pseudo_labels``, or the defaults.

    Raises:
        ConfigError: an unknown setting or a value out of range.
    """
    return hydrate(PseudoLabelFilter, dict(config.model.get("pseudo_labels") or {}), where="model.pseudo_labels")


def transforms_config(config: Config) -> list[Any]:
    """The transforms of the validation set; packing alone where the config has none."""
    loader = config.get("val_dataloader")
    return list(loader.dataset.pipeline) if loader else [{"type": PackSample}]


def transforms_digest(config: Config) -> str:
    """Tells two lists of transforms apart, however their classes are written down."""
    return digest(plain(transforms_config(config)))[:16]


def plain(value: Any) -> Any:
    """A part of a config as JSON values; classes and their dotted names alike by their last part."""
    if isinstance(value, Mapping):
        return {name: _type_name(item) if name == "type" else plain(item) for name, item in value.items()}
    return [plain(item) for item in value] if isinstance(value, list | tuple) else value


def _type_name(kind: Any) -> str:
    return kind.rpartition(".")[2] if isinstance(kind, str) else str(kind.__name__)


def build_transforms(config: Config) -> Transforms:
    """:func:`transforms_config`, ready to be called by :func:`pack`."""
    init_default_scope("mmdet")
    made: Transforms = Compose(transforms_config(config))
    return made


def pack(transforms: Transforms, image: NDArray[np.uint8], *, image_id: int, path: str = "") -> dict[str, Any]:
    """An image [H, W, 3] uint8 RGB canonical as a sample of a batch."""
    size_hw = image.shape[:2]
    return transforms(
        {
            "img": image,
            "img_id": image_id,
            "img_path": path,
            "img_shape": size_hw,
            "ori_shape": size_hw,
            "homography_matrix": np.eye(3, dtype=np.float32),
        }
    )


@torch.no_grad()
def label(model: Any, packed: Sequence[Mapping[str, Any]], settings: PseudoLabelFilter) -> list[TeacherMasks]:
    """What would become pseudo-labels, in the canonical frame, before any refinement."""
    inputs, samples = as_batch(model, packed)
    classes, masks = model.panoptic_head(model.extract_feat(inputs), samples)
    return _filtered(classes, masks, samples, settings)


@torch.no_grad()
def detect_and_label(
    model: Any, packed: Sequence[Mapping[str, Any]], settings: PseudoLabelFilter
) -> tuple[list[dict[str, Any]], list[TeacherMasks]]:
    """Detections (mmdet's post-processing, masks at canonical size) and pseudo-labels, by one pass."""
    inputs, samples = as_batch(model, packed)
    with captured_output(model.panoptic_head) as outputs:
        found = model.predict(inputs, samples)
    classes, masks = outputs[0]
    return [sample.to_dict() for sample in found], _filtered(classes, masks, samples, settings)


def as_batch(model: Any, packed: Sequence[Mapping[str, Any]]) -> tuple[Any, list[Any]]:
    """Packed images as a network takes them: normalised inputs [B, 3, H, W], and samples."""
    batch = {key: [sample[key] for sample in packed] for key in ("inputs", "data_samples")}
    ready = model.data_preprocessor(batch, False)
    return ready["inputs"], ready["data_samples"]


def _filtered(
    classes: Sequence[Any], masks: Sequence[Any], samples: Sequence[Any], settings: PseudoLabelFilter
) -> list[TeacherMasks]:
    """Of the last decoder layer: classes [B, Q, C + 1] and masks [B, Q, h, w]."""
    return [
        to_canonical(filter_queries(c, m, settings), view_of(sample.metainfo))
        for c, m, sample in zip(classes[-1], masks[-1], samples, strict=True)
    ]


def file_sha256(path: str | Path) -> str:
    """Digest of a checkpoint (or its embedded name) or of any file; it must exist."""
    with weights.EMBEDDED.get(str(path), Path(path)).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
