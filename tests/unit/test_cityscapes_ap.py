"""Cityscapes AP on cases computed by hand, and against a slow version that counts pixels one prediction at a time."""

from pathlib import Path

import numpy as np
import pytest

from pipeline.data.coco import Annotation, Category, CocoImage, make_coco
from pipeline.errors import AnnotationError, InputError
from pipeline.evaluation.cityscapes_ap import average_precision, cityscapes_ap
from pipeline.masks import rle

SIZE = 48
CAR, BUS = Category(26, "car"), Category(28, "bus")


def square(x, y, width, height=None):
    mask = np.zeros((SIZE, SIZE), bool)
    mask[y : y + (height or width), x : x + width] = True
    return mask


def truth(*objects, num_images=1):
    """Objects as (mask, is a group) or (mask, is a group, image, category)."""
    entries = []
    for number, (mask, crowd, *rest) in enumerate(objects, start=1):
        image, category = rest or (1, 26)
        code = rle.encode(mask)
        entries.append(Annotation(number, image, category, code, float(mask.sum()), rle.bbox_xywh(code), crowd))
    images = [CocoImage(n, f"{n}.png", SIZE, SIZE) for n in range(1, num_images + 1)]
    return make_coco(Path("."), images, [CAR, BUS], entries)


def found(mask, score, image=1, category=26):
    return {"image_id": image, "category_id": category, "segmentation": rle.encode(mask), "score": score}


def ap50(coco, results, void=None):
    figures = cityscapes_ap(coco, {} if void is None else {1: rle.encode(void)}, results)
    return figures.per_class50["car"]


def test_an_object_found_exactly():
    figures = cityscapes_ap(truth((square(4, 4, 12), False)), {}, [found(square(4, 4, 12), 0.3)])
    assert (figures.ap, figures.ap50) == (1.0, 1.0)
    assert figures.per_class == {"car": 1.0, "bus": None}  # a class without an object counts for nothing
    assert (figures.num_images, figures.num_ground_truth, figures.num_detections) == (1, 1, 1)


def test_nothing_found_is_zero_and_nothing_to_find_is_none():
    assert ap50(truth((square(4, 4, 12), False)), []) == 0.0
    figures = cityscapes_ap(truth(), {}, [found(square(4, 4, 12), 0.9)])
    assert (figures.ap, figures.ap50) == (None, None)


def test_an_overlap_must_be_exceeded():
    coco = truth((square(0, 0, 20), False))
    assert ap50(coco, [found(square(0, 0, 20, 10), 0.9)]) == 0.0  # IoU 200 / 400
    assert ap50(coco, [found(square(0, 0, 20, 11), 0.9)]) == 1.0
    # IoU 0.8 exceeds 0.50 to 0.75: six of ten overlaps
    assert cityscapes_ap(coco, {}, [found(square(0, 0, 20, 16), 0.9)]).ap == pytest.approx(0.6)


def test_of_two_on_one_object_the_less_sure_is_false():
    coco = truth((square(0, 0, 12), False), (square(20, 20, 12), False))
    results = [found(square(0, 0, 12), 0.9), found(square(0, 0, 12), 0.8), found(square(20, 20, 12), 0.7)]
    # curve: (0, 1), (0.5, 1), (0.5, 1/2), (1, 2/3); area 0.5 + 0.5 * (1/2 + 2/3) / 2
    assert ap50(coco, results) == pytest.approx(0.5 + 0.25 * (1 / 2 + 2 / 3))
    assert ap50(coco, results[::-1]) == pytest.approx(0.5 + 0.25 * (1 / 2 + 2 / 3))


def test_a_false_one_before_the_true_one():
    coco = truth((square(0, 0, 12), False), (square(20, 20, 12), False))
    # curve: (0, 1), (0, 0), (0.5, 1/2)
    assert ap50(coco, [found(square(36, 0, 12), 0.95), found(square(0, 0, 12), 0.9)]) == pytest.approx(0.125)


def test_equal_scores_are_one_point_of_the_curve():
    coco = truth((square(0, 0, 12), False))
    # curve: (0, 1), (1, 1/2)
    assert ap50(coco, [found(square(36, 0, 12), 0.9), found(square(0, 0, 12), 0.9)]) == pytest.approx(0.75)


def test_what_lies_on_a_group_or_a_small_object_or_void_is_neither_true_nor_false():
    group, small, void = square(0, 20, 40, 20), square(30, 0, 9), square(0, 40, 48, 8)
    coco = truth((square(0, 0, 12), False), (group, True), (small, False))
    hit = found(square(0, 0, 12), 0.5)
    for other in (group, square(2, 22, 10), small, square(30, 0, 8), square(3, 41, 30, 6)):
        assert ap50(coco, [hit, found(other, 0.9)], void) == 1.0
    # the small object counts for nothing although it is found by none; the same pixels elsewhere are false
    assert ap50(coco, [hit, found(square(20, 0, 9), 0.9)], void) == pytest.approx(0.25)
    assert cityscapes_ap(coco, {}, []).num_ground_truth == 1


