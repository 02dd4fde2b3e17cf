"""Mask AP against pycocotools, against cases computed by hand, and on bad results."""

import json
from pathlib import Path

import numpy as np
import pytest
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from pipeline.data.coco import Annotation, Category, CocoImage, load_coco, make_coco, write_coco
from pipeline.errors import AnnotationError, InputError
from pipeline.evaluation.coco_ap import mask_ap
from pipeline.masks import rle

SHARED = Path(__file__).parents[2].parent / "shared" / "data"
SIZE = 48


def square(x, y, side):
    mask = np.zeros((SIZE, SIZE), bool)
    mask[y : y + side, x : x + side] = True
    return mask


def annotation(number, image_id, category_id, mask, *, crowd=False):
    code = rle.encode(mask)
    return Annotation(number, image_id, category_id, code, float(mask.sum()), rle.bbox_xywh(code), crowd)


def result(image_id, category_id, mask, score):
    return {"image_id": image_id, "category_id": category_id, "segmentation": rle.encode(mask), "score": score}


def random_case(seed):
    """Ground truth with crowds and overlaps; detections that are jittered copies, wrong classes and noise."""
    rng = np.random.default_rng(seed)
    categories = [Category(9, "late"), Category(2, "early"), Category(5, "nowhere"), Category(4, "other")]
    annotations, results = [], []
    for image_id in range(1, 13):
        for _ in range(int(rng.integers(0, 7))):
            x, y, side = [*rng.integers(0, 30, 2).tolist(), int(rng.integers(5, 18))]
            category = int(rng.choice([9, 2, 4]))
            crowd = bool(rng.random() < 0.1)
            annotations.append(annotation(len(annotations) + 1, image_id, category, square(x, y, side), crowd=crowd))
            for _ in range(int(rng.integers(0, 3))):
                dx, dy, ds = rng.integers(-2, 3, 3).tolist()
                shifted = square(max(0, x + dx), max(0, y + dy), max(3, side + ds))
                label = category if rng.random() < 0.8 else int(rng.choice([9, 2, 5, 4]))
                results.append(result(image_id, label, shifted, round(float(rng.random()), 1)))  # many ties
    images = [CocoImage(n, f"{n}.png", SIZE, SIZE) for n in range(1, 13)]
    return make_coco(Path("."), images, categories, annotations), results


def oracle(coco, results, tmp_path):
    write_coco(coco, tmp_path / "truth.json")
    truth = COCO(str(tmp_path / "truth.json"))
    evaluator = COCOeval(truth, truth.loadRes(json.loads(json.dumps(results))), "segm")
    evaluator.evaluate()
    evaluator.accumulate()
    evaluator.summarize()
    precision = evaluator.eval["precision"][:, :, :, 0, -1]  # classes by id
    per_class = {
        truth.cats[category_id]["name"]: precision[:, :, place].mean() if precision[0, 0, place] > -1 else None
        for place, category_id in enumerate(evaluator.params.catIds)
    }
    return evaluator.stats, per_class


@pytest.mark.parametrize("seed", range(4))
def test_equals_pycocotools(seed, tmp_path):
    coco, results = random_case(seed)
    stats, per_class = oracle(coco, results, tmp_path)
    ours = mask_ap(coco, results)
    assert 0.05 < ours.ap < 0.95  # a case that says something
    np.testing.assert_allclose([ours.ap, ours.ap50, ours.ap75, ours.ar100], [*stats[:3], stats[8]], atol=1e-9)
    assert list(ours.per_class) == ["late", "early", "nowhere", "other"]  # label order, not id order
    assert ours.per_class["nowhere"] is None
    assert per_class["nowhere"] is None
    for name in ("late", "early", "other"):
        assert ours.per_class[name] == pytest.approx(per_class[name], abs=1e-9)


def one_object():
    images = [CocoImage(1, "1.png", SIZE, SIZE), CocoImage(2, "2.png", SIZE, SIZE)]
    return make_coco(Path("."), images, [Category(3, "box")], [annotation(1, 1, 3, square(10, 10, 20))])


