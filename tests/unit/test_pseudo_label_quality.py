"""CA and SQ by hand and against a slow version."""

import itertools
from pathlib import Path

import numpy as np
import pytest

from pipeline.data.coco import Annotation, Category, CocoImage, load_coco, make_coco
from pipeline.errors import AnnotationError
from pipeline.evaluation.pseudo_label_quality import (
    PseudoLabelQuality,
    match_by_iou,
    pairwise_mask_iou,
    pseudo_label_quality,
    quality_of_image,
)
from pipeline.masks import rle

SHARED = Path(__file__).parents[2].parent / "shared" / "data"
SIZE = 40


def strip(start, stop):
    mask = np.zeros((SIZE, SIZE), bool)
    mask[5:15, start:stop] = True
    return mask


def annotation(number, image_id, category_id, mask, *, crowd=False):
    code = rle.encode(mask)
    return Annotation(number, image_id, category_id, code, float(mask.sum()), rle.bbox_xywh(code), crowd)


def result(image_id, category_id, mask):
    return {"image_id": image_id, "category_id": category_id, "segmentation": rle.encode(mask), "score": 1.0}


def ground_truth():
    images = [CocoImage(n, f"{n}.png", SIZE, SIZE) for n in (1, 2)]
    annotations = [
        annotation(1, 1, 7, strip(0, 10)),
        annotation(2, 1, 8, strip(20, 30)),
        annotation(3, 2, 7, strip(0, 20), crowd=True),
    ]
    return make_coco(Path("."), images, [Category(7, "a"), Category(8, "b")], annotations)


def test_by_hand():
    results = [
        result(1, 7, strip(0, 8)),  # IoU 0.8, right class
        result(1, 7, strip(21, 30)),  # IoU 0.9, wrong class
        result(1, 8, strip(30, 40)),  # nothing there
        result(2, 7, strip(0, 20)),  # on a crowd: no pair
    ]
    quality = pseudo_label_quality(ground_truth(), results)
    assert quality.class_accuracy == 0.5
    assert quality.segmentation_quality == pytest.approx(0.85)
    assert (quality.num_pseudo_labels, quality.num_ground_truth, quality.num_matched) == (4, 2, 2)
    assert (quality.matched_share, quality.found_share) == (0.5, 1.0)


def test_exactly_one_half_is_no_match():
    quality = pseudo_label_quality(ground_truth(), [result(1, 7, strip(0, 5))])  # IoU 5 / 10
    assert quality.num_matched == 0
    assert quality.class_accuracy is None
    assert quality.segmentation_quality is None
    assert pseudo_label_quality(ground_truth(), [result(1, 7, strip(0, 6))]).num_matched == 1


def test_no_pseudo_labels():
    quality = pseudo_label_quality(ground_truth(), [])
    assert (quality.num_pseudo_labels, quality.num_ground_truth) == (0, 2)
    assert (quality.matched_share, quality.found_share) == (None, 0.0)


def test_duplicates_match_once_and_the_best_wins():
    results = [result(1, 8, strip(0, 7)), result(1, 7, strip(0, 9))]
    quality = pseudo_label_quality(ground_truth(), results)
    assert (quality.num_matched, quality.class_accuracy) == (1, 1.0)
    assert quality.segmentation_quality == pytest.approx(0.9)


def slow_match(iou, threshold):
    """Remove the best remaining pair, again and again."""
    left = {(i, j): iou[i, j] for i, j in itertools.product(*map(range, iou.shape)) if iou[i, j] > threshold}
    pairs = []
    while left:
        best = min(left, key=lambda pair: (-left[pair], pair))
        pairs.append(best)
        left = {p: v for p, v in left.items() if p[0] != best[0] and p[1] != best[1]}
    return pairs


def test_matching_equals_the_slow_version():
    rng = np.random.default_rng(0)
    for _ in range(200):
        iou = np.round(rng.random(rng.integers(0, 8, 2)), 1)  # rounding makes ties
        assert match_by_iou(iou, threshold=0.3) == slow_match(iou, 0.3)


def test_iou_equals_the_dense_one():
    rng = np.random.default_rng(1)
    first, second = rng.random((5, 9, 7)) < 0.5, rng.random((3, 9, 7)) < 0.5
    expected = [[(a & b).sum() / (a | b).sum() for b in second] for a in first]
    np.testing.assert_allclose(pairwise_mask_iou(rle.encode_many(first), rle.encode_many(second)), expected)
    assert pairwise_mask_iou([], rle.encode_many(second)).shape == (0, 3)


def test_pooling_is_over_pairs_not_over_images():
    one = quality_of_image(np.array([[0.6]]), [1], [1])
    three = quality_of_image(np.eye(3), [1, 2, 3], [1, 2, 0])
    both = one + three
    assert both.class_accuracy == 3 / 4
    assert both.segmentation_quality == pytest.approx(3.6 / 4)
    assert both == sum([three, one], PseudoLabelQuality())
    assert both.as_dict()["num_class_correct"] == 3


def test_bad_result_is_named():
    with pytest.raises(AnnotationError, match="unknown category"):
        pseudo_label_quality(ground_truth(), [result(1, 99, strip(0, 6))])


@pytest.mark.skipif(not SHARED.exists(), reason="the real images are not beside this checkout")
def test_real_set_against_itself():
    coco = load_coco(SHARED / "dsb2018" / "instances.json", SHARED / "dsb2018" / "images")
    entries = [a for rows in coco.annotations.values() for a in rows]
    results = [{"image_id": a.image_id, "category_id": 1, "segmentation": a.rle, "score": 1} for a in entries]
    quality = pseudo_label_quality(coco, results)
    assert (quality.class_accuracy, quality.segmentation_quality, quality.num_matched) == (1.0, 1.0, len(entries))
