"""Transforms: what a crop left over, SAM's points and rows in the canonical frame, hidden ground truth, packing."""

import pipeline.models.mmcv_ops  # noqa: F401  isort: skip  (before mmdet)
import numpy as np
import pytest
import torch
from mmcv.transforms import RandomResize
from mmdet.datasets.transforms import RandomCrop, RandomFlip, Resize
from mmdet.structures.bbox import HorizontalBoxes
from mmdet.structures.mask import BitmapMasks
from mmengine.dataset import Compose
from mmengine.registry import init_default_scope
from toy_stores import IMAGES, LAYOUT, fill, make_targets

from data_schemas.similarity import INSIDE_GROUND_TRUTH, MAX_QUANTISATION_ERROR, UNIFORM, SimilarityTargets
from pipeline.data.instance_dataset import seeded
from pipeline.data.photometric import strong_view
from pipeline.data.transforms import DropSmallInstances, HideGroundTruth, LoadSimilarityTargets, PackSample
from pipeline.errors import ConfigError


def record(masks, *, image=None, image_id=IMAGES[0].image_id):
    height, width = masks.shape[1:]
    boxes = []
    for mask in masks:
        rows, columns = np.nonzero(mask)
        boxes.append((columns.min(), rows.min(), columns.max() + 1, rows.max() + 1) if len(rows) else (0, 0, 0, 0))
    return {
        "img": np.zeros((height, width, 3), np.uint8) if image is None else image,
        "img_id": image_id,
        "img_path": "somewhere.png",
        "img_shape": (height, width),
        "ori_shape": (height, width),
        "homography_matrix": np.eye(3, dtype=np.float32),
        "gt_masks": BitmapMasks(masks.astype(np.uint8), height, width),
        "gt_bboxes": HorizontalBoxes(np.array(boxes, np.float32).reshape(-1, 4)),
        "gt_bboxes_labels": np.arange(len(masks)),
        "gt_ignore_flags": np.zeros(len(masks), bool),
    }


def squares(*sides, size_hw=(40, 33)):
    masks = np.zeros((len(sides), *size_hw), bool)
    for mask, side in zip(masks, sides, strict=True):
        mask[2 : 2 + side, 3 : 3 + side] = True
    return masks


def test_small_instances_go_with_everything_they_have():
    results = DropSmallInstances(min_pixels=16).transform(record(squares(5, 3, 4, 0)))
    assert results["gt_masks"].masks.sum((1, 2)).tolist() == [25, 16]
    assert results["gt_bboxes_labels"].tolist() == [0, 2]
    assert results["gt_bboxes"].numpy().tolist() == [[3, 2, 8, 7], [3, 2, 7, 6]]
    assert len(results["gt_ignore_flags"]) == 2


@pytest.mark.parametrize("sides", [(), (3,), (0, 3)])
def test_a_sample_without_a_visible_instance_is_given_up_where_that_is_wanted(sides):
    assert DropSmallInstances(min_pixels=16, keep_empty=False).transform(record(squares(*sides))) is None
    kept = DropSmallInstances(min_pixels=16).transform(record(squares(*sides)))
    assert kept["gt_masks"].masks.shape == (0, 40, 33)
    assert len(kept["gt_bboxes"]) == len(kept["gt_bboxes_labels"]) == len(kept["gt_ignore_flags"]) == 0


def test_one_pixel_is_an_instance_unless_told_otherwise():
    results = DropSmallInstances().transform(record(squares(5, 1, 0)))
    assert results["gt_masks"].masks.sum((1, 2)).tolist() == [25, 1]


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    root = tmp_path_factory.mktemp("store") / "store"
    fill(root, kind="similarity")
    return root


def drawn(store, seed=0, **counts):
    transform = LoadSimilarityTargets(str(store), **counts)
    image = IMAGES[0]
    with seeded([seed]):
        results = transform.transform(record(squares(5, size_hw=(image.height, image.width))))
    return results, make_targets(image)


