"""What ``pseudo-label`` is to label and with which refiner: settings, images, classes."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from mmengine.config import Config

from jobs.cluster.ray_runner import WorkerSettings
from jobs.config_files import load_config, nearest, parse_options
from jobs.settings import hydrate, known_keys
from pipeline.data.coco import BrokenImage, Category, CocoSet, load_images, make_coco, subset
from pipeline.data.coco_entries import parse_categories
from pipeline.data.coco_problems import Problems, read_coco_json
from pipeline.data.splits import load_split
from pipeline.errors import ConfigError, InputError
from pipeline.refine.build import REFINER_NAMES

_BLOCK = "pseudo_label"
REFINER = "model.refiner."
_SHARED = ("name", "sam", "sam_config", "device", "precision", "store")


@dataclass(frozen=True)
class LabelSettings:
    """The ``pseudo_label`` block of a config; every field may also be given by ``--cfg-options pseudo_label.x=...``."""

    images: str | None = None
    """A COCO file or a folder; None: the config's unlabelled images."""
    image_root: str | None = None
    """Folder of the images; None: beside the COCO file."""
    split_file: str | None = None
    """With ``images``: only one part of this split."""
    part: Literal["all", "labelled", "unlabelled"] | None = None
    """None: unlabelled where there is a split, else all."""
    images_per_shard: int = 64
    """Images that are labelled and published together; a kill loses at most these, for each worker."""
    max_broken_share: float = 0.01
    """Share of images that may be set aside before the command fails."""
    retries: int = 2
    """Further tries for an image that fails for a reason other than itself."""
    retry_quarantined: bool = False
    """Try images again that an earlier run set aside."""
    seed: int = 0
    """Of point prompts; the image's id is mixed in."""
    workers: WorkerSettings = field(default_factory=WorkerSettings)

    def __post_init__(self) -> None:
        """Refuse values out of range."""
        if min(self.retries, self.seed) < 0 or self.images_per_shard < 1 or not 0 <= self.max_broken_share <= 1:
            raise ConfigError(
                "settings out of range",
                expected="images_per_shard >= 1, retries and seed >= 0, max_broken_share from 0 to 1",
                got=self,
            )


KEYS = (_BLOCK, *known_keys(LabelSettings, f"{_BLOCK}."))
"""May be set although the config has none."""


@dataclass(frozen=True)
class Source:
    """The images to label."""

    coco: CocoSet
    """With the annotations that the file has."""
    categories: tuple[Category, ...]
    """By label of the network."""
    truth: CocoSet | None
    """The same images with their objects of these categories; None where there is nothing to measure on."""
    broken: tuple[BrokenImage, ...]
    """Images of the file (of all its parts) that were left out because nothing tells their size."""


def load_label_settings(config: Config) -> LabelSettings:
    """The ``pseudo_label`` block; ConfigError tells all mistakes at once."""
    block = config.get(_BLOCK) or {}
    return hydrate(LabelSettings, block.to_dict() if hasattr(block, "to_dict") else block, where=_BLOCK)


def refiner_of(config: Config, config_path: Path, cfg_options: Sequence[str]) -> dict[str, Any]:
    """Arguments of ``make_refiner``.

    Args:
        config: Overrides applied.
        config_path: Where it came from.
        cfg_options: The overrides. If they name another refiner than the file does, what the file sets for its own
            does not count, except ``sam``, ``sam_config``, ``device``, ``precision`` and ``store``, which mean the
            same to all.

    Returns:
        With ``name``; ``store`` is the config's own where a refiner needs a library and names none.

    Raises:
        ConfigError: an unknown refiner. Its settings are checked when it is built.
    """
    chosen = dict(config.model.get("refiner") or {})
    name = chosen.setdefault("name", "none")
    if name not in REFINER_NAMES:
        raise ConfigError(
            "unknown refiner",
            where="model.refiner.name",
            expected=" | ".join(REFINER_NAMES),
            got=f"{name}{nearest(str(name), REFINER_NAMES)}",
        )
    in_file = dict(load_config(config_path).model.get("refiner") or {})
    if in_file.get("name", "none") != name:
        given = {key.removeprefix(REFINER) for key in parse_options(cfg_options) if key.startswith(REFINER)}
        chosen = {key: value for key, value in chosen.items() if key in given or key in _SHARED}
    if name not in ("none", "points") and chosen.get("store") is None and config.get("store"):
        chosen["store"] = str(config.store)
    return chosen


