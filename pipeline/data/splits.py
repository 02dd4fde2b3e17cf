"""Labelled / unlabelled splits: drawn once, nested, written to disk, never redrawn silently.

A split names images, so it belongs to the ids and names of a set (:func:`images_fingerprint`): correcting an
annotation or choosing other classes leaves it valid, adding or renaming an image does not. Draw and load it with
the set as loaded; take broken images out afterwards.

The published S4M lists are not nested and the COCO ones were never released (drawn without a seed); ours order all
images once per (images, seed) and take a prefix, so that 5 % is inside 10 %. :func:`split_from_names` reads a
published list.
"""

import hashlib
import json
import shlex
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from decimal import ROUND_FLOOR, Decimal
from pathlib import Path, PurePosixPath

from pipeline.data.coco import CocoSet, write_json
from pipeline.data.coco_problems import nearest_name
from pipeline.errors import InputError

SPLIT_VERSION = 1
_NAME_ENDINGS = ("_gtFine_instanceIds", "_gtFine_labelIds", "_leftImg8bit")
"""What Cityscapes appends to one stem for the image and for its ground truth; its lists name the latter."""


@dataclass(frozen=True)
class Split:
    """Which images of a set are labelled; the others are unlabelled."""

    fingerprint: str
    """Of the images (ids and names) it was made for."""
    percent: float
    """Asked for when drawn; the true share when read from a list."""
    seed: int | None
    """None when read from a list."""
    labelled: tuple[int, ...]
    """Image ids, ascending."""
    unlabelled: tuple[int, ...]
    """All other image ids of the set, ascending."""
    names_file: str | None = None
    """File name of the list it was read from."""
    draw: str = "nested"
    """How it was drawn where it was: nested (see :func:`draw_split`), or the name of another way."""


def images_fingerprint(coco: CocoSet) -> str:
    """sha256 over image ids and names, in id order."""
    rows = sorted((image.image_id, image.file_name) for image in coco.images)
    return hashlib.sha256(json.dumps(rows).encode()).hexdigest()


def draw_split(coco: CocoSet, *, percent: float, seed: int) -> Split:
    """Draw labelled images at random, uniformly over images.

    The order is by sha256 of (fingerprint, seed, image id): the same on every platform and with every library
    version. The count is the floor of ``percent`` of the images, as the released S4M script takes it, but at
    least 1.

    Args:
        coco: the whole set.
        percent: above 0, at most 100.
        seed: any integer.

    Raises:
        InputError: percent out of range, or a set without images.
    """
    if not coco.images:
        raise InputError("empty data set", where=coco.image_root, expected="at least one image", got=0)
    fingerprint = images_fingerprint(coco)

    def place(image_id: int) -> bytes:
        return hashlib.sha256(f"{fingerprint}/{seed}/{image_id}".encode()).digest()

    order = sorted((image.image_id for image in coco.images), key=place)
    return split_of(coco, order[: labelled_count(len(order), percent)], percent=percent, seed=seed)


def labelled_count(num_images: int, percent: float) -> int:
    """The floor of ``percent`` of the images, but at least 1.

    Raises:
        InputError: percent is not above 0 and at most 100.
    """
    if not 0 < percent <= 100:
        raise InputError(
            "percent is out of range",
            where="--percent",
            expected="above 0, at most 100",
            got=percent,
            fix="give the share in percent: 10 labels a tenth of the images",
        )
    # Decimal, because 0.07 * 100 is 7.000000000000001 in binary and 0.29 * 100 is 28.999999999999996.
    share = Decimal(str(percent)) * num_images / 100
    return max(1, int(share.to_integral_value(ROUND_FLOOR)))


def split_from_names(coco: CocoSet, names_file: Path) -> Split:
    """Read the labelled images from a text file, one name a line; blank lines do not count.

    A line matches a ``file_name`` in full, or by its last part without suffix; the Cityscapes endings of image
    and ground truth are taken for the same.

    Raises:
        InputError: no such file, no name in it, names that no image or several images have, or a name twice.
    """
    names_file = Path(names_file)
    try:
        lines = names_file.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError("list of image names cannot be read", where=names_file, got=str(error)) from error
    names = [line.strip() for line in lines if line.strip()]
    if not names:
        raise InputError("list of image names is empty", where=names_file, expected="one image name a line", got=0)
    ids = _ids_of(coco, names, names_file)
    percent = 100 * len(ids) / len(coco.images)
    return replace(split_of(coco, ids, percent=percent, seed=None), names_file=names_file.name)


def split_of(
    coco: CocoSet, labelled: Iterable[int], *, percent: float, seed: int | None, draw: str = "nested"
) -> Split:
    """Put a split together from the ids of its labelled images; the other fields are those of :class:`Split`."""
    chosen = set(labelled)
    others = sorted(image.image_id for image in coco.images if image.image_id not in chosen)
    return Split(images_fingerprint(coco), percent, seed, tuple(sorted(chosen)), tuple(others), draw=draw)


def _stem(name: str) -> str:
    stem = PurePosixPath(name).stem
    for ending in _NAME_ENDINGS:
        stem = stem.removesuffix(ending)
    return stem