def rows_of(results, targets):
    """Which stored rows were taken, found by their content."""
    gaps = np.abs(results["similarity_rows"][:, None] - targets.similarity[None]).max((2, 3))
    assert (gaps.min(1) <= MAX_QUANTISATION_ERROR + 1e-6).all()
    return gaps.argmin(1)


def test_rows_are_those_of_the_points_and_cells_those_under_them(store):
    results, targets = drawn(store, num_inside=3, num_uniform=2)
    rows = rows_of(results, targets)
    assert len(set(rows.tolist())) == 5
    height, width = IMAGES[0].height, IMAGES[0].width
    for row, cell in zip(rows, results["similarity_cells"], strict=True):
        x, y = targets.points_xy[row]
        assert cell == int(y * LAYOUT.grid_hw[0] / height) * LAYOUT.grid_hw[1] + int(x * LAYOUT.grid_hw[1] / width)


@pytest.mark.parametrize("enlarged", [0.5, 2.0])
def test_cells_are_the_images_whatever_the_size_of_the_view(store, enlarged):
    """The released code takes them on the padded canvas."""
    height, width = IMAGES[0].height, IMAGES[0].width
    with seeded([0]):
        plain = LoadSimilarityTargets(str(store), 3, 2).transform(record(squares(5, size_hw=(height, width))))
    results = record(squares(5, size_hw=(height, width)))
    view_hw = round(height * enlarged), round(width * enlarged)
    results["img"], results["img_shape"] = np.zeros((*view_hw, 3), np.uint8), view_hw
    results["homography_matrix"] = np.diag([enlarged, enlarged, 1]).astype(np.float32)
    with seeded([0]):
        scaled = LoadSimilarityTargets(str(store), 3, 2).transform(results)
    assert plain["similarity_cells"].tolist() == scaled["similarity_cells"].tolist()
    assert np.array_equal(plain["similarity_points"], scaled["similarity_points"])


def test_inside_and_uniform_points_come_in_the_wanted_numbers(store):
    kinds = make_targets(IMAGES[0]).point_kind
    for seed in range(5):
        results, targets = drawn(store, seed, num_inside=3, num_uniform=1)
        assert kinds[rows_of(results, targets)].tolist() == [INSIDE_GROUND_TRUTH] * 3 + [UNIFORM]


def test_draws_differ_and_repeat_with_the_seed(store):
    first = [rows_of(*drawn(store, seed, num_inside=2, num_uniform=2)).tolist() for seed in range(6)]
    again = [rows_of(*drawn(store, seed, num_inside=2, num_uniform=2)).tolist() for seed in range(6)]
    assert first == again
    assert len({tuple(rows) for rows in first}) > 1


class StoreOf:
    """A store with these points; a row holds its number."""

    def __init__(self, kinds, points_xy=None):
        self.kinds = np.array(kinds, np.uint8)
        self.points_xy = np.ones((len(kinds), 2), np.float32) if points_xy is None else points_xy
        self.layout = LAYOUT

    def points(self, image_id):
        return self.points_xy, self.kinds

    def read(self, image_id, rows):
        rows = np.asarray(rows)
        similarity = np.broadcast_to(rows[:, None, None], (len(rows), *LAYOUT.grid_hw)).astype(np.float32)
        return SimilarityTargets(self.points_xy[rows], self.kinds[rows], similarity)


def rows_drawn_from(kinds, points_xy=None, results=None, seed=0, **settings):
    transform = LoadSimilarityTargets("memory", **settings)
    transform._store = StoreOf(kinds, points_xy)
    with seeded([seed]):
        drawn = transform.transform(results or record(squares(5)))
    return drawn["similarity_rows"][:, 0, 0].astype(int)


