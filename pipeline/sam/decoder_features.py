"""Targets of the distillation from SAM's mask decoder or image encoder. Eq: S4M/self-similarity."""

from collections.abc import Callable, Iterator

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from data_schemas.similarity import INSIDE_GROUND_TRUTH, UNIFORM, Features, SimilarityTargets
from pipeline.errors import ConfigError, InputError
from pipeline.sam.batches import BatchSize, in_batches
from pipeline.sam.interface import ImageEmbedding, SamBackend


def similarity_targets(
    backend: SamBackend,
    embedding: ImageEmbedding,
    points_xy: NDArray[np.float32],
    point_kind: NDArray[np.uint8],
    *,
    prompts_per_batch: int = 64,
    features: Features = "decoder",
    batch: BatchSize | None = None,
) -> SimilarityTargets:
    """:func:`rows_at_points` (Eq: S4M/self-similarity) as it is stored: on the host, ``point_kind`` [P] passed through.

    Raises:
        InputError: a point lies outside the image.
    """
    size = batch or BatchSize(prompts_per_batch)
    rows = rows_at_points(backend, embedding, points_xy, batch=size, features=features)
    return SimilarityTargets(points_xy=points_xy, point_kind=point_kind, similarity=rows.cpu().numpy())


def rows_at_points(
    backend: SamBackend,
    embedding: ImageEmbedding,
    points_xy: NDArray[np.float32],
    *,
    prompts_per_batch: int = 64,
    features: Features = "decoder",
    batch: BatchSize | None = None,
) -> Tensor:
    """Cosines between each point's own cell and all cells of a map of SAM's features.

    Eq: S4M/self-similarity, C_SAM[i, j] = cos(F_i[c_i], F_i[j]), where c_i is the cell that holds point i and

    * ``decoder`` (the method): F_i [C, gh, gw] are the decoder's image tokens after the last two-way block, prompted
      with point i alone (a positive click, also for background points). Each row comes from its own map.
    * ``encoder`` (the paper's alternative): F_i = F, the image encoder's tokens, one map for the image. They are
      those that the decoder is given, so SAM 2's constant "no memory" offset is in them.

    Args:
        backend: a SAM.
        embedding: the image, from ``backend.embed``.
        points_xy: [P, 2] canonical pixels, inside the image.
        prompts_per_batch: points decoded together; bounds memory, does not change the result. Where a GPU has no room
            for so many, fewer.
        features: decoder | encoder.
        batch: keeps from image to image what the GPU had no room for; ``prompts_per_batch`` anew if None.

    Returns:
        [P, gh, gw] float32 in [-1, 1], on the backend's device.

    Raises:
        InputError: a point lies outside the image.
        torch.OutOfMemoryError: the device has no room for a single point.
    """
    cells = torch.from_numpy(cells_of_points(points_xy, embedding.size_hw, backend.grid_hw))
    if features == "encoder":
        return rows_of_one_map(embedding.tokens[0], cells)
    batch = batch or BatchSize(prompts_per_batch)
    found = list(_of_decoder(backend, embedding, points_xy, cells, batch, rows_of_cells))
    return torch.cat(found) if found else embedding.tokens.new_zeros((0, *backend.grid_hw)).float()


def features_at_points(
    backend: SamBackend,
    embedding: ImageEmbedding,
    points_xy: NDArray[np.float32],
    *,
    prompts_per_batch: int = 64,
    features: Features = "decoder",
    batch: BatchSize | None = None,
) -> Tensor:
    """SAM's features in the cell of each point, F_i[c_i] of :func:`rows_at_points`, which see for the arguments.

    Returns:
        [P, C] float32 on the backend's device.

    Raises:
        InputError: a point lies outside the image.
    """
    cells = torch.from_numpy(cells_of_points(points_xy, embedding.size_hw, backend.grid_hw))
    if features == "encoder":
        return _in_cells(embedding.tokens.float().expand(len(cells), -1, -1, -1), cells)
    batch = batch or BatchSize(prompts_per_batch)
    found = list(_of_decoder(backend, embedding, points_xy, cells, batch, _in_cells))
    return torch.cat(found) if found else embedding.tokens.new_zeros((0, embedding.tokens.shape[1])).float()


def _of_decoder(
    backend: SamBackend,
    embedding: ImageEmbedding,
    points_xy: NDArray[np.float32],
    cells: Tensor,
    batch: BatchSize,
    read: Callable[[Tensor, Tensor], Tensor],
) -> Iterator[Tensor]:
    """What ``read`` takes from the decoder's maps [p, C, gh, gw] and cells [p, 2] of some points at a time."""

    def decode(part: slice) -> Tensor:
        return read(backend.decoder_tokens(embedding, torch.from_numpy(points_xy[part])), cells[part])

    return in_batches(len(points_xy), batch, decode)


