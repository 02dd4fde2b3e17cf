"""Benches of the structural distillation's targets: computing the rows of an image, and reading a step's rows."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from itertools import cycle
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
import zarr
from numpy.typing import NDArray

from data_schemas.manifest import SCHEMA_VERSIONS, ImageKey, StoreIdentity
from data_schemas.similarity import (
    INSIDE_GROUND_TRUTH,
    UNIFORM,
    SimilarityLayout,
    SimilarityTargets,
    dequantise,
)
from jobs.bench.cases import Case
from jobs.bench.generators import random_backend, scene
from pipeline.sam.decoder_features import cells_of_points, rows_of_cells, similarity_targets
from pipeline.sam.sam2_backend import Sam2Backend, build_backend
from pipeline.stores.similarity_store import SimilarityStore, commit_similarity
from pipeline.stores.writer import StoreWriter

_BATCH = 64


def similarity_cases(_: Path) -> list[Case]:
    """Rows of some points: the decoder up to its image tokens, against the whole decoder and all masks enlarged."""
    nano, tiny = build_backend("scenes-nano"), random_backend("sam2.1_hiera_tiny", device="cpu")
    return [similarity_case(nano, scene((192, 192)), 128), similarity_case(tiny, scene((480, 640)), 64)]


def similarity_case(backend: Sam2Backend, image: NDArray[np.uint8], num_points: int) -> Case:
    """One image, embedded before; the published way reads the tokens off the full prediction of all its masks."""
    embedding = backend.embed([image])[0]
    rng = np.random.default_rng(0)
    points = (rng.random((num_points, 2)) * image.shape[1::-1]).astype(np.float32)
    kinds = np.full(num_points, UNIFORM, np.uint8)
    cells = torch.from_numpy(cells_of_points(points, embedding.size_hw, backend.grid_hw))

    @torch.no_grad()
    def published() -> NDArray[np.float32]:
        rows = []
        for start in range(0, num_points, _BATCH):
            batch = slice(start, start + _BATCH)
            with _watched(backend.model.sam_mask_decoder.transformer) as seen:
                masks = _predict(backend, embedding, points[batch])
                F.interpolate(masks, embedding.size_hw, mode="bilinear", align_corners=False)
            tokens = seen["output"][1].transpose(1, 2)
            rows.append(rows_of_cells(tokens.reshape(*tokens.shape[:2], *backend.grid_hw), cells[batch]).numpy())
        return np.concatenate(rows)

    return Case(
        ours=lambda: similarity_targets(backend, embedding, points, kinds).similarity,
        other=published,
        other_name="the whole decoder, all masks enlarged",
        sizes={"sam": backend.name, "image": f"{image.shape[0]} x {image.shape[1]}", "points": num_points},
        check=partial(np.testing.assert_allclose, atol=1e-4),
    )


def _predict(backend: Sam2Backend, embedding: Any, points: NDArray[np.float32]) -> torch.Tensor:
    encoder = backend.model.sam_prompt_encoder
    xy = backend._to_model_xy(torch.from_numpy(points), embedding.size_hw)[:, None]
    sparse, dense = encoder(points=(xy, torch.ones(xy.shape[:2])), boxes=None, masks=None)
    masks: torch.Tensor = backend.model.sam_mask_decoder(
        image_embeddings=embedding.tokens,
        image_pe=encoder.get_dense_pe(),
        sparse_prompt_embeddings=sparse,
        dense_prompt_embeddings=dense,
        multimask_output=True,
        repeat_image=True,
        high_res_features=list(embedding.high_resolution),
    )[0]
    return masks


@contextmanager
def _watched(module: torch.nn.Module) -> Iterator[dict[str, Any]]:
    """What a module returned last, under ``output``."""
    seen: dict[str, Any] = {}
    handle = module.register_forward_hook(lambda _module, _inputs, output: seen.update(output=output))
    try:
        yield seen
    finally:
        handle.remove()


def similarity_read(scratch: Path, *, num_images: int = 256, grid: int = 64) -> list[Case]:
    """The 128 rows of a training step of one image, drawn anew every time, on SAM's 64 x 64 grid."""
    layout = SimilarityLayout(256, (grid, grid))
    store = write_targets(scratch / "store", layout, num_images=num_images)
    reader = SimilarityStore.open(store)
    array = zarr.open_array(store / "similarity.zarr/similarity", mode="r")
    draws = np.random.default_rng(1)
    turns = [
        (
            int(draws.integers(num_images)),
            np.concatenate([draws.permutation(128)[:64], 128 + draws.permutation(128)[:64]]),
        )
        for _ in range(64)
    ]
    mine, theirs = cycle(turns), cycle(turns)
    for image_id in range(num_images):  # a training reads every shard's index once
        reader.points(image_id)

    def ours() -> NDArray[np.float32]:
        return reader.read(*next(mine)).similarity

    def plain() -> NDArray[np.float32]:
        slot, rows = next(theirs)
        return dequantise(np.asarray(array.oindex[slot, rows]))

    data = sum(path.stat().st_size for path in (store / "similarity.zarr").rglob("*") if path.is_file())
    sizes = {"images": num_images, "rows": 128, "grid": f"{grid} x {grid}", "bytes an image": data // num_images}
    return [Case(ours, plain, "zarr-python, the same rows", sizes, np.testing.assert_array_equal, calls=5)]


def write_targets(uri: Path, layout: SimilarityLayout, *, num_images: int) -> Path:
    """A store of synthetic cosines, smooth like SAM's; the images share 8 sets of rows."""
    rng = np.random.default_rng(2)
    images = [ImageKey(i, f"{i:06d}.png", 480, 640) for i in range(num_images)]
    points = (rng.random((layout.num_points, 2)) * 480).astype(np.float32)
    kinds = np.repeat(np.array([INSIDE_GROUND_TRUTH, UNIFORM], np.uint8), layout.num_points // 2)
    sets = []
    for _ in range(8):
        coarse = torch.from_numpy(rng.standard_normal((layout.num_points, 1, 9, 9)).astype(np.float32))
        smooth = F.interpolate(coarse, layout.grid_hw, mode="bicubic")[:, 0]
        noise = torch.from_numpy(rng.standard_normal(smooth.shape).astype(np.float32))
        sets.append(SimilarityTargets(points, kinds, torch.tanh(smooth + 0.02 * noise).numpy()))
    identity = StoreIdentity("similarity", SCHEMA_VERSIONS["similarity"], "0" * 64, "synthetic", "0" * 64)
    with StoreWriter.create_or_open(uri, identity, images, images_per_shard=64, layout=layout) as writer:
        for task in writer.missing().tasks:
            commit_similarity(task, {image.image_id: sets[image.image_id % 8] for image in task.plan.images})
    return uri


BENCHES: dict[str, Callable[[Path], list[Case]]] = {
    "similarity_targets": similarity_cases,
    "similarity_read": similarity_read,
}