def _right_half():
    """A view of the columns from 16.5 on of an image of 40 x 33, mirrored, and points in both halves of it."""
    results = record(squares(5))
    assert results["ori_shape"] == (40, 33)
    results["img"] = np.zeros((40, 16, 3), np.uint8)
    results["homography_matrix"] = np.array([[-1, 0, 33], [0, 1, 0], [0, 0, 1]], np.float32)
    columns = np.tile([2.0, 31.0], 8)  # the odd ones are shown
    return results, np.column_stack([columns, np.linspace(1, 39, 16)]).astype(np.float32)


def test_only_points_that_the_view_shows_are_drawn():
    kinds = [INSIDE_GROUND_TRUTH] * 8 + [UNIFORM] * 8
    for seed in range(5):
        results, points_xy = _right_half()
        rows = rows_drawn_from(kinds, points_xy, results, seed, num_inside=4, num_uniform=3)
        assert len(set(rows.tolist())) == 7
        assert (rows % 2 == 1).all()
        assert (rows[:4] < 8).all()
        assert (rows[4:] >= 8).all()


def test_a_kind_makes_up_for_the_other_and_no_point_for_one_that_is_not_shown():
    kinds = [INSIDE_GROUND_TRUTH] * 8 + [UNIFORM] * 8  # four of each are shown
    for num_inside, num_uniform, inside, uniform in ((1, 6, 3, 4), (6, 1, 4, 3), (4, 6, 4, 4), (8, 8, 4, 4)):
        results, points_xy = _right_half()
        rows = rows_drawn_from(kinds, points_xy, results, num_inside=num_inside, num_uniform=num_uniform)
        assert ((rows < 8).sum(), (rows >= 8).sum()) == (inside, uniform)
        assert len(set(rows.tolist())) == inside + uniform
        assert (rows % 2 == 1).all()


def test_a_view_that_shows_no_point_carries_none():
    kinds = [INSIDE_GROUND_TRUTH] * 8 + [UNIFORM] * 8
    results, points_xy = _right_half()
    points_xy[:, 0] = 2.0  # on the left
    assert rows_drawn_from(kinds, points_xy, results, num_inside=4, num_uniform=3).shape == (0,)
    sample = PackSample().transform(results)["data_samples"]
    assert sample.sam_targets.rows.shape == (0, *LAYOUT.grid_hw)
    assert sample.sam_targets.cells.shape == (0,)


def test_uniform_points_stand_in_where_the_ground_truth_has_too_few():
    kinds = [INSIDE_GROUND_TRUTH] * 2 + [UNIFORM] * 8
    rows = rows_drawn_from(kinds, num_inside=4, num_uniform=3)
    assert len(set(rows.tolist())) == 7
    assert set(rows[:2].tolist()) == {0, 1}
    assert (rows[2:] >= 2).all()


def test_a_store_with_too_few_points_is_refused():
    with pytest.raises(ConfigError, match="too few points"):
        rows_drawn_from([INSIDE_GROUND_TRUTH] * 8 + [UNIFORM] * 2, num_inside=4, num_uniform=3)


def test_hidden_ground_truth_leaves_nothing_for_a_loss_and_arrives_in_the_sample():
    masks = squares(5, 7)
    packed = PackSample().transform(HideGroundTruth().transform(record(masks)))
    sample = packed["data_samples"]
    assert len(sample.gt_instances) == 0
    assert "masks" not in sample.gt_instances
    assert np.array_equal(sample.hidden_truth.masks.numpy(), masks)
    assert sample.hidden_truth.labels.tolist() == [0, 1]


def test_hiding_nothing_is_legal():
    results = {key: value for key, value in record(squares(5)).items() if not key.startswith("gt_")}
    packed = PackSample().transform(HideGroundTruth().transform(results))
    assert "hidden_truth" not in packed["data_samples"]