def test_by_hand():
    coco = one_object()
    truth = square(10, 10, 20)
    assert mask_ap(coco, [result(1, 3, truth, 0.5)]).ap == pytest.approx(1)
    half = truth & square(10, 10, 16)  # 256 of 400 pixels: IoU 0.64 passes 0.50, 0.55, 0.60
    ours = mask_ap(coco, [result(1, 3, half, 0.5)])
    assert (ours.ap, ours.ap50, ours.ap75, ours.ar100) == pytest.approx((0.3, 1, 0, 0.3))
    false_first = [result(2, 3, truth, 0.9), result(1, 3, truth, 0.5)]  # precision 1/2 at every recall
    assert mask_ap(coco, false_first).ap == pytest.approx(0.5)
    counts = mask_ap(coco, false_first)
    assert (counts.num_images, counts.num_ground_truth, counts.num_detections) == (2, 1, 2)


def test_no_results_give_zero_and_no_truth_gives_none():
    coco = one_object()
    assert (mask_ap(coco, []).ap, mask_ap(coco, []).ar100) == (0, 0)
    bare = make_coco(Path("."), coco.images, coco.categories, [])
    empty = mask_ap(bare, [result(1, 3, square(0, 0, 9), 0.5)])
    assert (empty.ap, empty.ap50, empty.per_class) == (None, None, {"box": None})
    assert json.loads(json.dumps(empty.as_dict()))["ap"] is None
    with pytest.raises(InputError, match="without categories"):
        mask_ap(make_coco(Path("."), coco.images, (), ()), [])


def test_nothing_is_printed(capfd, caplog):
    coco, results = random_case(0)
    mask_ap(coco, results)
    assert capfd.readouterr() == ("", "")
    assert caplog.text == ""


def test_results_from_a_file(tmp_path):
    coco, results = random_case(1)
    (tmp_path / "r.json").write_text(json.dumps(results))
    assert mask_ap(coco, tmp_path / "r.json") == mask_ap(coco, results)


BAD = {
    "image": ({"image_id": 8}, "unknown image"),
    "image as text": ({"image_id": "1"}, "unknown image"),
    "category": ({"category_id": 1}, "unknown category"),
    "score": ({"score": None}, "finite number"),
    "score nan": ({"score": float("nan")}, "finite number"),
    "mask": ({"segmentation": None}, "neither polygons nor RLE"),
    "mask of another size": ({"segmentation": rle.encode(np.ones((9, 9), bool))}, "size of an RLE differs"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_result_is_named(case):
    change, what = BAD[case]
    good = result(1, 3, square(0, 0, 9), 0.5)
    with pytest.raises(AnnotationError, match=what) as caught:
        mask_ap(one_object(), [good, {**good, **change}])
    assert "result 1" in str(caught.value)


def test_results_of_another_set_are_told_once():
    others = [result(number, 3, square(0, 0, 9), 0.5) for number in (1, 8, 9, 8)]
    with pytest.raises(AnnotationError, match=r"got: +3 of 4 entries, such as result 1, with the ids 8, 9\n") as caught:
        mask_ap(one_object(), others)
    assert "val_annotations" in str(caught.value)


def test_all_bad_results_are_told_together():
    bad = {"image_id": 1, "category_id": 8, "score": 1, "segmentation": None}
    with pytest.raises(AnnotationError, match="4 problems"):
        mask_ap(one_object(), [bad, bad])


@pytest.mark.parametrize("content", ["", "{}", "[1]", "3", None])
def test_what_is_no_results_list(content, tmp_path):
    if content is not None:
        (tmp_path / "r.json").write_text(content)
    with pytest.raises(InputError):
        mask_ap(one_object(), tmp_path / "r.json")


@pytest.mark.skipif(not SHARED.exists(), reason="the real images are not beside this checkout")
def test_real_set_against_itself():
    coco = load_coco(SHARED / "coco_photos" / "instances.json", SHARED / "coco_photos" / "images")
    objects = [a for entries in coco.annotations.values() for a in entries if not a.iscrowd]
    results = [
        {"image_id": a.image_id, "category_id": a.category_id, "segmentation": a.rle, "score": 0.5} for a in objects
    ]
    ours = mask_ap(coco, results)
    assert (ours.ap, ours.num_ground_truth) == (pytest.approx(1), len(objects))
