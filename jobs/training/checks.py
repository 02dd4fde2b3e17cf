"""What is refused before a training starts, and before anything is written or deleted for it."""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from data_schemas.manifest import StoreIdentity
from jobs.config_files import as_text, load_config
from jobs.progress import say
from jobs.settings import hydrate, known_keys
from jobs.store_checks import image_keys, refuse_other_images
from jobs.training.distillation_checks import DRAWN, FROM_STORE, check_distillation
from jobs.training.notes import targets_of_others
from jobs.training.refer_checks import check_sentence_settings, check_sentences
from pipeline.data.arp import ArpSettings
from pipeline.data.coco import CocoSet, check_image_files, load_coco, refuse_no_object, subset
from pipeline.data.referring.views import JitterSettings
from pipeline.distill.live_sam import LiveSamSettings
from pipeline.errors import ConfigError, StoreMismatchError
from pipeline.models.pseudo_labels import PseudoLabelFilter
from pipeline.models.referring.student_settings import ReferStudentSettings
from pipeline.models.student_settings import StudentSettings
from pipeline.refine.build import (
    LIBRARY_REFINERS,
    SOURCE_SETTINGS,
    refuse_unknown_settings,
    refuse_wrong_precision,
    setting_names,
)
from pipeline.refine.interface import check_number
from pipeline.stores.index import StoreIndex
from pipeline.stores.target_features import refuse_other_features

_BLOCKS: dict[str, dict[str, type]] = {
    "detector": {"pseudo_labels": PseudoLabelFilter, "arp": ArpSettings, "settings": StudentSettings},
    "segmentor": {"jitter": JitterSettings, "settings": ReferStudentSettings},
}
"""Where a student's ``model`` holds its network -> its parts with settings of a dataclass."""
_REFINER = ("name", *SOURCE_SETTINGS)
KNOWN_KEYS = (
    *(f"model.refiner.{name}" for name in (*_REFINER, *setting_names())),
    *(key for parts in _BLOCKS.values() for name, kind in parts.items() for key in known_keys(kind, f"model.{name}.")),
    *(key for prefix in ("model.", "model.detector.") for key in known_keys(LiveSamSettings, f"{prefix}live_sam.")),
    "optim_wrapper.dtype",
    "init_skip",
)
"""Settings that a training config may have although the file leaves them at their defaults."""


@dataclass(frozen=True)
class _Number:
    kind: type
    expected: str
    low: float
    high: float = float("inf")
    is_open: bool = False
    """The bounds themselves are refused."""

    def fits(self, value: object) -> bool:
        is_number = type(value) is int if self.kind is int else type(value) in (int, float)
        if not is_number:
            return False
        assert isinstance(value, int | float)
        return self.low < value < self.high if self.is_open else self.low <= value <= self.high


_COUNT, _FROM_ZERO = _Number(int, "a whole number, 1 or more", 1), _Number(int, "a whole number, 0 or more", 0)
_NUMBERS = {
    "max_iters": _COUNT,
    "batch_size": _COUNT,
    "val_interval": _COUNT,
    "checkpoint_interval": _COUNT,
    "log_interval": _COUNT,
    "num_classes": _COUNT,
    "burn_in": _FROM_ZERO,
    "seed": _FROM_ZERO,
    "learning_rate": _Number(float, "a number above 0", 0, is_open=True),
    "ema_decay": _Number(float, "a number between 0 and 1", 0, 1, is_open=True),
    "max_broken_share": _Number(float, "a share from 0 to 1", 0, 1),
}
_READ_BY_CODE = ("init_checkpoint", "init_skip", "teacher_checkpoint", "device", "load_from", "resume", "launcher")
# Where the file itself computes with num_classes, an override comes too late.
_WORDS = (
    *(name for name in _NUMBERS if name != "num_classes"),
    *_READ_BY_CODE,
    "store",
    "split_file",
    "data_root",
    "image_root",
    "annotations",
    "val_annotations",
)
_OTHERWISE = {
    "load_from": "--cfg-options init_checkpoint=FILE: weights to start with, and nothing that mmengine would unpickle",
    "resume": "--resume",
    "launcher": "--workers N",
}
"""mmengine's own words, which a run has at nothing, and what is said instead."""
_COPIED = (
    *("labelled_stream", "unlabelled_stream", "train_images", "train_objects", "geometry", "targets", "val_files"),
    *("detector", "segmentor", "data_preprocessor", "attention", "feed_forward"),
)
"""Parts of configs that other parts are made of; mmengine copies, so that a change of the part comes too late."""
_NUM_LOOKED_AT = 2_000
"""Images of a set whose headers are read before a run: a few seconds, also on a slow disk."""
_RUNNER_KEYS = ("default_scope", "log_level", "work_dir", "experiment_name")


