"""The embedded scenes as a data set on disk: PNG images, COCO files and referring expressions.

::

    ROOT/images/{train,val}/000000.png      named by the scene's index
    ROOT/annotations/{train,val}.json       COCO with RLE masks; file_name is relative to ROOT/images
    ROOT/expressions/{train,val}.json       records of data_schemas.expressions
    ROOT/scenes.json                        what it was made from; written last, so it means "complete"

Seeds below 1,000,000 are the benchmark's: train scenes use ``seed`` itself and val scenes ``seed + 1,000,000``, so
that no training set of any seed is an evaluation set of another. The embedded models were trained on 6,000,000
and above.
"""

import json
import multiprocessing
import os
import shutil
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
from PIL import Image

from data_schemas.expressions import Expression
from pipeline.data.coco import Annotation, Category, CocoImage, make_coco, write_coco, write_json
from pipeline.errors import ConfigError, InputError
from pipeline.masks import rle
from pipeline.scenes.cache import draw_by_index
from pipeline.scenes.expressions import describe, scene_objects
from pipeline.scenes.render import SceneStyle
from pipeline.scenes.shapes import BENCHMARK_FAMILIES

SCENES_VERSION = 1
"""Raise when the same seed would give other pixels, masks or sentences."""
MAX_SEED = 1_000_000
VAL_SEED_OFFSET = 1_000_000
VAL_FIRST_ID = 1_000_001
"""Val image ids begin here, so that one store can hold both splits."""
CLASS_NAMES = tuple(BENCHMARK_FAMILIES)
_WORKERS = 2
_FEW = 16
"""So many scenes are drawn faster than a process starts."""


@dataclass(frozen=True)
class SceneFiles:
    """Where a written data set lies."""

    root: Path

    @property
    def image_root(self) -> Path:
        """Folder that ``file_name`` is relative to, for both splits."""
        return self.root / "images"

    def annotations(self, split: str) -> Path:
        """COCO file of ``train`` or ``val``."""
        return self.root / "annotations" / f"{split}.json"

    def expressions(self, split: str) -> Path:
        """Referring expressions of ``train`` or ``val``."""
        return self.root / "expressions" / f"{split}.json"

    @property
    def marker(self) -> Path:
        """Says what the data set was made from; there only when it is complete."""
        return self.root / "scenes.json"


class _Drawn(NamedTuple):
    """What a worker sends back of one scene; the image is on disk already."""

    masks: list[rle.Rle]
    labels: list[int]
    sentences: list[tuple[int, str]]


