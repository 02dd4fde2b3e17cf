"""The four prompts of the point refiner: what SAM is asked, and that everything after the asking is the same."""

from functools import partial

import numpy as np
import pytest
import torch

from pipeline.errors import ConfigError
from pipeline.refine.build import build_refiner, refuse_unknown_settings
from pipeline.refine.interface import TeacherMasks
from pipeline.refine.prompts import PROMPT_KINDS, box_corners, make_prompts, stacked_logits, stacked_points
from pipeline.sam.interface import ImageEmbedding
from tests.fakes import FakeSam

SIZE_HW = (16, 24)


class RecordingSam(FakeSam):
    """A `FakeSam` that remembers its prompts."""

    def __init__(self):
        super().__init__()
        self.asked = []

    def decode_points(self, embedding, points_xy, labels):
        self.asked.append((points_xy.clone(), labels.clone()))
        return super().decode_points(embedding, points_xy, labels)

    def decode_with_mask(self, embedding, points_xy, logits):
        self.asked.append((points_xy, logits.clone()))
        return super().decode_with_mask(embedding, points_xy, logits)


def teacher_of(masks, visible=None, confidence=0.9):
    masks = np.asarray(masks, dtype=bool)
    visible = np.ones(masks.shape[1:], dtype=bool) if visible is None else visible
    probabilities = np.where(masks & visible, confidence, 0.0).astype(np.float32)
    return TeacherMasks(probabilities, visible, np.arange(len(masks)), np.ones(len(masks), dtype=np.float32))


def two_objects():
    """An image with two squares, and teacher masks that are only a part of each, its centre included."""
    image = np.zeros((*SIZE_HW, 3), dtype=np.uint8)
    truth = np.zeros((2, *SIZE_HW), dtype=bool)
    truth[0, 2:10, 2:10] = truth[1, 4:14, 14:22] = True
    image[truth[0]], image[truth[1]] = [250, 0, 0], [0, 250, 0]
    parts = np.zeros_like(truth)
    parts[0, 3:8, 3:8] = parts[1, 6:11, 15:20] = True
    return image, truth, parts


def refine(teacher, image, sam=None, **settings):
    refiner = build_refiner("points", sam=sam or FakeSam(), **settings)
    return refiner.refine(5, image, teacher, np.random.default_rng(0))


def made(teacher, kind, num_points=3):
    rng = np.random.default_rng(0)
    return make_prompts(teacher, kind, num_points=num_points, sampling="sigmoid_in_mask", rng=rng)


@pytest.mark.parametrize("num_points", [1, 9])
def test_clicks_lie_in_the_mask_wherever_the_view_begins(num_points):
    visible = np.zeros(SIZE_HW, dtype=bool)
    visible[4:15, 9:23] = True
    mask = np.zeros(SIZE_HW, dtype=bool)
    mask[6:9, 17:20] = True
    (prompt,) = made(teacher_of([mask], visible), "points", num_points=num_points)
    assert len(prompt.points_xy) == num_points
    for x, y in prompt.points_xy:
        assert mask[int(y), int(x)]
        assert (x % 1, y % 1) == (0.5, 0.5)


@pytest.mark.parametrize("kind", PROMPT_KINDS)
class TestEveryPrompt:
    def test_completes_the_objects_in_order(self, kind):
        image, truth, parts = two_objects()
        refined = refine(teacher_of(parts[::-1]), image, prompt=kind)
        np.testing.assert_array_equal(refined.masks, truth[::-1])
        assert refined.outcomes == ["matched", "matched"]

    def test_passes_both_gates_or_leaves_the_teacher_mask(self, kind):
        image, truth, parts = two_objects()
        teacher = teacher_of(parts)

        def outcomes(**settings):
            refined = refine(teacher, image, prompt=kind, **settings)
            for index, outcome in enumerate(refined.outcomes):
                expected = truth[index] if outcome == "matched" else parts[index]
                np.testing.assert_array_equal(refined.masks[index], expected)
            return refined.outcomes

        sure_of = 0.97 if kind == "mask" else 0.95
        assert (parts.sum((1, 2)).tolist(), truth.sum((1, 2)).tolist()) == ([25, 25], [64, 80])
        assert outcomes(min_iou_with_teacher=25 / 80) == ["matched", "matched"]
        assert outcomes(min_iou_with_teacher=25 / 64) == ["matched", "kept"]
        assert outcomes(min_iou_with_teacher=0.4) == ["kept", "kept"]
        assert outcomes(min_predicted_iou=sure_of - 0.001) == ["matched", "matched"]
        assert outcomes(min_predicted_iou=sure_of + 0.001) == ["kept", "kept"]

    def test_the_answer_is_clipped_to_what_the_view_showed(self, kind):
        image, truth, parts = two_objects()
        visible = np.zeros(SIZE_HW, dtype=bool)
        visible[:9] = True
        refined = refine(teacher_of(parts, visible), image, prompt=kind)
        np.testing.assert_array_equal(refined.masks, truth & visible)

    def test_an_empty_mask_is_not_asked_about(self, kind):
        image, truth, parts = two_objects()
        sam = RecordingSam()
        refined = refine(teacher_of([np.zeros(SIZE_HW), parts[1], np.zeros(SIZE_HW)]), image, sam, prompt=kind)
        assert refined.outcomes == ["empty", "matched", "empty"]
        np.testing.assert_array_equal(refined.masks[1], truth[1])
        ((_, last),) = sam.asked
        assert len(last) == 1
        nothing = RecordingSam()
        assert refine(teacher_of(np.zeros((2, *SIZE_HW))), image, nothing, prompt=kind).outcomes == ["empty", "empty"]
        assert (nothing.asked, nothing.embedded) == ([], [])

    def test_batches_change_nothing(self, kind):
        image, _, parts = two_objects()
        teacher, sam = teacher_of(np.concatenate([parts, parts, parts[:1]])), RecordingSam()
        batched = refine(teacher, image, sam, prompt=kind, prompts_per_batch=2)
        assert [len(last) for _, last in sam.asked] == [2, 2, 1]
        np.testing.assert_array_equal(batched.masks, refine(teacher, image, prompt=kind).masks)