def _ids_of(coco: CocoSet, names: Iterable[str], names_file: Path) -> list[int]:
    by_name = {image.file_name: image.image_id for image in coco.images}
    by_stem: dict[str, list[int]] = {}
    for image in coco.images:
        by_stem.setdefault(_stem(image.file_name), []).append(image.image_id)
    ids: dict[int, str] = {}
    wrong: list[str] = []
    for name in names:
        found = [by_name[name]] if name in by_name else by_stem.get(_stem(name), [])
        if not found:
            wrong.append(f"{name!r}: no such image{nearest_name(name, by_name)}")
        elif len(found) > 1:
            wrong.append(f"{name!r}: {len(found)} images have this name; give the path")
        elif found[0] in ids:
            wrong.append(f"{name!r}: the same image as {ids[found[0]]!r}")
        else:
            ids[found[0]] = name
    if wrong:
        lines = [f"\n    - {line}" for line in wrong[:20]] + (
            [f"\n    ... and {len(wrong) - 20} more"] * (len(wrong) > 20)
        )
        raise InputError(
            f"{len(wrong)} names of a list do not fit the data set",
            where=names_file,
            expected="each line to name one image of the set, once",
            got="".join(lines),
            fix="correct the list, or pass the data set that it was made for",
        )
    return list(ids)


def save_split(split: Split, path: Path) -> None:
    """Write a split; where an equal one is there already, nothing is done.

    Raises:
        InputError: another split is there: it is never overwritten.
    """
    path = Path(path)
    if not path.exists():
        content = {
            "version": SPLIT_VERSION,
            "fingerprint": split.fingerprint,
            "percent": split.percent,
            "seed": split.seed,
            "names_file": split.names_file,
            "labelled": list(split.labelled),
            "unlabelled": list(split.unlabelled),
        }
        if split.draw != "nested":
            content["draw"] = split.draw
        write_json(content, path)
        return
    there = _read(path)
    if there != split:
        raise InputError(
            "another split is there already, and a split is never redrawn",
            where=path,
            expected=_describe(split),
            got=_describe(there),
            fix="write to another path, or use the split that is there",
        )


def load_split(path: Path, coco: CocoSet, *, or_of: CocoSet | None = None, source: Sequence[str | Path] = ()) -> Split:
    """Read a split and check that it was made for these images.

    Args:
        path: Written by :func:`save_split`.
        coco: The set that was split.
        or_of: Another set of images that the split may have been made for.
        source: Arguments of ``s4m-pipeline split`` that name the set, for the message where there is no split.

    Raises:
        InputError: no split file, a damaged one, or one of other images.
    """
    if not Path(path).exists():
        fix = f"make it first: {_command(Path(path), coco.image_root, source)}"
        raise InputError("split file not found", where=path, fix=fix)
    split = _read(Path(path))
    if or_of is not None and split.fingerprint == images_fingerprint(or_of):
        coco = or_of
    fingerprint = images_fingerprint(coco)
    if split.fingerprint != fingerprint:
        raise InputError(
            "the split was made for other images",
            where=path,
            expected=f"images with fingerprint {fingerprint[:16]} ({len(coco.images)} images)",
            got=_describe(split),
            fix="pass the data set that was split, or make a new split at another path",
        )
    ids = [image.image_id for image in coco.images]
    if sorted([*split.labelled, *split.unlabelled]) != sorted(ids):
        raise _damaged(Path(path), "ids that are not exactly those of the images")
    return split


def _command(path: Path, image_root: Path, source: Sequence[str | Path]) -> str:
    """That makes a split, as far as is known."""
    if not source:
        return "s4m-pipeline split"
    words = shlex.join([*map(str, source), "--image-root", str(image_root)])
    out = shlex.quote(str(path.parent)) if path.name == "split.json" else "FOLDER, and name FOLDER/split.json"
    return f"s4m-pipeline split {words} --percent P --out {out}"


def _describe(split: Split) -> str:
    made = f"from {split.names_file}" if split.names_file else f"{split.percent:g} %, seed {split.seed}, {split.draw}"
    counts = f"{len(split.labelled)} labelled, {len(split.unlabelled)} unlabelled"
    return f"{made}; {counts}; images {split.fingerprint[:16]}"


def _read(path: Path) -> Split:
    try:
        content = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise _damaged(path, str(error)) from error
    if not isinstance(content, dict) or content.get("version") != SPLIT_VERSION:
        raise _damaged(path, "no such version, or not a split file")
    try:
        labelled, unlabelled = (tuple(int(entry) for entry in content[key]) for key in ("labelled", "unlabelled"))
        seed = None if content["seed"] is None else int(content["seed"])
        name, draw = content["names_file"], str(content.get("draw", "nested"))
        return Split(str(content["fingerprint"]), float(content["percent"]), seed, labelled, unlabelled, name, draw)
    except (KeyError, TypeError, ValueError) as error:
        raise _damaged(path, f"{type(error).__name__}: {error}") from error


def _damaged(path: Path, got: str) -> InputError:
    return InputError(
        "split file is damaged or not a split file",
        where=path,
        expected=f"a split file of version {SPLIT_VERSION}, written by `s4m-pipeline split`",
        got=got,
        fix="restore the file, or make the split again at another path",
    )