def write_scenes(
    root: Path,
    *,
    num_train: int,
    num_val: int,
    seed: int,
    style: SceneStyle | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> SceneFiles:
    """Write the benchmark data set; a finished folder with the same settings is left as it is.

    The folder appears complete or not at all: everything is written beside it and moved at the end. The same
    settings give the same bytes on one platform and one set of library versions.

    Args:
        root: folder to make.
        num_train: scenes 0 to ``num_train - 1`` of seed ``seed``; image ids from 1.
        num_val: scenes 0 to ``num_val - 1`` of seed ``seed + 1,000,000``; image ids from 1,000,001.
        seed: 0 to 999,999.
        style: difficulty; the benchmark's by default.
        progress: called with (scenes done, scenes in all) after each.

    Returns:
        Where everything is. Category ids are 1, 2, ... in the order of the benchmark's families.

    Raises:
        ConfigError: a count or the seed is out of range.
        InputError: the folder holds something else, or scenes of other settings.
    """
    style = style or SceneStyle()
    _check(num_train, num_val, seed)
    files = SceneFiles(Path(root))
    made_from = {
        "version": SCENES_VERSION,
        "num_train": num_train,
        "num_val": num_val,
        "seed": seed,
        "style": json.loads(json.dumps(asdict(style))),  # tuples become lists, as they come back from the file
    }
    if _is_finished(files, made_from):
        return files
    partial_files = SceneFiles(files.root.with_name(f"{files.root.name}.{os.getpid()}.partial"))
    shutil.rmtree(partial_files.root, ignore_errors=True)
    try:
        told = _teller(progress, num_train + num_val)
        train = _write_split(partial_files, _Part("train", num_train, seed, 1), style, told)
        val = _write_split(partial_files, _Part("val", num_val, seed + VAL_SEED_OFFSET, VAL_FIRST_ID), style, told)
        write_json({**made_from, "fingerprints": {"train": train, "val": val}}, partial_files.marker)
        _publish(partial_files, files, made_from)
    finally:
        shutil.rmtree(partial_files.root, ignore_errors=True)
    return files


class _Part(NamedTuple):
    split: str
    num: int
    seed: int
    first_id: int


def _check(num_train: int, num_val: int, seed: int) -> None:
    if not 0 <= seed < MAX_SEED:
        expected = f"0 to {MAX_SEED - 1}: other seeds are kept for val scenes and the embedded models"
        raise ConfigError("seed of the scenes is out of range", expected=expected, got=seed)
    for name, number in (("num_train", num_train), ("num_val", num_val)):
        if not 1 <= number < VAL_FIRST_ID:
            raise ConfigError(f"{name} is out of range", expected=f"1 to {VAL_FIRST_ID - 1}", got=number)


def _is_finished(files: SceneFiles, made_from: dict[str, object]) -> bool:
    """Whether the folder holds exactly these scenes; anything else in it is an error."""
    if not files.root.exists() or (files.root.is_dir() and not any(files.root.iterdir())):
        return False
    try:
        there = json.loads(files.marker.read_bytes())
    except (OSError, ValueError) as error:
        raise InputError(
            "the folder for the scenes holds something else",
            where=files.root,
            expected="no such folder, an empty one, or scenes written before",
            fix="choose another folder, or remove this one",
        ) from error
    different = [key for key, value in made_from.items() if there.get(key) != value]
    if different:
        raise InputError(
            "the folder holds scenes of other settings",
            where=files.root,
            expected={key: made_from[key] for key in different},
            got={key: there.get(key) for key in different},
            fix="choose another folder, or remove this one",
        )
    return True


def _publish(partial_files: SceneFiles, files: SceneFiles, made_from: dict[str, object]) -> None:
    files.root.parent.mkdir(parents=True, exist_ok=True)
    try:
        partial_files.root.rename(files.root)  # an empty folder is replaced, a filled one is not
    except OSError:
        if not _is_finished(files, made_from):  # else another process was faster, with the same result
            raise


def _teller(progress: Callable[[int, int], None] | None, total: int) -> Callable[[], None]:
    """Count scenes and pass the count on."""
    done = 0

    def tell() -> None:
        nonlocal done
        done += 1
        if progress is not None:
            progress(done, total)

    return tell


def _write_split(files: SceneFiles, part: _Part, style: SceneStyle, tell: Callable[[], None]) -> str:
    """Draw, encode and write one split; returns the fingerprint of its COCO file."""
    images: list[CocoImage] = []
    annotations: list[Annotation] = []
    expressions: list[Expression] = []
    for index, scene in enumerate(_draw(files, part, style)):
        image = CocoImage(part.first_id + index, f"{part.split}/{index:06}.png", style.size, style.size)
        ids = [len(annotations) + 1 + place for place in range(len(scene.masks))]
        annotations += _annotations(scene, image.image_id, ids)
        for target, sentence in scene.sentences:
            number = len(expressions) + 1
            expressions.append(Expression(ids[target], number, image.image_id, ids[target], sentence, part.split))
        images.append(image)
        tell()
    categories = [Category(number, name) for number, name in enumerate(CLASS_NAMES, start=1)]
    coco = make_coco(files.image_root, images, categories, annotations)
    write_coco(coco, files.annotations(part.split))
    write_json([expression.as_dict() for expression in expressions], files.expressions(part.split))
    return coco.fingerprint


def _annotations(scene: _Drawn, image_id: int, ids: list[int]) -> list[Annotation]:
    return [
        Annotation(number, image_id, label + 1, mask, float(rle.area(mask)), rle.bbox_xywh(mask), iscrowd=False)
        for number, label, mask in zip(ids, scene.labels, scene.masks, strict=True)
    ]


def _draw(files: SceneFiles, part: _Part, style: SceneStyle) -> Iterator[_Drawn]:
    """Scenes of one split in index order, drawn and written by two processes."""
    folder = files.image_root / part.split
    folder.mkdir(parents=True, exist_ok=True)
    draw = partial(_draw_one, folder=folder, seed=part.seed, style=style)
    if part.num <= _FEW:
        yield from map(draw, range(part.num))
        return
    # Fresh processes: a fork of one whose OpenCV or torch has threads can wait for them for ever.
    # One OpenCV thread each: its pool would only contend with the other process.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(_WORKERS, context, initializer=cv2.setNumThreads, initargs=(1,)) as pool:
        yield from pool.map(draw, range(part.num), chunksize=8)


def _draw_one(index: int, *, folder: Path, seed: int, style: SceneStyle) -> _Drawn:
    scene = draw_by_index(index, group="benchmark", style=style, seed=seed)
    # Noise does not compress: a higher level takes several times as long for a few per cent.
    Image.fromarray(scene.image).save(folder / f"{index:06}.png", compress_level=1)
    masks = np.stack([instance.mask for instance in scene.instances])
    labels = [CLASS_NAMES.index(instance.family) for instance in scene.instances]
    # A stream of its own, so that a change of the grammar never changes a pixel.
    sentences = describe(scene_objects(scene), np.random.default_rng([seed, index, 1]))
    return _Drawn(rle.encode_many(masks), labels, sentences)


def read_expressions(path: Path) -> list[Expression]:
    """Read a file of referring expressions that :func:`write_scenes` wrote.

    Raises:
        InputError: no such file, or not such records.
    """
    try:
        return [Expression.from_dict(row) for row in json.loads(Path(path).read_bytes())]
    except (OSError, ValueError, TypeError) as error:
        fix = "write the scenes again, or check the path"
        raise InputError("expressions cannot be read", where=path, got=str(error), fix=fix) from error