def test_a_box_lies_on_the_outer_edges_of_the_mask():
    mask = np.zeros(SIZE_HW, dtype=bool)
    mask[3, 5] = mask[7, 2] = mask[4, 11] = True
    np.testing.assert_array_equal(box_corners(mask), [[2, 3], [12, 8]])
    pixel = np.zeros(SIZE_HW, dtype=bool)
    pixel[-1, -1] = True
    np.testing.assert_array_equal(box_corners(pixel), [[23, 15], [24, 16]])


def test_a_box_is_asked_as_two_corners_and_draws_nothing():
    image, _, parts = two_objects()
    sam = RecordingSam()
    refine(teacher_of(parts), image, sam, prompt="box")
    ((points_xy, labels),) = sam.asked
    np.testing.assert_array_equal(points_xy, [[[3, 3], [8, 8]], [[15, 6], [20, 11]]])
    np.testing.assert_array_equal(labels, [[2, 3], [2, 3]])
    rng = np.random.default_rng(0)
    for kind in ("box", "mask"):
        make_prompts(teacher_of(parts), kind, num_points=3, sampling="softmax", rng=rng)
    assert rng.random() == np.random.default_rng(0).random()


def test_a_box_is_that_of_the_visible_part_of_the_mask():
    _, _, parts = two_objects()
    visible = np.zeros(SIZE_HW, dtype=bool)
    visible[:8, 5:17] = True
    first, second = made(teacher_of(parts, visible), "box")
    np.testing.assert_array_equal(first.points_xy, [[5, 3], [8, 8]])
    np.testing.assert_array_equal(second.points_xy, [[15, 6], [17, 8]])


def test_a_mask_is_asked_as_the_teachers_logits_without_a_click():
    image, _, parts = two_objects()
    visible = np.ones(SIZE_HW, dtype=bool)
    visible[:, 23:] = False
    teacher = teacher_of(parts, visible, confidence=0.8)
    teacher.probabilities[0, 0, 0] = 0.5
    sam = RecordingSam()
    refine(teacher, image, sam, prompt="mask")
    ((clicks, logits),) = sam.asked
    assert clicks is None
    assert logits.shape == (2, *SIZE_HW)
    assert logits[0, 0, 0] == 0
    np.testing.assert_allclose(logits[torch.from_numpy(parts)], np.log(4), rtol=1e-5)
    assert torch.isneginf(logits[:, :, 23:]).all()


def test_stacks_pad_points_and_keep_the_order():
    _, _, parts = two_objects()
    parts[0] = False
    parts[0, 4, 4] = True
    prompts = made(teacher_of(parts), "points", num_points=2)
    points_xy, labels = stacked_points(prompts)
    assert points_xy.shape == (2, 2, 2)
    assert labels.tolist() == [[1, -1], [1, 1]]
    assert points_xy[0, 0].tolist() == [4.5, 4.5]
    assert len(stacked_logits(made(teacher_of(parts), "mask"))) == 2


def test_a_mask_gets_one_answer_and_its_own_predicted_iou():
    class OneAnswer:
        name, sha256, grid_hw, input_hw = "one", "0" * 64, (4, 4), (16, 16)

        def embed(self, images):
            return [ImageEmbedding(torch.zeros(1), (), image.shape[:2]) for image in images]

        def decode_with_mask(self, embedding, points_xy, logits):
            return torch.full((len(logits), 4, 4), 1.0), torch.tensor([0.3, 0.8])

        def upsample(self, logits, size_hw):
            return torch.nn.functional.interpolate(logits[:, None], size_hw)[:, 0]

    image, _, parts = two_objects()
    refined = refine(teacher_of(parts), image, OneAnswer(), prompt="mask", min_predicted_iou=0.5)
    assert refined.outcomes == ["kept", "matched"]
    assert refined.masks[1].all()


def test_an_unknown_prompt_is_refused_also_before_there_is_a_sam():
    for refuse in (partial(build_refiner, sam=FakeSam()), refuse_unknown_settings):
        with pytest.raises(ConfigError, match=r"prompt[\s\S]*points \| box \| mask[\s\S]*boxes"):
            refuse("points", prompt="boxes")


@pytest.mark.parametrize("name", ["points", "iom", "cpi", "cpi_u", "cpi_o"])
def test_values_are_checked_before_there_is_a_library(name):
    refuse_unknown_settings(name, min_iou_with_teacher=0.5)
    with pytest.raises(ConfigError, match="min_iou_with_teacher"):
        refuse_unknown_settings(name, min_iou_with_teacher=1.5)