def test_a_packed_sample_carries_pixels_geometry_and_targets(store):
    image = np.random.default_rng(0).integers(0, 256, (IMAGES[0].height, IMAGES[0].width, 3)).astype(np.uint8)
    results = record(squares(5, size_hw=image.shape[:2]), image=image)
    results = LoadSimilarityTargets(str(store), num_inside=2, num_uniform=1).transform(results)
    packed = PackSample().transform(results)
    assert torch.equal(packed["inputs"], torch.from_numpy(image).permute(2, 0, 1))
    sample = packed["data_samples"]
    assert set(sample.metainfo) == {"img_id", "img_path", "ori_shape", "img_shape", "homography_matrix"}
    assert sample.sam_targets.rows.shape == (3, *LAYOUT.grid_hw)
    assert sample.sam_targets.rows.dtype == torch.float32
    assert sample.sam_targets.cells.dtype == torch.int64
    assert len(sample.gt_instances) == 1


def test_mmdets_geometry_agrees_with_the_homography_it_leaves():
    """A mark on the canonical image lies in the view where the homography says, under resize, crop and flips."""
    init_default_scope("mmdet")
    geometry = Compose(
        [
            {"type": RandomResize, "scale": (60, 60), "ratio_range": (1.6, 2.4), "resize_type": Resize},
            {"type": RandomCrop, "crop_size": (90, 90), "crop_type": "absolute", "allow_negative_crop": True},
            {"type": RandomFlip, "prob": 0.5, "direction": "horizontal"},
            {"type": RandomFlip, "prob": 0.5, "direction": "vertical"},
        ]
    )
    seen = 0
    for seed in range(40):
        image = np.zeros((60, 50, 3), np.uint8)
        image[31:36, 17:24] = 255  # centre (20.5, 33.5)
        masks = (image[None, ..., 0] > 0).copy()
        with seeded([seed]):
            results = geometry(record(masks, image=image))
        rows, columns = np.nonzero(results["img"][..., 0] > 127)
        inside = len(rows) and rows.min() > 0 and columns.min() > 0
        height, width = results["img"].shape[:2]
        if not inside or rows.max() == height - 1 or columns.max() == width - 1:
            continue
        x, y, _ = results["homography_matrix"].astype(float) @ [20.5, 33.5, 1]
        assert (columns.mean() + 0.5, rows.mean() + 0.5) == pytest.approx((x, y), abs=0.51)
        seen += 1
    assert seen >= 12


def test_the_strong_view_changes_colours_not_geometry_and_repeats_with_the_seed():
    image = torch.zeros(3, 40, 48, dtype=torch.uint8)
    image[0, 10:20, 12:30] = 200
    image[1:, 10:20, 12:30] = 120
    views = []
    for seed in (0, 0, *range(1, 12)):
        torch.manual_seed(seed)
        views.append(strong_view(image))
    assert torch.equal(views[0], views[1])
    assert sum(not torch.equal(view, image) for view in views) > 6
    for view in views:
        assert view.dtype == torch.uint8
        assert view.shape == image.shape
        grey = view.float().mean(0)
        assert grey[12:18, 14:28].min() > grey[:4].max()  # the square is where it was
    assert torch.equal(image[0, 10:20, 12:30], torch.full((10, 18), 200, dtype=torch.uint8))


def test_the_strong_view_changes_colours_takes_them_away_and_blurs():
    """S4M's list: colours of 8 in 10 views, grey of 2 in 10, blur of 5 in 10."""
    image = torch.zeros(3, 24, 24, dtype=torch.uint8)
    image[0], image[1, :, 12:] = 220, 120  # two colours, one edge
    grey = blurred = kept = 0
    num = 200
    torch.manual_seed(0)
    for _ in range(num):
        view = strong_view(image).float()
        grey += bool((view[0] == view[1]).all() and (view[1] == view[2]).all())
        blurred += len(torch.unique(view.flatten(1).T, dim=0)) > 2
        kept += torch.equal(view, image.float())
    assert 0.1 * num < grey < 0.3 * num
    assert 0.35 * num < blurred < 0.6 * num  # the weakest blurs change no value
    assert 0.02 * num < kept < 0.2 * num