def find_source(
    config: Config,
    settings: LabelSettings,
    *,
    names: Sequence[str] | None,
    num_classes: int,
    limit: int | None = None,
) -> Source:
    """Load the images, and settle which category each label of the network is.

    Args:
        config: A teacher's or student's.
        settings: Of the command.
        names: Classes in label order, as the checkpoint tells them; None: those of the training file, in its order.
        num_classes: Of the network.
        limit: Only the first so many images (by id).

    Raises:
        InputError: files that are missing or wrong, no images named, or classes that no file has.
    """
    wanted = _wanted(config, settings)
    source = Path(wanted["images"])
    if not source.exists():
        raise InputError("images not found", where=source, expected="a COCO file or a folder", fix="correct the path")
    coco = load_images(source, Path(wanted["image_root"]) if wanted["image_root"] else source.parent)
    broken = coco.broken
    if wanted["part"] != "all":
        split = load_split(Path(wanted["split_file"]), coco, source=[source])
        coco = subset(coco, getattr(split, wanted["part"]))
    if limit is not None:
        coco = subset(coco, sorted(coco.by_id)[:limit])
    if not coco.images:
        raise InputError("no image to label", where=source, got=f"part {wanted['part']}", fix="check the split file")
    categories = _categories(config, coco, names, num_classes)
    return Source(coco, categories, _truth(coco, categories), broken)


def _wanted(config: Config, settings: LabelSettings) -> dict[str, Any]:
    if settings.images is not None:
        given: Mapping[str, Any] = {"annotation_file": settings.images}
    else:
        given = stream_settings(config, "unlabelled")
        if not given:
            raise ConfigError(
                "the config names no unlabelled images",
                where="unlabelled_stream",
                fix="--cfg-options pseudo_label.images=FILE_OR_FOLDER (and pseudo_label.image_root=FOLDER)",
            )
    split_file = settings.split_file or given.get("split_file")
    part = settings.part or given.get("part") or ("unlabelled" if split_file else "all")
    if part != "all" and split_file is None:
        raise ConfigError("a part needs a split", where="pseudo_label.split_file", expected="a file", got=None)
    return {
        "images": given["annotation_file"],
        "image_root": settings.image_root or given.get("image_root"),
        "split_file": split_file,
        "part": part,
    }


def stream_settings(config: Config, which: str) -> Mapping[str, Any]:
    """Config of the inner data set of the labelled or unlabelled stream; empty where there is none."""
    trained_on = (config.get("train_dataloader") or {}).get("dataset") or {}
    stream = trained_on.get(which) or config.get(f"{which}_stream") or {}
    found: Mapping[str, Any] = stream.get("dataset") or {}
    return found


def _categories(config: Config, coco: CocoSet, names: Sequence[str] | None, num_classes: int) -> tuple[Category, ...]:
    """Of the network's labels. Ids are those of the first file that has all its classes, or else 1, 2, ..."""
    if names is not None:
        for found in (coco.categories, *_categories_of_config(config)):
            if {*names} <= {category.name for category in found}:
                return _in_order(found, names)
        return tuple(Category(place, name) for place, name in enumerate(names, start=1))
    # Without names only the order of the training file tells which label is which class.
    found = next((f for f in (*_categories_of_config(config), coco.categories) if f), ())
    if len(found) != num_classes:
        raise ConfigError(
            "which classes are these? the checkpoint does not name them",
            where="labelled_stream, val_annotations, pseudo_label.images",
            expected=f"a COCO file with the {num_classes} categories that the network was trained with",
            got=f"{len(found)} categories",
            fix="use the config and the data set of the training",
        )
    return found


def _categories_of_config(config: Config) -> Iterator[tuple[Category, ...]]:
    for file in (stream_settings(config, "labelled").get("annotation_file"), config.get("val_annotations")):
        if file and Path(file).is_file():
            yield _read_categories(Path(file))


def _in_order(found: Sequence[Category], names: Sequence[str]) -> tuple[Category, ...]:
    by_name = {category.name: category for category in found}
    return tuple(by_name[name] for name in names)


def _read_categories(file: Path) -> tuple[Category, ...]:
    problems = Problems(file)
    found = parse_categories(read_coco_json(file)["categories"], problems)
    problems.raise_if_any()
    return tuple(found)


def _truth(coco: CocoSet, categories: Sequence[Category]) -> CocoSet | None:
    if not {*categories} <= {*coco.categories}:
        return None
    ids = {category.category_id for category in categories}
    objects = [a for entries in coco.annotations.values() for a in entries if a.category_id in ids]
    return make_coco(coco.image_root, coco.images, categories, objects) if objects else None
