"""Configuration files: read one, apply ``--cfg-options``, refuse keys that do not exist, write what was meant.

A configuration is mmengine's, in pure Python, loaded by its path and nowhere else. A mistyped key would be added
silently by mmengine and the run would go on with the value it was to replace; here it is an error that names the
nearest key there is.
"""

import argparse
import contextlib
import os
import pprint
from collections.abc import Collection, Mapping, Sequence
from difflib import get_close_matches
from pathlib import Path
from types import MappingProxyType
from typing import Any

from mmengine.config import Config, DictAction

from pipeline.errors import ConfigError
from pipeline.full_disk import told_if_full

_WIDTH = 118
NOTHING: Mapping[str, str] = MappingProxyType({})
_PATHS = frozenset(
    {
        *("data_root", "image_root", "root", "images", "val_images", "annotations", "val_annotations"),
        *("annotation_file", "expressions", "expressions_file", "split", "split_file"),
        *("store", "structural_store", "reuse", "work_dir"),
        *("teacher_checkpoint", "init_checkpoint", "backbone_checkpoint", "swin_checkpoint", "load_from"),
    }
)
"""Last parts of the keys whose values are paths or names: text, also where it looks like a number or a list."""


class PlainConfig(Config):  # type: ignore[misc]
    """mmengine's configuration, laid out by the standard library.

    mmengine lays its text out with yapf: seconds for a student's, and its runner asks for it six times before step 1.
    """

    @classmethod
    def of(cls, config: Config) -> "PlainConfig":
        """The same settings."""
        other = cls.__new__(cls)
        other.__dict__.update(config.__dict__)
        return other

    @property
    def pretty_text(self) -> str:
        """For people, and to be read again."""
        return laid_out(self)


def laid_out(config: Config) -> str:
    """A config as Python text for people; it can be run again as it is."""
    settings = config.to_dict().items()
    return "".join(f"{name} = {pprint.pformat(value, width=_WIDTH, sort_dicts=False)}\n" for name, value in settings)


def as_text(config: Config) -> str:
    """A config for ``Config.fromstring`` in another process, one line a setting."""
    return "".join(f"{name} = {value!r}\n" for name, value in config.to_dict().items())


def load_config(
    path: Path,
    cfg_options: Sequence[str] = (),
    *,
    also_known: Collection[str] = (),
    elsewhere: Mapping[str, str] = NOTHING,
) -> Config:
    """Read a configuration and apply what the command line overrides.

    Args:
        path: A ``.py`` file.
        cfg_options: ``key=value``, see :func:`parse_options`, as in ``optim_wrapper.optimizer.lr=1e-4`` or
            ``model.sizes=[1,2]``; a number steps into a list.
        also_known: Dotted keys that may be set although the file does not have them; their parents are made.
        elsewhere: Keys that configurations of other commands have -> what to set here instead.

    Returns:
        The configuration, overrides applied.

    Raises:
        ConfigError: No such file, not a configuration, an override without ``=``, with an unknown key, or of a whole
            section.
    """
    config = _read(Path(path))
    options = parse_options(cfg_options)
    tree = config._cfg_dict
    refuse_unknown(options, tree, also_known=also_known, elsewhere=elsewhere, where=f"--cfg-options, {path}")
    _refuse_replaced_sections(options, tree, where=f"--cfg-options, {path}")
    for key, value in options.items():
        _assign(tree, key.split("."), value)
    return config


def _read(path: Path) -> Config:
    if path.suffix != ".py" or not path.is_file():
        found = sorted(str(p) for p in path.parent.glob("*.py"))[:8] if path.parent.is_dir() else []
        raise ConfigError(
            "no such configuration",
            where=path,
            expected="a .py file" + (f", such as {', '.join(found)}" if found else ""),
            fix="give the path of a file of configs/, or of a copy that you changed",
        )
    try:
        return Config.fromfile(path)
    except Exception as error:  # a configuration is code: it may fail in any way
        reason = " ".join(str(error).split())[:400]
        raise ConfigError(
            "a configuration cannot be read",
            where=path,
            got=f"{type(error).__name__}: {reason}",
            fix="correct the file; a copy of one of configs/ belongs beside it: the names of its bases (read_base) are "
            "relative to that folder",
        ) from error


def parse_options(cfg_options: Sequence[str]) -> dict[str, Any]:
    """Dotted key -> value of ``key=value`` texts, by mmengine's own grammar, except that a path stays as it is.

    mmengine deletes every blank, and takes ``a,b`` for a list and ``2024`` for a number. A value with a blank inside is
    text here unless it opens a bracket or a quote; that of a key that names a path always is. None remains None.

    Raises:
        ConfigError: A text without ``=`` or a value with brackets that do not close.
    """
    parser = argparse.ArgumentParser(add_help=False, exit_on_error=False)
    parser.add_argument("options", nargs="*", action=DictAction)
    options: dict[str, Any] = {}
    for text in cfg_options:
        key, equals, value = text.partition("=")
        try:
            if not (key and equals):
                raise ValueError("no key=value")
            if _is_text(key, value):
                options[key] = _unquoted(value)
            else:
                options |= parser.parse_args(["--", text]).options
        except (ValueError, AssertionError, argparse.ArgumentError) as error:
            raise ConfigError(
                "an override cannot be understood",
                where="--cfg-options",
                expected="key=value, a.b=1, 'a=[1,2]' or 'a=[(1,2),(3,4)]', without blanks",
                got=text,
            ) from error
    return options


