"""Settings of ``precompute-sam``: what a configuration may say, checked once, all mistakes told at once."""

import types
from collections.abc import Mapping
from dataclasses import MISSING, asdict, dataclass, field, fields, is_dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from data_schemas.similarity import Features
from jobs.cluster.ray_runner import WorkerSettings
from jobs.config_files import nearest
from jobs.precompute.failures import MOST_ALIKE
from pipeline.errors import ConfigError
from pipeline.sam.generator_settings import GeneratorSettings

T = TypeVar("T")


@dataclass(frozen=True)
class SamSettings:
    """Which SAM, and where it runs."""

    name: str
    """``scenes-nano``, a published name such as ``sam2.1_hiera_large``, or the path of a checkpoint."""
    config: str | None = None
    """Architecture of a local checkpoint: a YAML path or a published name."""
    sha256: str | None = None
    """Digest that the weights must have; published checkpoints have theirs built in."""
    device: str = "cpu"
    """``cpu``, ``cuda`` or ``cuda:n``."""
    precision: Literal["fp32", "bf16"] = "fp32"
    """``bf16`` needs CUDA."""
    compile: bool = False
    """Through ``torch.compile``; the same masks up to rounding. Costs up to a minute at a worker's first image."""


@dataclass(frozen=True)
class SimilaritySettings:
    """Points of the distillation targets (S4M, 128 a step, half inside the ground truth; more are stored)."""

    num_inside: int = 128
    """Points inside the ground-truth union, per image."""
    num_uniform: int = 128
    """Points anywhere, per image."""
    rows_per_chunk: int = 64
    """Rows that are read together: what one training step takes of one kind of point."""
    prompts_per_batch: int = 64
    """Points decoded together; memory only."""
    seed: int = 0
    features: Features = "decoder"
    """What the rows compare: tokens of SAM's mask decoder, each row conditioned by its point, or of its encoder."""

    def __post_init__(self) -> None:
        """Refuse counts that the store cannot hold."""
        total = self.num_inside + self.num_uniform
        if min(self.num_inside, self.num_uniform, self.seed) < 0 or total == 0:
            raise ConfigError("num_inside, num_uniform and seed must not be negative, nor both counts 0", got=self)
        if min(self.prompts_per_batch, self.rows_per_chunk) < 1 or total % self.rows_per_chunk:
            raise ConfigError("num_inside + num_uniform must be a multiple of rows_per_chunk", got=self)


@dataclass(frozen=True)
class PrecomputeSettings:
    """All of ``precompute-sam``."""

    images: str
    """A COCO file or a folder: every image gets proposals."""
    store: str
    """Local folder or address (``s3://...``) of the store."""
    sam: SamSettings
    image_root: str | None = None
    """Folder of the images; None: beside the COCO file."""
    split: str | None = None
    """A file of ``s4m-pipeline split``, whose labelled images get similarity targets; None: all with objects."""
    targets: tuple[str, ...] = ("similarity", "proposals")
    """What to compute."""
    similarity: SimilaritySettings = field(default_factory=SimilaritySettings)
    proposals: GeneratorSettings = field(default_factory=GeneratorSettings)
    images_per_shard: int = 64
    """Images that are computed and published together; a kill loses at most these and those being written, a worker."""
    images_per_batch: int = 1
    """Images that go through SAM's encoder together; memory and speed only."""
    max_broken_share: float = 0.01
    """Share of images that may be set aside before the command fails."""
    retries: int = 2
    """Further tries for an image that fails for a reason other than itself."""
    max_alike_failures: int = MOST_ALIKE
    """So many images in a row that fail for one reason other than themselves end the run."""
    reuse: str | None = None
    """A library of the same SAM and settings: of images that it has, by name and size, proposals are copied."""
    retry_quarantined: bool = False
    """Try images again that an earlier run set aside."""
    workers: WorkerSettings = field(default_factory=WorkerSettings)

    def __post_init__(self) -> None:
        """Refuse values out of range."""
        known = ("similarity", "proposals")
        wrong = [
            text
            for text, fits in {
                f"targets = {self.targets}, expected some of {known}": self.targets and set(self.targets) <= {*known},
                f"images_per_shard = {self.images_per_shard}, expected 1 or more": self.images_per_shard >= 1,
                f"images_per_batch = {self.images_per_batch}, expected 1 or more": self.images_per_batch >= 1,
                f"max_broken_share = {self.max_broken_share}, expected 0 to 1": 0 <= self.max_broken_share <= 1,
                f"retries = {self.retries}, expected 0 or more": self.retries >= 0,
                f"max_alike_failures = {self.max_alike_failures}, expected 1 or more": self.max_alike_failures >= 1,
            }.items()
            if not fits
        ]
        if wrong:
            raise ConfigError("settings out of range", got="; ".join(wrong))

    def identity_settings(self, kind: str) -> dict[str, object]:
        """What decides the content of one kind of artefact; batch sizes and workers do not."""
        chosen: dict[str, object] = asdict(self.similarity if kind == "similarity" else self.proposals)
        for name in ("points_per_batch", "prompts_per_batch", "rows_per_chunk"):
            chosen.pop(name, None)
        if chosen.get("features") == "decoder":
            del chosen["features"]  # stores of before this setting stay what they are
        return chosen | {"precision": self.sam.precision}


