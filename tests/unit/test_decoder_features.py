import math

import numpy as np
import pytest
import torch

from data_schemas.similarity import MAX_QUANTISATION_ERROR, dequantise, quantise
from pipeline.errors import ConfigError, InputError
from pipeline.sam.batches import BatchSize
from pipeline.sam.decoder_features import (
    cells_of_points,
    features_at_points,
    rows_at_points,
    sample_target_points,
    similarity_targets,
)
from pipeline.sam.sam2_backend import SCENES_NANO, build_backend
from tests.fakes import FakeSam


@pytest.fixture(scope="module")
def backend():
    return build_backend(SCENES_NANO)


@pytest.fixture(scope="module")
def image():
    blocks = np.random.default_rng(5).integers(0, 256, (5, 7, 3), np.uint8)
    return np.kron(blocks, np.ones((9, 11, 1), np.uint8))  # 45 x 77


class Crowded(FakeSam):
    """A device with room for three points at a time."""

    def decoder_tokens(self, embedding, points_xy):
        tried.append(len(points_xy))
        if len(points_xy) > 3:
            raise torch.OutOfMemoryError("no room")
        return super().decoder_tokens(embedding, points_xy)


tried: list[int] = []


@pytest.mark.parametrize("read", [rows_at_points, features_at_points])
def test_a_full_device_halves_the_batch_for_this_image_and_the_next(read, image):
    sam, batch = Crowded(), BatchSize(16)
    embedding = sam.embed([image])[0]
    points = np.random.default_rng(2).uniform(0, 45, (8, 2)).astype(np.float32)
    expected = read(FakeSam(), embedding, points)
    tried.clear()
    torch.testing.assert_close(read(sam, embedding, points, batch=batch), expected)
    assert tried == [8, 8, 4, 2, 2, 2, 2]  # batches of 16, 8, 4 and then 2
    tried.clear()
    read(sam, embedding, points, batch=batch)
    assert tried == [2, 2, 2, 2]
    tried.clear()
    read(sam, embedding, points)
    assert tried[0] == 8


def literal_row(backend, embedding, x, y):
    """One row, element by element, from a hook on the stock decoder's transformer."""
    model, (height, width) = backend.model, embedding.size_hw
    seen = []
    hook = model.sam_mask_decoder.transformer.register_forward_hook(lambda _m, _i, output: seen.append(output[1]))
    size = model.image_size
    # Stock coordinates are indices of input pixels; the encoder adds the half.
    point = torch.tensor([[[x / width * size - 0.5, y / height * size - 0.5]]])
    with torch.no_grad():
        sparse, dense = model.sam_prompt_encoder(points=(point, torch.tensor([[1]])), boxes=None, masks=None)
        model.sam_mask_decoder(
            image_embeddings=embedding.tokens,
            image_pe=model.sam_prompt_encoder.get_dense_pe(),
            sparse_prompt_embeddings=sparse,
            dense_prompt_embeddings=dense,
            multimask_output=False,
            repeat_image=False,
            high_res_features=list(embedding.high_resolution),
        )
    hook.remove()
    tokens = seen[0][0].double().numpy()  # [gh * gw, C]
    gh, gw = backend.grid_hw
    own = tokens[gw * math.floor(y * gh / height) + math.floor(x * gw / width)]
    row = np.empty((gh, gw))
    for i in range(gh):
        for j in range(gw):
            other = tokens[gw * i + j]
            row[i, j] = own @ other / math.sqrt(own @ own) / math.sqrt(other @ other)
    return row


def test_rows_equal_a_literal_loop_on_the_stock_decoder(backend, image):
    embedding = backend.embed([image])[0]
    points = np.array([[0.5, 0.5], [76.5, 44.5], [38.5, 20.5], [10.5, 40.5], [76.9, 0.1]], np.float32)
    kinds = np.array([0, 0, 1, 1, 1], np.uint8)
    targets = similarity_targets(backend, embedding, points, kinds, prompts_per_batch=2)
    assert targets.similarity.dtype == np.float32
    assert np.array_equal(targets.points_xy, points)
    assert np.array_equal(targets.point_kind, kinds)
    expected = np.stack([literal_row(backend, embedding, float(x), float(y)) for x, y in points])
    assert np.abs(targets.similarity - expected).max() < 2e-5
    assert expected.std() > 0.03, "a flat map would prove nothing"


def test_each_row_comes_from_its_own_map(backend, image):
    """Reading the rows of all points from the first point's map gives something else."""
    embedding = backend.embed([image])[0]
    points = np.array([[5.5, 5.5], [70.5, 40.5]], np.float32)
    own = similarity_targets(backend, embedding, points, np.zeros(2, np.uint8)).similarity
    tokens = backend.decoder_tokens(embedding, torch.from_numpy(points))
    cells = cells_of_points(points, embedding.size_hw, backend.grid_hw)
    first = torch.nn.functional.normalize(tokens[0], dim=0)
    shared = torch.einsum("c,chw->hw", first[:, cells[1, 0], cells[1, 1]], first).numpy()
    assert np.abs(own[1] - shared).max() > 1e-4


def test_a_row_is_one_at_its_own_cell_also_after_quantisation(backend, image):
    embedding = backend.embed([image])[0]
    points, kinds = sample_target_points(
        None, image.shape[:2], num_inside=0, num_uniform=40, rng=np.random.default_rng(0)
    )
    targets = similarity_targets(backend, embedding, points, kinds)
    rows, columns = cells_of_points(points, image.shape[:2], backend.grid_hw).T
    at_own = targets.similarity[np.arange(40), rows, columns]
    assert np.allclose(at_own, 1, atol=1e-5)
    stored = dequantise(quantise(targets.similarity))
    assert np.all(stored[np.arange(40), rows, columns] >= 1 - MAX_QUANTISATION_ERROR)
    assert np.abs(targets.similarity).max() <= 1


