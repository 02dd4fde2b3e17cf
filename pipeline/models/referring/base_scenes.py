"""Scenes and sentences that the starts of the referring networks learn from: other shape families, other seeds.

What cannot be learnt from other families is what the benchmark's class words mean; colours, places, sizes, ordinals and
the grammar can. So the benchmark's class words never occur in a sentence here, and :func:`seat_class_words` gives them
the meaning "some class" afterwards: a start that few labels have to fill.
"""

import multiprocessing
from collections.abc import Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pipeline.models.referring.text_encoder import TextEncoder
from pipeline.scenes.cache import draw_by_index
from pipeline.scenes.expressions import ANYTHING, SceneObject, candidates, scene_objects
from pipeline.scenes.render import COLOURS, SceneStyle
from pipeline.scenes.shapes import START_FAMILIES

DrawnScene = tuple[NDArray[np.uint8], NDArray[np.uint8], list[SceneObject]]
_FEW = 64
"""So many scenes are drawn faster than processes start."""
FAMILY_NAMES, COLOUR_NAMES = tuple(START_FAMILIES), tuple(COLOURS)


@dataclass(frozen=True)
class ReferScenes:
    """N scenes of one size with what a sentence can speak of."""

    images: NDArray[np.uint8]
    """[N, H, W, 3] RGB."""
    owners: NDArray[np.uint8]
    """[N, H, W]: 0 is background, k is object k - 1 of the scene."""
    objects: list[list[SceneObject]]


@dataclass(frozen=True)
class ReferBatch:
    """B draws of a scene, turned or mirrored, and a sentence that is true of what it shows."""

    images: Tensor
    """[B, 3, H, W] float32, 0 to 255."""
    sentences: list[str]
    masks: Tensor
    """[B, H, W] bool, the object meant, or the group."""
    owners: Tensor
    """[B, H, W] int64: 0 is background, k is object k - 1."""
    families: Tensor
    """[B, M] int64, family of object k; 0 where there is none."""
    colours: Tensor
    """[B, M] int64, likewise."""


def draw_refer_scenes(num: int, *, seed: int, style: SceneStyle | None = None, workers: int = 2) -> ReferScenes:
    """Draw scenes 0 to ``num - 1`` of the start's families, many of them in parallel."""
    style = style or SceneStyle()
    draw = partial(draw_one, style=style, seed=seed)
    if num <= _FEW:
        return _gathered(num, style.size, map(draw, range(num)))
    # Fresh processes: a fork of one whose OpenCV or torch has threads can wait for them for ever.
    with ProcessPoolExecutor(workers, multiprocessing.get_context("spawn")) as pool:
        return _gathered(num, style.size, pool.map(draw, range(num), chunksize=32))


def _gathered(num: int, size: int, drawn: Iterable[DrawnScene]) -> ReferScenes:
    """Into arrays one by one: thousands of scenes twice would not fit everywhere."""
    images = np.empty((num, size, size, 3), np.uint8)
    owners = np.empty((num, size, size), np.uint8)
    objects = []
    for index, (image, owner, things) in enumerate(drawn):
        images[index], owners[index] = image, owner
        objects.append(things)
    return ReferScenes(images, owners, objects)


def draw_one(index: int, *, style: SceneStyle, seed: int) -> DrawnScene:
    """Image, owners and objects of one scene."""
    scene = draw_by_index(index, group="start", style=style, seed=seed)
    owner = np.zeros((style.size, style.size), np.uint8)
    for number, instance in enumerate(scene.instances, start=1):
        owner[instance.mask] = number
    return scene.image, owner, scene_objects(scene)