def test_more_than_the_overlap_must_lie_on_void():
    coco, void = truth((square(0, 0, 12), False)), square(0, 40, 48, 8)
    hit, half = found(square(0, 0, 12), 0.5), found(square(20, 35, 10, 10), 0.9)  # 50 of 100 pixels
    assert ap50(coco, [hit, half], void) == pytest.approx(0.25)  # (0, 1), (0, 0), (1, 1/2)
    more = found(square(20, 36, 10, 10), 0.9)  # 60 of 100: ignored at 0.50 and 0.55, not at 0.60
    assert ap50(coco, [hit, more], void) == 1.0
    assert cityscapes_ap(coco, {1: rle.encode(void)}, [hit, more]).ap == pytest.approx((2 + 8 * 0.25) / 10)


def test_groups_and_objects_of_other_classes_ignore_nothing():
    coco = truth((square(0, 0, 12), False), (square(0, 20, 40, 20), True, 1, 28))
    assert ap50(coco, [found(square(0, 0, 12), 0.5), found(square(2, 22, 10), 0.9)]) == pytest.approx(0.25)


def test_all_that_is_there_ignored():
    coco = truth((square(0, 0, 12), False), (square(0, 20, 40, 20), True))
    assert ap50(coco, [found(square(2, 22, 10), 0.9)]) == 0.0


def test_average_precision_of_a_curve():
    scores, is_true = np.array([0.9, 0.8, 0.7, 0.6]), np.array([True, False, True, False])
    # (0, 1), (1/4, 1), (1/4, 1/2), (2/4, 2/3), (2/4, 2/4)
    assert average_precision(scores, is_true, 2) == pytest.approx(0.25 + 0.25 * (1 / 2 + 2 / 3) / 2)
    assert average_precision(np.zeros(0), np.zeros(0, bool), 3) == 0.0


def slow(coco, void, results, category, overlap):
    """The definition, literally: dense masks, one threshold of the score after the other."""
    voids = {i: rle.decode(code) for i, code in void.items()}
    scores, true, missed = [], [], 0
    for image in coco.by_id:
        objects = [(rle.decode(a.rle), a.iscrowd) for a in coco.annotations[image] if a.category_id == category]
        real = [m for m, crowd in objects if not crowd and m.sum() >= 100]
        other = [m for m, crowd in objects if crowd or m.sum() < 100]
        mine = [r for r in results if r["image_id"] == image and r["category_id"] == category]
        masks = [rle.decode(r["segmentation"]) for r in mine]
        used = set()
        for m in real:
            hits = [k for k, p in enumerate(masks) if (p & m).sum() / (p | m).sum() > overlap]
            used |= set(hits)
            missed += not hits
            ranked = sorted(hits, key=lambda k: -mine[k]["score"])
            scores += [mine[k]["score"] for k in ranked]
            true += [k == ranked[0] for k in ranked]
        for k, p in enumerate(masks):
            if k in used or any((p & m).sum() / (p | m).sum() > overlap for m in other):
                continue
            nothing = (p & voids[image]).sum() if image in voids else 0
            nothing += sum((p & m).sum() for m in other)
            if nothing / p.sum() <= overlap:
                scores.append(mine[k]["score"])
                true.append(False)
    scores, true = np.array(scores), np.array(true, bool)
    total, area, before = true.sum() + missed, 0.0, (0.0, 1.0)
    for threshold in sorted(set(scores.tolist()), reverse=True):
        chosen = true[scores >= threshold]
        point = (chosen.sum() / total, chosen.mean())
        area += (point[0] - before[0]) * (point[1] + before[1]) / 2
        before = point
    return area


@pytest.mark.parametrize("seed", range(3))
def test_random_cases_against_the_literal_definition(seed):
    rng = np.random.default_rng(seed)
    objects, results, void = [], [], {}
    for image in range(1, 5):
        taken = square(*rng.integers(0, 30, 2).tolist(), 12)
        void[image] = rle.encode(taken)
        for _ in range(int(rng.integers(2, 7))):
            mask = square(*rng.integers(0, 30, 2).tolist(), int(rng.integers(8, 18))) & ~taken
            if mask.any():
                taken |= mask
                objects.append((mask, bool(rng.random() < 0.25), image, int(rng.choice([26, 28]))))
                for _ in range(int(rng.integers(0, 3))):
                    near = np.roll(mask, rng.integers(-2, 3, 2).tolist(), (0, 1))
                    results.append(found(near, round(float(rng.random()), 1), image, objects[-1][3]))
        results.append(found(square(*rng.integers(0, 30, 2).tolist(), 14), round(float(rng.random()), 1), image))
    coco = truth(*objects, num_images=4)
    figures = cityscapes_ap(coco, void, results)
    for category in (CAR, BUS):
        table = [slow(coco, void, results, category.category_id, (50 + 5 * k) / 100) for k in range(10)]
        assert figures.per_class[category.name] == pytest.approx(np.mean(table), abs=1e-12)
        assert figures.per_class50[category.name] == pytest.approx(table[0], abs=1e-12)
    assert figures.ap == pytest.approx(np.mean(list(figures.per_class.values())))


def test_results_of_other_images_are_refused():
    with pytest.raises(AnnotationError, match="unknown image"):
        cityscapes_ap(truth(), {}, [found(square(0, 0, 9), 0.5, image=5)])
    with pytest.raises(InputError, match="without categories"):
        cityscapes_ap(make_coco(Path("."), [CocoImage(1, "a.png", 4, 4)], [], []), {}, [])
