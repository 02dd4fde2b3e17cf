"""The point refiner against a SAM whose answers are known: which candidate, what is enlarged, what is refused."""

import numpy as np
import pytest
import torch

from pipeline.errors import ConfigError, InputError
from pipeline.refine.interface import TeacherMasks
from pipeline.refine.point_prompt import PointPromptRefiner, PointSettings
from pipeline.sam.interface import ImageEmbedding, PointMasks
from tests.fakes import FakeSam

SIZE_HW = (16, 24)


class ScriptedSam:
    """Answers every prompt from a list of [3, h, w] logits and [3] predicted IoUs; records what it was asked."""

    name, sha256, grid_hw, input_hw = "scripted", "0" * 64, (4, 4), (16, 16)

    def __init__(self, logits, predicted_iou):
        self.logits, self.predicted_iou = logits, predicted_iou
        self.embedded, self.prompts, self.upsampled = 0, [], []

    def embed(self, images):
        self.embedded += len(images)
        return [ImageEmbedding(torch.zeros(1), (), image.shape[:2]) for image in images]

    def decode_points(self, embedding, points_xy, labels):
        first = sum(len(prompt) for prompt, _ in self.prompts)
        self.prompts.append((points_xy.clone(), labels.clone()))
        chosen = slice(first, first + len(points_xy))
        return PointMasks(torch.tensor(self.logits[chosen]), torch.tensor(self.predicted_iou[chosen]))

    def upsample(self, logits, size_hw):
        self.upsampled.append(tuple(logits.shape))
        return torch.nn.functional.interpolate(logits[:, None], size_hw, mode="nearest")[:, 0]


def teacher_of(masks, visible=None):
    masks = np.asarray(masks, dtype=bool)
    visible = np.ones(masks.shape[1:], dtype=bool) if visible is None else visible
    probabilities = np.where(masks & visible, 0.9, 0.0).astype(np.float32)
    return TeacherMasks(probabilities, visible, np.arange(len(masks)), np.ones(len(masks), dtype=np.float32))


def two_objects():
    """An image with two squares, and teacher masks that hit only a corner of each."""
    image = np.zeros((*SIZE_HW, 3), dtype=np.uint8)
    truth = np.zeros((2, *SIZE_HW), dtype=bool)
    truth[0, 2:10, 2:10] = truth[1, 4:14, 14:22] = True
    image[truth[0]], image[truth[1]] = [250, 0, 0], [0, 250, 0]
    seeds = np.zeros_like(truth)
    seeds[0, 2:5, 2:5] = seeds[1, 10:14, 18:22] = True
    return image, truth, seeds


def refine(refiner, teacher, image=None, seed=0):
    return refiner.refine(5, image, teacher, np.random.default_rng(seed))


def scripted(best_of_three, num_prompts=1):
    """Logits at half size whose candidate k is foreground in quarter k of the columns."""
    logits = np.full((num_prompts, 3, 8, 12), -4.0, dtype=np.float32)
    for candidate in range(3):
        logits[:, candidate, :, candidate * 3 : candidate * 3 + 3] = 4.0
    ious = np.full((num_prompts, 3), 0.3, dtype=np.float32)
    ious[:, best_of_three] = 0.9
    return ScriptedSam(logits, ious)


def test_whole_objects_from_corners_in_order():
    image, truth, seeds = two_objects()
    refined = refine(PointPromptRefiner(FakeSam()), teacher_of(seeds[::-1]), image)
    np.testing.assert_array_equal(refined.masks, truth[::-1])
    assert refined.outcomes == ["matched", "matched"]
    assert refined.weights == [None, None]


def test_prompts_are_k_positive_points_inside_each_mask():
    _, _, seeds = two_objects()
    sam = scripted(0, num_prompts=2)
    refine(PointPromptRefiner(sam, PointSettings(num_points=4)), teacher_of(seeds), np.zeros((*SIZE_HW, 3), np.uint8))
    ((points_xy, labels),) = sam.prompts
    assert points_xy.shape == (2, 4, 2)
    assert (labels == 1).all()
    for seed_mask, prompt in zip(seeds, points_xy.numpy(), strict=True):
        assert (prompt % 1 == 0.5).all()
        assert seed_mask[prompt[:, 1].astype(int), prompt[:, 0].astype(int)].all()
        assert len(np.unique(prompt, axis=0)) == 4


@pytest.mark.parametrize("best", [0, 1, 2])
def test_highest_predicted_iou_wins_and_only_it_is_enlarged(best):
    _, _, seeds = two_objects()
    sam = scripted(best, num_prompts=2)
    refined = refine(PointPromptRefiner(sam), teacher_of(seeds), np.zeros((*SIZE_HW, 3), np.uint8))
    expected = np.zeros(SIZE_HW, dtype=bool)
    expected[:, best * 6 : best * 6 + 6] = True
    for mask in refined.masks:
        np.testing.assert_array_equal(mask, expected)
    assert sam.upsampled == [(2, 8, 12)]
    assert sam.embedded == 1


def test_prompts_are_batched():
    _, _, seeds = two_objects()
    masks = np.concatenate([seeds, seeds, seeds[:1]])
    sam = scripted(1, num_prompts=5)
    refined = refine(
        PointPromptRefiner(sam, PointSettings(prompts_per_batch=2)),
        teacher_of(masks),
        np.zeros((*SIZE_HW, 3), np.uint8),
    )
    assert [len(points) for points, _ in sam.prompts] == [2, 2, 1]
    assert refined.outcomes == ["matched"] * 5
    whole = scripted(1, num_prompts=5)
    again = refine(PointPromptRefiner(whole), teacher_of(masks), np.zeros((*SIZE_HW, 3), np.uint8))
    np.testing.assert_array_equal(refined.masks, again.masks)