def test_rows_do_not_depend_on_the_batch_size(backend, image):
    embedding = backend.embed([image])[0]
    points = np.random.default_rng(1).uniform(0, 45, (7, 2)).astype(np.float32)
    one = similarity_targets(backend, embedding, points, np.ones(7, np.uint8), prompts_per_batch=1)
    all_at_once = similarity_targets(backend, embedding, points, np.ones(7, np.uint8), prompts_per_batch=64)
    assert np.abs(one.similarity - all_at_once.similarity).max() < 1e-5


def test_rows_of_a_known_map():
    """On the fake the features are known: two flat halves, and the prompt's own half is marked."""
    image = np.zeros((16, 16, 3), np.uint8)
    image[:, 8:] = 255
    sam = FakeSam(grid_hw=(4, 4))
    targets = similarity_targets(sam, sam.embed([image])[0], np.array([[1.5, 1.5]], np.float32), np.zeros(1, np.uint8))
    # Left cells: colour 0, covered 1, constant 0.5. Right cells: colour 1 three times, covered 0, constant 0.5.
    across = 0.25 / math.sqrt(1.25) / math.sqrt(3.25)
    assert np.allclose(targets.similarity[0], np.tile([1, 1, across, across], (4, 1)), atol=1e-6)


@pytest.mark.parametrize(
    ("point", "cell"),
    [
        ((0, 0), (0, 0)),
        ((639.5, 479.5), (63, 63)),
        ((640, 480), (63, 63)),  # the far edge belongs to the last cell
        ((10, 7.5), (1, 1)),  # exactly on the boundary: floor
        ((9.99, 7.49), (0, 0)),
        ((320.5, 100.5), (13, 32)),  # 100.5 * 64 / 480 = 13.4; 320.5 * 64 / 640 = 32.05
    ],
)
def test_cells_in_a_480_by_640_image(point, cell):
    assert cells_of_points(np.array([point], np.float32), (480, 640), (64, 64)).tolist() == [list(cell)]


@pytest.mark.parametrize("point", [(-0.1, 3), (3, -1), (9, 3), (3, 7), (math.nan, 3), (math.inf, 3)])
def test_points_outside_the_image_are_refused(point):
    with pytest.raises(InputError, match="outside"):
        cells_of_points(np.array([[1, 1], point], np.float32), (6, 8), (4, 4))


def test_sampled_points_are_half_inside_without_repetition():
    inside = np.zeros((30, 50), bool)
    inside[4:12, 10:40] = True
    points, kinds = sample_target_points(inside, (30, 50), num_inside=100, num_uniform=50, rng=np.random.default_rng(7))
    assert points.shape == (150, 2)
    assert points.dtype == np.float32
    assert kinds.tolist() == [0] * 100 + [1] * 50
    assert np.all(points % 1 == 0.5), "pixel centres"
    columns, rows = np.floor(points).astype(int).T
    assert inside[rows[:100], columns[:100]].all()
    assert len({tuple(p) for p in points[:100].tolist()}) == 100
    assert rows.min() >= 0
    assert rows.max() < 30
    assert columns.min() >= 0
    assert columns.max() < 50
    assert not inside[rows[100:], columns[100:]].all()


def test_inside_points_are_uniform_over_pixels_not_over_instances():
    inside = np.zeros((20, 100), bool)
    inside[:, :10] = True  # 200 pixels
    inside[:5, 60:100] = True  # 200 pixels
    inside[15:, 60:100] = True  # 200 pixels
    rng = np.random.default_rng(0)
    left = np.concatenate(
        [
            sample_target_points(inside, (20, 100), num_inside=6, num_uniform=0, rng=rng)[0][:, 0] < 10
            for _ in range(500)
        ]
    ).mean()
    assert abs(left - 1 / 3) < 0.03  # 3.5 standard deviations of 3000 draws


def test_few_inside_pixels_are_all_taken_and_the_rest_is_uniform():
    inside = np.zeros((6, 8), bool)
    inside[2, 3] = inside[5, 7] = True
    points, kinds = sample_target_points(inside, (6, 8), num_inside=5, num_uniform=4, rng=np.random.default_rng(0))
    assert kinds.tolist() == [0, 0] + [1] * 7
    assert sorted(points[:2].tolist()) == [[3.5, 2.5], [7.5, 5.5]]


@pytest.mark.parametrize("inside", [None, np.zeros((6, 8), bool)], ids=["unlabelled", "no instance"])
def test_without_ground_truth_all_points_are_uniform(inside):
    points, kinds = sample_target_points(inside, (6, 8), num_inside=5, num_uniform=4, rng=np.random.default_rng(0))
    assert len(points) == 9
    assert kinds.tolist() == [1] * 9


def test_sampling_is_reproducible_and_depends_on_the_generator():
    inside = np.ones((40, 40), bool)
    draw = [
        sample_target_points(inside, (40, 40), num_inside=8, num_uniform=8, rng=np.random.default_rng(seed))[0]
        for seed in (0, 0, 1)
    ]
    assert np.array_equal(draw[0], draw[1])
    assert not np.array_equal(draw[0], draw[2])


def test_bad_sampling_requests():
    rng = np.random.default_rng(0)
    with pytest.raises(ConfigError):
        sample_target_points(None, (4, 4), num_inside=0, num_uniform=0, rng=rng)
    with pytest.raises(ConfigError):
        sample_target_points(None, (4, 4), num_inside=-1, num_uniform=3, rng=rng)
    with pytest.raises(InputError, match="size"):
        sample_target_points(np.ones((4, 5), bool), (5, 4), num_inside=1, num_uniform=1, rng=rng)