def _in_cells(tokens: Tensor, cells: Tensor) -> Tensor:
    """Of map i of tokens [P, C, gh, gw] what is in cell i of [P, 2] (row, column): [P, C]."""
    cells = cells.to(tokens.device)
    return tokens[torch.arange(len(tokens), device=tokens.device), :, cells[:, 0], cells[:, 1]]


def cells_of_points(
    points_xy: NDArray[np.float32], size_hw: tuple[int, int], grid_hw: tuple[int, int]
) -> NDArray[np.int64]:
    """The grid cell (row, column) that holds each point.

    The grid covers the canonical image, stretched, so row = floor(y gh / H) and column = floor(x gw / W).
    (The released S4M code takes this cell on padded canvases too, where it is another one.)

    Args:
        points_xy: [P, 2] canonical pixels, 0 <= x <= W and 0 <= y <= H; the far edges count as inside.
        size_hw: H, W of the image.
        grid_hw: gh, gw of the grid.

    Returns:
        [P, 2] int64.

    Raises:
        InputError: a point is not finite or lies outside the image.
    """
    limit = np.array([size_hw[1], size_hw[0]], np.float64)
    # Written so that NaN is refused too.
    if not np.all((points_xy >= 0) & (points_xy <= limit)):
        outside = points_xy[~np.all((points_xy >= 0) & (points_xy <= limit), axis=1)]
        raise InputError(
            "a target point lies outside its image",
            expected=f"0 <= x <= {size_hw[1]}, 0 <= y <= {size_hw[0]}",
            got=f"{len(outside)} points, first {outside[0].tolist()}",
        )
    grid = np.array(grid_hw, np.int64)
    cells = np.floor(points_xy[:, ::-1].astype(np.float64) * grid / limit[::-1]).astype(np.int64)
    return np.minimum(cells, grid - 1)


def rows_of_cells(tokens: Tensor, cells: Tensor) -> Tensor:
    """One cosine row per map.

    Args:
        tokens: [P, C, gh, gw] float, one map per point.
        cells: [P, 2] int64, row and column of the point in its own map.

    Returns:
        [P, gh, gw] float32 in [-1, 1].
    """
    directions = F.normalize(tokens.float(), dim=1)
    own = _in_cells(directions, cells)
    return torch.einsum("pc,pchw->phw", own, directions).clamp(-1, 1)  # Eq: S4M/self-similarity


def rows_of_one_map(tokens: Tensor, cells: Tensor) -> Tensor:
    """As :func:`rows_of_cells` where all points share one map, tokens [C, gh, gw]."""
    directions = F.normalize(tokens.float(), dim=0)
    cells = cells.to(tokens.device)
    own = directions[:, cells[:, 0], cells[:, 1]]  # [C, P]
    return torch.einsum("cp,chw->phw", own, directions).clamp(-1, 1)  # Eq: S4M/self-similarity


def sample_target_points(
    inside_mask: NDArray[np.bool_] | None,
    size_hw: tuple[int, int],
    *,
    num_inside: int,
    num_uniform: int,
    rng: np.random.Generator,
) -> tuple[NDArray[np.float32], NDArray[np.uint8]]:
    """Points for :func:`similarity_targets`: some in the ground truth, some anywhere.

    Inside points are drawn uniformly without replacement from the pixels of the union of all instances, so
    large instances get more; where the union has too few pixels (or there is no ground truth) uniform
    points take their place, and are marked as uniform. Uniform points are drawn with replacement.

    Args:
        inside_mask: [H, W] bool union of the ground truth, or None for an unlabelled image.
        size_hw: H, W of the image.
        num_inside: points wanted inside.
        num_uniform: points wanted anywhere.
        rng: source of randomness.

    Returns:
        ``points_xy`` [P, 2] float32, centres of pixels, and ``point_kind`` [P] uint8, with
        P = num_inside + num_uniform, inside points first.

    Raises:
        ConfigError: a negative count, or no point at all.
        InputError: the mask has another size than the image.
    """
    height, width = size_hw
    if num_inside < 0 or num_uniform < 0 or num_inside + num_uniform == 0:
        raise ConfigError("point counts must not be negative, nor both 0", got=(num_inside, num_uniform))
    if inside_mask is not None and inside_mask.shape != (height, width):
        raise InputError("a ground-truth mask has another size than its image", expected=size_hw, got=inside_mask.shape)
    candidates = np.flatnonzero(inside_mask) if inside_mask is not None else np.empty(0, np.int64)
    inside = rng.choice(candidates, min(num_inside, len(candidates)), replace=False, shuffle=True)
    uniform = rng.integers(0, height * width, num_inside + num_uniform - len(inside))
    pixels = np.concatenate([inside, uniform])
    points_xy = np.stack([pixels % width + 0.5, pixels // width + 0.5], axis=1).astype(np.float32)
    kinds = np.repeat(np.array([INSIDE_GROUND_TRUTH, UNIFORM], np.uint8), [len(inside), len(uniform)])
    return points_xy, kinds