def test_prompts_that_a_gpu_has_no_room_for_are_asked_in_smaller_batches(monkeypatch):
    image, _, seeds = two_objects()
    teacher, asked = teacher_of(np.concatenate([seeds, seeds])), []

    class Full(FakeSam):
        def decode_points(self, embedding, points_xy, labels):
            asked.append(len(points_xy))
            if len(points_xy) > 1:
                raise torch.OutOfMemoryError("no room")
            return super().decode_points(embedding, points_xy, labels)

    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: None)
    expected = refine(PointPromptRefiner(FakeSam()), teacher, image)
    found = refine(PointPromptRefiner(Full()), teacher, image)
    assert np.array_equal(found.masks, expected.masks)
    assert found.outcomes == expected.outcomes == ["matched"] * 4
    assert asked[-4:] == [1, 1, 1, 1]
    assert max(asked) > 1


def test_few_pixels_are_padded_and_empty_masks_not_prompted():
    _, _, seeds = two_objects()
    masks = np.concatenate([np.zeros_like(seeds[:1]), seeds])
    masks[2] = False
    masks[2, 12, 20] = True
    sam = scripted(0, num_prompts=2)
    refined = refine(PointPromptRefiner(sam), teacher_of(masks), np.zeros((*SIZE_HW, 3), np.uint8))
    assert refined.outcomes == ["empty", "matched", "matched"]
    ((points_xy, labels),) = sam.prompts
    np.testing.assert_array_equal(labels, [[1, 1, 1], [1, -1, -1]])
    np.testing.assert_array_equal(points_xy[1, 0], [20.5, 12.5])


def test_empty_answer_keeps_the_teacher_mask():
    _, _, seeds = two_objects()
    sam = ScriptedSam(np.full((2, 3, 8, 12), -1.0, dtype=np.float32), np.ones((2, 3), dtype=np.float32))
    settings = PointSettings(pixel_weights="unmatched")
    refined = refine(PointPromptRefiner(sam, settings), teacher_of(seeds), np.zeros((*SIZE_HW, 3), np.uint8))
    assert refined.outcomes == ["kept", "kept"]
    np.testing.assert_array_equal(refined.masks, seeds)
    assert all(weights is not None for weights in refined.weights)


def test_answer_that_is_empty_only_in_the_visible_region_keeps_the_teacher_mask():
    visible = np.zeros(SIZE_HW, dtype=bool)
    visible[:, 12:] = True
    teacher = teacher_of(np.ones((1, *SIZE_HW)), visible)
    refined = refine(PointPromptRefiner(scripted(0)), teacher, np.zeros((*SIZE_HW, 3), np.uint8))
    assert refined.outcomes == ["kept"]
    np.testing.assert_array_equal(refined.masks[0], visible)


def test_softmax_may_prompt_for_a_mask_that_is_empty():
    """The released rule draws from the whole map, so an instance below one half everywhere can still be refined."""
    teacher = teacher_of(np.zeros((1, *SIZE_HW)))
    teacher.probabilities[0, 3, 4] = 0.4
    image = np.zeros((*SIZE_HW, 3), np.uint8)
    assert refine(PointPromptRefiner(scripted(0)), teacher, image).outcomes == ["empty"]
    answered = refine(PointPromptRefiner(scripted(0), PointSettings(sampling="softmax")), teacher, image)
    assert answered.outcomes == ["matched"]


def test_gates_are_off_by_default_and_refuse_when_set():
    image, truth, seeds = two_objects()
    teacher = teacher_of(seeds)

    def outcomes(**settings):
        return refine(PointPromptRefiner(FakeSam(), PointSettings(**settings)), teacher, image).outcomes

    assert (seeds & truth).sum((1, 2)).tolist() == [9, 16]  # IoU with the answers: 9 / 64 and 16 / 80
    assert outcomes(min_iou_with_teacher=9 / 64) == ["matched", "matched"]
    assert outcomes(min_iou_with_teacher=0.15) == ["kept", "matched"]
    assert outcomes(min_predicted_iou=0.94) == ["matched", "matched"]
    assert outcomes(min_predicted_iou=0.96) == ["kept", "kept"]


def test_what_sam_does_not_bear_out_is_dropped_if_asked():
    image, _, seeds = two_objects()
    seeds = np.concatenate([seeds, np.zeros((1, *SIZE_HW), bool)])
    settings = PointSettings(min_iou_with_teacher=0.15, unmatched="drop")
    refined = refine(PointPromptRefiner(FakeSam(), settings), teacher_of(seeds), image)
    assert refined.outcomes == ["dropped", "matched", "empty"]
    assert not refined.masks[0].any()
    assert refined.masks[1].any()
    with pytest.raises(ConfigError, match="unmatched"):
        PointSettings(unmatched="leave")


def test_embedding_cache_replaces_the_image():
    image, truth, seeds = two_objects()
    sam = FakeSam()
    asked = []
    embedding = sam.embed([image])[0]

    def cache(image_id, given):
        asked.append((image_id, given))
        return embedding

    refined = refine(PointPromptRefiner(sam, embed=cache), teacher_of(seeds))
    np.testing.assert_array_equal(refined.masks, truth)
    assert asked == [(5, None)]
    assert len(sam.embedded) == 1
    refine(PointPromptRefiner(sam, embed=cache), teacher_of(np.zeros((1, *SIZE_HW))))
    assert len(asked) == 1  # nothing to prompt, nothing embedded


def test_neither_image_nor_cache_is_an_error():
    _, _, seeds = two_objects()
    with pytest.raises(InputError, match="cache"):
        refine(PointPromptRefiner(FakeSam()), teacher_of(seeds))