def refuse_dead_overrides(options: Mapping[str, Any], config: Any, *, file: Path) -> None:
    """A setting that the file itself computes with is used up when the file has been read.

    Args:
        options: Of the command line, by dotted key.
        config: As read, with its placeholders.
        file: It was read from.

    Raises:
        ConfigError: an override of a plain top-level setting that nothing looks at any more, or of a part that the
            file has copied to where it is read.
    """
    tree = dict(dict.items(config._cfg_dict))
    text, where = as_text(config), f"--cfg-options, {file}"
    for name in options:
        if "." in name and name.split(".")[0] in _COPIED:
            raise ConfigError(
                f"`{name}` has no effect on the command line",
                where=where,
                expected="a key below `train_dataloader`, `val_dataloader`, `val_evaluator` or `model`",
                got=f"{name}={options[name]}, of a part that the file copies to where it is read",
                fix="change it in a copy of the file, or override the copy: train_dataloader.dataset....",
            )
        is_plain = isinstance(tree.get(name), str | int | float) and not isinstance(tree.get(name), bool)
        if is_plain and name not in _WORDS and f"{{{name}}}" not in text and name not in _RUNNER_KEYS:
            if f"{{{name}}}" in as_text(load_config(file)):
                raise ConfigError(
                    f"`{name}` has no effect beside the other settings",
                    where=where,
                    got=f"{name}={options[name]}, which only a setting looks up that is given too",
                    expected=f"{name} or the settings that name it",
                    fix=f"leave {name} out",
                )
            raise ConfigError(
                f"`{name}` has no effect on the command line",
                where=where,
                expected="a setting that is looked up when the run starts",
                got=f"{name}={options[name]}, with which the file computes while it is read",
                fix="change it in a copy of the file, or override the keys below `model` that it sets",
            )


def check_settings(config: Any, *, where: str | Path) -> None:
    """Types, ranges and names of a training config's settings, placeholders filled.

    Raises:
        ConfigError: all numbers that do not fit together; a mistyped name; a wrong block of a student.
    """
    tree = dict(dict.items(config._cfg_dict))
    wrong = [
        f"\n    - {name} = {tree[name]!r}, expected {number.expected}"
        for name, number in _NUMBERS.items()
        if name in tree and not number.fits(tree[name])
    ]
    for name, value in tree.items():
        alike = get_close_matches(name, _WORDS, n=1, cutoff=0.88) if isinstance(value, str | int | float) else []
        if alike and name not in _WORDS:
            wrong.append(f"\n    - {name}: nothing reads this (nearest: {alike[0]})")
    if wrong:
        raise ConfigError("settings that cannot be used", where=where, got="".join(wrong), fix="correct them")
    for name, instead in _OTHERWISE.items():
        if tree.get(name) not in (None, False, "none"):
            raise ConfigError(
                f"`{name}` is mmengine's and is not used here", where=where, got=f"{name}={tree[name]!r}", fix=instead
            )
    named = [
        (name, each) for each in _dicts(config.train_dataloader) for name in (FROM_STORE, DRAWN) if _is(each, name)
    ]
    check_distillation(config.model, named, where=where)
    check_sentence_settings(config, _dicts(config.train_dataloader), where=where)
    for parts in (parts for network, parts in _BLOCKS.items() if network in config.model):
        refiner = dict(config.model.get("refiner") or {"name": "none"})
        refuse_unknown_settings(**{key: value for key, value in refiner.items() if key not in SOURCE_SETTINGS})
        if refiner.get("name") == "points":
            refuse_wrong_precision(refiner.get("precision", "fp32"), refiner.get("device", "cpu"))
            kept = refiner.get("cached_embeddings", 1)
            check_number("model.refiner.cached_embeddings", kept, low=1, high=float("inf"), whole=True)
        for name, kind in parts.items():
            block = config.model.get(name)
            if block is not None:
                hydrate(kind, dict(block), where=f"{where}: model.{name}")


def check_inputs(config: Any) -> None:
    """Data sets, classes, validation set, vocabulary and stores of a run, before minutes go into building it.

    Raises:
        PipelineError: what is missing or does not fit together.
    """
    sets = {str(each["part"]) if "part" in each else "all": each for each in _data_sets(config)}
    loaded = {part: _load(each) for part, each in sets.items()}
    part = "labelled" if "labelled" in sets else "all"
    for coco in loaded.values():
        _refuse_missing_images(coco, max_broken_share=float(config.get("max_broken_share", 0.01)))
    taught, settings = loaded.get(part), sets.get(part, {})
    if taught is not None and "expressions_file" not in settings:
        check_classes(config, taught, where=settings["annotation_file"])
    check_sentences(config, [each for each in sets.values() if "expressions_file" in each])
    for transform in _dicts(config.train_dataloader):
        if _is(transform, FROM_STORE) and taught is not None:
            store = str(transform["store"])
            identity = _check_store(store, "similarity", taught, has_all=not settings.get("class_names"))
            refuse_other_features(identity, transform.get("features", "decoder"), where=store)
            if not settings.get("class_names") and (note := targets_of_others(store, taught)) is not None:
                say(note)
    refiner = dict(config.model.get("refiner") or {})
    if refiner.get("name") in LIBRARY_REFINERS:
        if not refiner.get("store"):
            raise ConfigError(
                f"refiner {refiner['name']} needs a proposal library",
                where="model.refiner.store",
                fix="run precompute-sam and name its store",
            )
        refined = loaded.get("unlabelled") or loaded.get("all")
        _check_store(str(refiner["store"]), "proposals", refined or taught)


