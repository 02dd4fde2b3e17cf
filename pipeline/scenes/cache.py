"""Scenes as plain arrays for the two training scripts of the embedded models."""

import multiprocessing
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial

import numpy as np
from numpy.typing import NDArray

from pipeline.scenes.render import Scene, SceneStyle, draw_scene
from pipeline.scenes.shapes import BENCHMARK_FAMILIES, START_FAMILIES, Family

FAMILY_GROUPS: dict[str, dict[str, Family]] = {
    "benchmark": BENCHMARK_FAMILIES,
    "start": START_FAMILIES,
    "all": {**BENCHMARK_FAMILIES, **START_FAMILIES},
}


@dataclass(frozen=True)
class SceneArrays:
    """N scenes of one size."""

    images: NDArray[np.uint8]
    """[N, H, W, 3] RGB."""
    owners: NDArray[np.uint8]
    """[N, H, W]: 0 is background, k is the k-th visible instance of the scene."""
    labels: NDArray[np.int16]
    """[N, M]: class index of instance k in column k - 1, -1 where there is none."""


def draw_by_index(index: int, *, group: str, style: SceneStyle, seed: int) -> Scene:
    """Scene ``index`` of the endless data set ``(seed, group, style)``."""
    return draw_scene(np.random.default_rng([seed, index]), FAMILY_GROUPS[group], style)


def draw_arrays(num: int, *, group: str, style: SceneStyle, seed: int, workers: int = 2) -> SceneArrays:
    """Draw scenes 0 to ``num - 1`` in parallel."""
    names = list(FAMILY_GROUPS[group])
    most = style.num_instances[1]
    images = np.empty((num, style.size, style.size, 3), np.uint8)
    owners = np.zeros((num, style.size, style.size), np.uint8)
    labels = np.full((num, most), -1, np.int16)
    draw = partial(draw_by_index, group=group, style=style, seed=seed)
    # Fresh processes: a fork of one whose OpenCV or torch has threads can wait for them for ever.
    with ProcessPoolExecutor(workers, multiprocessing.get_context("spawn")) as pool:
        for i, scene in enumerate(pool.map(draw, range(num), chunksize=32)):
            images[i] = scene.image
            for k, instance in enumerate(scene.instances):
                owners[i][instance.mask] = k + 1
                labels[i, k] = names.index(instance.family)
    return SceneArrays(images, owners, labels)