def _is_text(key: str, value: str) -> bool:
    if key.rpartition(".")[2] in _PATHS:
        return _unquoted(value) != "None"
    return " " in value.strip() and not value.strip().startswith(("[", "(", "{", "'", '"'))


def _unquoted(value: str) -> str:
    """Without the quotes around the whole of it, which mmengine takes off too."""
    return value[1:-1] if len(value) > 1 and value[0] == value[-1] and value[0] in "'\"" else value


def refuse_unknown(
    options: Mapping[str, Any],
    tree: Mapping[str, Any],
    *,
    also_known: Collection[str] = (),
    elsewhere: Mapping[str, str] = NOTHING,
    where: str,
) -> None:
    """Check that every dotted key leads to something, and report all that do not, each with the nearest one.

    Where ``elsewhere`` has a key, its text takes the place of the nearest one.

    Raises:
        ConfigError: At least one key is unknown.
    """
    wrong = [
        f"{key} (here: {elsewhere[key]})"
        if key in elsewhere
        else f"{key}{nearest(key, [*dotted_keys(tree), *also_known])}"
        for key in options
        if not (key in also_known or _leads_somewhere(tree, key.split(".")))
    ]
    if wrong:
        raise ConfigError(
            f"{'keys do' if len(wrong) > 1 else 'a key does'} not exist in the configuration",
            where=where,
            got="; ".join(wrong),
            fix="correct the spelling; to add a key, write it into the file",
        )


def _refuse_replaced_sections(options: Mapping[str, Any], tree: Mapping[str, Any], *, where: str) -> None:
    """A section (a dict) may be left out with None; a text in its place would fail somewhere later."""
    for key, value in options.items():
        section: object = tree
        for part in key.split("."):
            section = dict(_children(section)).get(part)
        if isinstance(section, dict) and value is not None:
            names = [name for name, _ in _children(section)]
            raise ConfigError(
                "a section cannot be replaced by a value",
                where=where,
                expected=f"{key}.NAME=value with one of its names, {', '.join(names[:8])}; or {key}=None",
                got=f"{key}={value}",
                fix="change its keys one by one, or write the section into a copy of the file",
            )


def nearest(word: str, known: Collection[str]) -> str:
    """`` (nearest: ...)`` for a message, or nothing where no known word is alike."""
    alike = get_close_matches(word, sorted(set(known)), n=1, cutoff=0.5)
    return f" (nearest: {alike[0]})" if alike else ""


def dotted_keys(tree: object, prefix: str = "") -> list[str]:
    """All keys below ``tree``, at every depth, as ``a.b.0.c``."""
    keys: list[str] = []
    for name, child in _children(tree):
        keys += [f"{prefix}{name}", *dotted_keys(child, f"{prefix}{name}.")]
    return keys


def leaves(tree: object, prefix: str = "") -> dict[str, object]:
    """Every value below ``tree`` that holds no others, by its dotted key."""
    found: dict[str, object] = {}
    for name, child in _children(tree):
        below = leaves(child, f"{prefix}{name}.")
        found |= below or {f"{prefix}{name}": child}
    return found


def _children(tree: object) -> list[tuple[str, object]]:
    if isinstance(tree, dict):
        # Past mmengine's own look-up, which would import every class that the configuration names.
        return [(str(name), child) for name, child in dict.items(tree)]
    return [(str(i), child) for i, child in enumerate(tree)] if isinstance(tree, list | tuple) else []


def _leads_somewhere(tree: object, parts: Sequence[str]) -> bool:
    if not parts:
        return True
    children = dict(_children(tree))
    return parts[0] in children and _leads_somewhere(children[parts[0]], parts[1:])


def _assign(tree: Any, parts: Sequence[str], value: object) -> None:
    """Set one value (mmengine's own merge cannot set a number inside a list)."""
    name = int(parts[0]) if isinstance(tree, list) else parts[0]
    if len(parts) == 1:
        tree[name] = value
        return
    child = dict(_children(tree)).get(parts[0])
    if isinstance(child, tuple) or child is None:
        tree[name] = list(child) if isinstance(child, tuple) else {}
        child = dict(_children(tree))[parts[0]]  # mmengine stores a copy
    _assign(child, parts[1:], value)


def write_resolved(config: Config, path: Path) -> None:
    """Write the configuration as it was used, overrides included, in one step; it can be run again as it is."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f"{path.name}.{os.getpid()}.partial")
    try:
        with told_if_full(path):
            partial.write_text(laid_out(config), encoding="utf-8")
        partial.replace(path)
    finally:
        with contextlib.suppress(FileNotFoundError):
            partial.unlink()