def _refuse_missing_images(coco: CocoSet, *, max_broken_share: float) -> None:
    """Look at the headers of a set's images, of a large set at some taken evenly, before a run comes upon them.

    Raises:
        TooManyQuarantinedError: more than the allowed share are missing, unreadable or of another size.
    """
    step = max(1, len(coco.images) // _NUM_LOOKED_AT)
    some = subset(coco, [image.image_id for image in coco.images[::step]])
    check_image_files(replace(some, broken=()), max_broken_share=max_broken_share)


def check_classes(config: Any, taught: CocoSet, *, where: str) -> None:
    """As many classes as the network tells apart, and the same names in the validation set.

    Raises:
        ConfigError: other numbers, or a validation set without one of the classes.
        InputError: a validation set without an object.
    """
    names = [category.name for category in taught.categories]
    wanted = {name: count for name, count in _class_counts(config).items() if count != len(names)}
    if wanted:
        raise ConfigError(
            "the network has another number of classes than the data set",
            where=where,
            expected="; ".join(f"{count} classes ({name})" for name, count in wanted.items()),
            got=f"{len(names)}: {names[:20]}",
            fix=f"--cfg-options num_classes={len(names)} (where the file computes with it: in a copy of the file), or "
            "set class_names of the data sets",
        )
    evaluator = config.get("val_evaluator") or {}
    if evaluator.get("annotation_file"):
        file = evaluator["annotation_file"]
        validated = load_coco(Path(file), Path(evaluator["image_root"]), class_names=names)
        refuse_no_object(validated, where=file)


def _class_counts(config: Any) -> dict[str, int]:
    """Every place where a Mask2Former is told its number of classes."""
    where = "model.detector." if config.model.get("detector") else "model."
    network = config.model.get("detector") or config.model
    head, fusion = network.get("panoptic_head") or {}, network.get("panoptic_fusion_head") or {}
    weights = (head.get("loss_cls") or {}).get("class_weight")
    counts = {
        "panoptic_head.num_things_classes": head.get("num_things_classes"),
        "panoptic_fusion_head.num_things_classes": fusion.get("num_things_classes"),
        "panoptic_head.loss_cls.class_weight": None if weights is None else len(weights) - 1,  # the last: no object
    }
    return {f"{where}{name}": int(count) for name, count in counts.items() if count is not None}


def _load(settings: Mapping[str, Any]) -> CocoSet:
    """The images of one stream, as its data set takes them."""
    from pipeline.data.instance_dataset import InstanceDataset
    from pipeline.data.referring.dataset import ReferDataset

    if "expressions_file" in settings:
        own = {name: value for name, value in settings.items() if name not in ("type", "pipeline")}
        return ReferDataset(pipeline=[], **own).coco
    wanted = ("annotation_file", "image_root", "split_file", "part", "class_names", "with_masks")
    return InstanceDataset(pipeline=[], **{name: settings[name] for name in wanted if name in settings}).coco


def _check_store(uri: str, kind: Any, images: CocoSet | None, *, has_all: bool = True) -> StoreIdentity:
    """The store holds these images, and was made from the same annotations where it holds exactly them.

    Without all classes of the file (``has_all``) the annotations cannot be compared: precompute-sam takes all.

    Raises:
        InputError: no store, or no such artefact in it.
        StoreMismatchError: a store of other images.
    """
    if images is None:
        return StoreIndex.open(uri, kind).part.identity
    part = refuse_other_images(uri, kind, image_keys(images.images))
    is_same = has_all and kind == "similarity" and part.num_images == len(images.images)
    if is_same and part.identity.dataset_fingerprint != images.fingerprint:
        raise StoreMismatchError(
            "the similarity targets were made from other annotations of these images",
            where=uri,
            expected=f"fingerprint {images.fingerprint[:12]}",
            got=f"fingerprint {part.identity.dataset_fingerprint[:12]}",
            fix="run precompute-sam again with another --work-dir, and name that store",
        )
    return part.identity


def _data_sets(config: Any) -> Iterator[Mapping[str, Any]]:
    """Configs of every ``InstanceDataset`` or ``ReferDataset`` that is trained on."""
    for value in _dicts(config.train_dataloader):
        if (_is(value, "InstanceDataset") or _is(value, "ReferDataset")) and "annotation_file" in value:
            yield value


def _is(value: Mapping[str, Any], name: str) -> bool:
    kind = dict(value).get("type")
    return re.split(r"\W", getattr(kind, "__name__", str(kind)).rstrip("'>"))[-1] == name


def _dicts(tree: Any) -> Iterator[Mapping[str, Any]]:
    """Every dict of a config, outermost first."""
    if isinstance(tree, Mapping):
        yield tree
        for child in tree.values():
            yield from _dicts(child)
    elif isinstance(tree, list | tuple):
        for child in tree:
            yield from _dicts(child)