def draw_refer_batch(
    scenes: ReferScenes, rng: np.random.Generator, size: int, *, group_share: float = 0.0
) -> ReferBatch:
    """Draw scene, turn and brightness, then two sentences about what is seen: one image, two masks.

    Args:
        scenes: Drawn from.
        rng: Decides everything.
        size: Images of the batch; of an odd number the last has one sentence.
        group_share: How many of the sentences name a group, see :func:`draw_group`; the others are the grammar's.
    """
    images: list[Tensor] = []
    sentences: list[str] = []
    masks: list[Tensor] = []
    owners: list[Tensor] = []
    things: list[Sequence[SceneObject]] = []
    while len(images) < size:
        index = int(rng.integers(len(scenes.images)))
        turns, mirrored = int(rng.integers(4)), bool(rng.random() < 0.5)
        objects = [turned(thing, turns, mirrored) for thing in scenes.objects[index]]
        image, owner = np.rot90(scenes.images[index], turns), np.rot90(scenes.owners[index], turns)
        image, owner = (image[:, ::-1], owner[:, ::-1]) if mirrored else (image, owner)
        bright = np.clip(image * rng.uniform(0.8, 1.2), 0, 255).astype(np.float32)
        for _ in range(min(2, size - len(images))):
            said = draw_group(objects, rng) if rng.random() < group_share else draw_sentence(objects, rng)
            if said is None:
                break
            targets, sentence = said
            images.append(torch.from_numpy(np.ascontiguousarray(bright.transpose(2, 0, 1))))
            owners.append(torch.from_numpy(owner.astype(np.int64)))
            masks.append(torch.from_numpy(np.isin(owner, [target + 1 for target in targets])))
            sentences.append(sentence)
            things.append(objects)
    most = max(len(objects) for objects in things)
    families = _table([[FAMILY_NAMES.index(thing.family) for thing in objects] for objects in things], most)
    colours = _table([[COLOUR_NAMES.index(thing.colour) for thing in objects] for objects in things], most)
    return ReferBatch(torch.stack(images), sentences, torch.stack(masks), torch.stack(owners), families, colours)


def draw_sentence(objects: Sequence[SceneObject], rng: np.random.Generator) -> tuple[list[int], str] | None:
    """An object, a rule that tells it apart, a sentence of that rule; None where the scene has none of them."""
    by_object: dict[int, dict[str, list[str]]] = {}
    for candidate in candidates(objects):
        by_object.setdefault(candidate.target, {}).setdefault(candidate.kind, []).append(candidate.sentence)
    if not by_object:
        return None
    target = sorted(by_object)[int(rng.integers(len(by_object)))]
    kinds = by_object[target]
    sentences = kinds[sorted(kinds)[int(rng.integers(len(kinds)))]]
    return [target], sentences[int(rng.integers(len(sentences)))]


def draw_group(objects: Sequence[SceneObject], rng: np.random.Generator) -> tuple[list[int], str]:
    """All objects of a family, a colour or both, and what they are called: what words mean, without relations.

    The grammar says a noun alone only where one object is meant, so this contradicts none of its sentences.
    """
    thing = objects[int(rng.integers(len(objects)))]
    by_family, by_colour = ((True, False), (False, True), (True, True))[int(rng.integers(3))]
    members = [
        index
        for index, other in enumerate(objects)
        if (not by_family or other.family == thing.family) and (not by_colour or other.colour == thing.colour)
    ]
    words = [*([thing.colour] if by_colour else []), thing.family if by_family else ANYTHING]
    return members, f"the {' '.join(words)}"


def turned(thing: SceneObject, quarter_turns: int, mirrored: bool) -> SceneObject:
    """Where an object lies after ``numpy.rot90`` and then ``[:, ::-1]`` of a square image."""
    x, y = thing.x, thing.y
    for _ in range(quarter_turns):
        x, y = y, 1 - x
    return replace(thing, x=1 - x if mirrored else x, y=y)


@torch.no_grad()
def seat_class_words(encoder: TextEncoder, known: Sequence[str], new: Sequence[str]) -> None:
    """Put words that never occurred where the class words that did lie, on average; their own small noise stays.

    Args:
        encoder: Its word embeddings are changed in place.
        known: Class words of the training.
        new: Class words of the task, each one word piece.
    """
    words: Any = encoder.bert.embeddings.word_embeddings.weight
    index = encoder.tokenizer.convert_tokens_to_ids
    words[index(list(new))] += words[index(list(known))].mean(dim=0)


def _table(rows: list[list[int]], width: int) -> Tensor:
    return torch.tensor([row + [0] * (width - len(row)) for row in rows])
