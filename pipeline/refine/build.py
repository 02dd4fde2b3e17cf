"""From a refiner's name and settings to the refiner: the one place that knows them all."""

import difflib
from collections.abc import Callable, Mapping
from dataclasses import fields
from functools import partial
from typing import Any, get_args

from pipeline.errors import ConfigError
from pipeline.refine.cpi import CpiRefiner
from pipeline.refine.interface import Refiner, check_choice
from pipeline.refine.iom import IomRefiner
from pipeline.refine.library import MatchSettings, ProposalReader
from pipeline.refine.none import NoRefiner
from pipeline.refine.pixel_weight import WeightScope
from pipeline.refine.point_prompt import Embed, PointPromptRefiner, PointSettings
from pipeline.sam.interface import Precision, SamBackend

LIBRARY_REFINERS: Mapping[str, tuple[Callable[..., Refiner], tuple[str, ...]]] = {
    "iom": (IomRefiner, ("iou_threshold",)),
    "cpi": (partial(CpiRefiner, cases="both"), ("under_threshold", "over_threshold")),
    "cpi_u": (partial(CpiRefiner, cases="under"), ("under_threshold",)),
    "cpi_o": (partial(CpiRefiner, cases="over"), ("over_threshold",)),
}
"""Name -> refiner that matches against a library (``proposals``, ``settings``), and what it can be set to itself.

A matching rule is known to every command by its line here.
"""

_OTHER_SETTINGS: Mapping[str, tuple[str, ...]] = {
    "none": ("pixel_weights",),
    "points": tuple(field.name for field in fields(PointSettings)),
}

SOURCE_SETTINGS = ("sam", "sam_config", "device", "precision", "store", "cached_embeddings")
"""Of a config's refiner, beside its own: where SAM's answers come from."""

REFINER_NAMES: tuple[str, ...] = (*_OTHER_SETTINGS, *LIBRARY_REFINERS)

_MATCH_SETTINGS = tuple(field.name for field in fields(MatchSettings))


def setting_names() -> tuple[str, ...]:
    """Settings of any refiner."""
    own = [*_OTHER_SETTINGS.values(), *(names for _, names in LIBRARY_REFINERS.values()), _MATCH_SETTINGS]
    return tuple(dict.fromkeys(name for names in own for name in names))


def refuse_unknown_settings(name: str, **settings: object) -> None:
    """Check a refiner's name and settings before there is a library or a SAM.

    Raises:
        ConfigError: an unknown refiner or setting (the nearest one is named), or a value out of range.
    """
    if name not in REFINER_NAMES:
        raise _unknown("refiner", name, REFINER_NAMES)
    allowed = _settings_of(name)
    for key in settings:
        if key not in allowed:
            raise _unknown_setting(name, key, allowed)
    _assemble(name, settings)


def _settings_of(name: str) -> tuple[str, ...]:
    return (*LIBRARY_REFINERS[name][1], *_MATCH_SETTINGS) if name in LIBRARY_REFINERS else _OTHER_SETTINGS[name]


def refuse_wrong_precision(precision: object, device: object) -> None:
    """Check the number format that SAM is to run in.

    Raises:
        ConfigError: neither fp32 nor bf16, or bf16 on a CPU.
    """
    check_choice("precision", precision, get_args(Precision))
    if precision == "bf16" and not str(device).startswith("cuda"):
        raise ConfigError(
            "bf16 is for CUDA devices",
            where="model.refiner.precision",
            got=f"device {device}",
            fix="set model.refiner.precision=fp32",
        )


def build_refiner(
    name: str,
    *,
    proposals: ProposalReader | None = None,
    sam: SamBackend | None = None,
    embed: Embed | None = None,
    **settings: object,
) -> Refiner:
    """Build a refiner by name.

    Args:
        name: none | points | iom | cpi | cpi_u | cpi_o.
        proposals: The library, for iom and the cpi family.
        sam: The SAM to prompt, for points.
        embed: A cache of SAM embeddings, optional, for points.
        **settings: Fields of the refiner (`iou_threshold`, `under_threshold`, `over_threshold`), of `MatchSettings`
            (library refiners) or of `PointSettings` (points).

    Raises:
        ConfigError: an unknown name or setting (the nearest one is named), a value out of range, or the library or
            the SAM that this refiner needs is missing.
    """
    refuse_unknown_settings(name, **settings)
    if name == "points":
        sam = _needed(name, "sam", sam)
    elif name in LIBRARY_REFINERS:
        proposals = _needed(name, "proposals", proposals)
    return _assemble(name, settings, proposals=proposals, sam=sam, embed=embed)


def weight_scope(refiner: Refiner) -> WeightScope:
    """Which instances a refiner gives PWA weights; "off" of one without such a setting."""
    scope: WeightScope = getattr(getattr(refiner, "settings", refiner), "pixel_weights", "off")
    return scope


def _assemble(
    name: str, settings: Mapping[str, Any], *, proposals: Any = None, sam: Any = None, embed: Embed | None = None
) -> Refiner:
    """Build a refiner of known name and settings; values out of range are refused (ConfigError)."""
    values = dict(settings)
    if name == "none":
        return NoRefiner(**values)
    if name == "points":
        return PointPromptRefiner(sam, PointSettings(**values), embed)
    matching = MatchSettings(**{key: values.pop(key) for key in _MATCH_SETTINGS if key in values})
    return LIBRARY_REFINERS[name][0](proposals, settings=matching, **values)


def _needed(name: str, what: str, value: Any) -> Any:
    if value is None:
        raise ConfigError(
            f"refiner {name} needs {what}",
            where="refiner",
            fix="name a SAM backend" if what == "sam" else "run precompute-sam and name its store",
        )
    return value


def _unknown_setting(refiner: str, key: str, allowed: tuple[str, ...]) -> ConfigError:
    others = [name for name in REFINER_NAMES if key in _settings_of(name)]
    advice = f"a setting of {', '.join(others)}: leave it out, or take a config whose refiner is {refiner}"
    return _unknown(f"setting of refiner {refiner}", key, allowed, fix=advice if others else None)


def _unknown(what: str, name: str, known: tuple[str, ...], *, fix: str | None = None) -> ConfigError:
    nearest = difflib.get_close_matches(name, known, n=1, cutoff=0.0)
    return ConfigError(
        f"unknown {what}",
        where=name,
        expected=" | ".join(known),
        fix=fix or (f"did you mean {nearest[0]}?" if nearest else None),
    )
