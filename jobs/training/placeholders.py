"""Placeholders of configs: ``{name}`` in a string stands for the top-level setting of that name."""

import re
from collections.abc import Mapping
from typing import Any

from pipeline.errors import ConfigError

_PLACEHOLDER = re.compile(r"\{(\w+)\}")
_NUMBER = re.compile(r"\d+\.\d+")


def expand(config: Any) -> None:
    """Fill ``{name}`` in strings of a config with its top-level settings, in place.

    A string that is nothing but ``{name}`` becomes the setting's value, of any type. An item ``{name} x 1.0`` of a
    list becomes as many numbers 1.0 as the setting says.

    Raises:
        ConfigError: a name that is no top-level setting, or that is to be a count and is none.
    """
    tree = config._cfg_dict  # raw items: mmengine's own look-up would import every class that is named
    settings = {k: v for k, v in dict.items(tree) if v is None or isinstance(v, str | int | float)}

    def fill(value: Any) -> Any:
        if isinstance(value, str):
            return _fill_text(value, settings)
        if isinstance(value, list | tuple):
            return type(value)(filled for item in value for filled in _repeated(fill(item)))
        if isinstance(value, dict):
            for key, item in list(dict.items(value)):
                dict.__setitem__(value, key, fill(item))
        return value

    fill(tree)


def _repeated(item: Any) -> list[Any]:
    """An item of a list, its placeholders filled: ``3 x 1.0`` is three of them."""
    count, times, value = item.partition(" x ") if isinstance(item, str) else ("", "", "")
    if not (times and _NUMBER.fullmatch(value)):
        return [item]
    if not count.isdecimal():
        raise ConfigError(
            "a placeholder cannot be filled",
            where=item,
            expected="a count, a whole number from 0",
            got=count,
            fix="correct the setting that says how many, such as num_classes",
        )
    return [float(value)] * int(count)


def _fill_text(text: str, settings: Mapping[str, Any], depth: int = 0) -> Any:
    names = _PLACEHOLDER.findall(text)
    unknown = [name for name in names if name not in settings]
    if unknown or depth > 8:
        raise ConfigError(
            "a placeholder cannot be filled",
            where=text,
            expected=f"one of {sorted(settings)}",
            got=unknown or "a circle of placeholders",
        )
    if not names:
        return text
    if text == f"{{{names[0]}}}" and not isinstance(settings[names[0]], str):
        return settings[names[0]]
    return _fill_text(_PLACEHOLDER.sub(lambda match: str(settings[match[1]]), text), settings, depth + 1)