def known_keys(kind: Any = PrecomputeSettings, prefix: str = "") -> list[str]:
    """Every key that a configuration may have, dotted."""
    keys: list[str] = []
    for name, hint in get_type_hints(kind).items():
        keys += [f"{prefix}{name}", *(known_keys(hint, f"{prefix}{name}.") if is_dataclass(hint) else [])]
    return keys


def hydrate(kind: type[T], values: Mapping[str, Any], *, where: str | Path) -> T:
    """Make a settings object of plain values.

    Args:
        kind: A dataclass; a field may be a dataclass itself.
        values: Of a configuration.
        where: For the message.

    Raises:
        ConfigError: All unknown keys, missing keys, wrong types and values out of range together.
    """
    problems: list[str] = []
    made = _make(kind, values, "", problems)
    if problems:
        raise ConfigError(
            f"{len(problems)} mistake{'s' if len(problems) > 1 else ''} in the configuration",
            where=where,
            got="".join(f"\n    - {problem}" for problem in problems),
            fix="correct the file, or override with --cfg-options key=value",
        )
    assert isinstance(made, kind)
    return made


def _make(kind: Any, values: object, prefix: str, problems: list[str]) -> Any:
    if not isinstance(values, Mapping):
        problems.append(f"{prefix.rstrip('.')}: expected a dict, got {values!r}")
        return None
    hints, before = get_type_hints(kind), len(problems)
    problems += [f"{prefix}{name}: no such key{nearest(name, hints)}" for name in values if name not in hints]
    given: dict[str, Any] = {}
    for item in fields(kind):
        if item.name in values:
            given[item.name] = _value(hints[item.name], values[item.name], f"{prefix}{item.name}", problems)
        elif item.default is MISSING and item.default_factory is MISSING:
            problems.append(f"{prefix}{item.name}: missing")
    if len(problems) > before:
        return None
    try:
        return kind(**given)
    except ConfigError as error:
        problems.append(f"{prefix.rstrip('.') or 'settings'}: {error.what}: {error.got}")
        return None


def _value(hint: Any, value: Any, name: str, problems: list[str]) -> Any:
    if is_dataclass(hint):
        return _make(hint, value, f"{name}.", problems)
    if get_origin(hint) is tuple and isinstance(value, list):
        value = tuple(value)
    if hint is float and type(value) is int:
        return float(value)
    if not _fits(hint, value):
        problems.append(f"{name}: expected {_told(hint)}, got {value!r}")
    return value


def _fits(hint: Any, value: object) -> bool:
    origin = get_origin(hint)
    if origin in (Union, types.UnionType):
        return any(_fits(choice, value) for choice in get_args(hint))
    if origin is Literal:
        return value in get_args(hint)
    if origin is tuple:
        return isinstance(value, tuple) and all(_fits(get_args(hint)[0], entry) for entry in value)
    # True is an int to Python, not to a reader of a configuration.
    return value is None if hint is type(None) else type(value) is hint


def _told(hint: Any) -> str:
    if get_origin(hint) in (Union, types.UnionType):
        return " or ".join(_told(choice) for choice in get_args(hint))
    if get_origin(hint) is Literal:
        return " or ".join(map(repr, get_args(hint)))
    if get_origin(hint) is tuple:
        return f"a list of {_told(get_args(hint)[0])}"
    return "None" if hint is type(None) else str(hint.__name__)


def load_settings(values: Mapping[str, Any], *, where: str | Path) -> PrecomputeSettings:
    """The settings that a configuration states, see :func:`hydrate`."""
    return hydrate(PrecomputeSettings, values, where=where)
