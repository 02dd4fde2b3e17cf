"""The published draw, ours, and the files they are kept in."""

import hashlib
import math
import os
import random
from itertools import pairwise
from pathlib import Path

import pytest

from pipeline.data.coco import CocoImage, load_coco, make_coco
from pipeline.data.referring.expression_files import ReferredObject, Sentence, read_objects
from pipeline.data.referring.sets import ReferSet, load_refer_set
from pipeline.data.referring.splits import draw_refer_split, load_refer_split
from pipeline.data.splits import save_split
from pipeline.errors import ConfigError, InputError
from tests.toy_scenes import small_scenes

REFCOCO = os.environ.get("REFCOCO_REFS")
"""Path of RefCOCO's refs(unc).p."""


def refer_set(objects, image_ids):
    images = [CocoImage(i, f"{i}.png", 4, 4) for i in image_ids]
    return ReferSet(make_coco(Path("."), images, (), ()), tuple(objects))


def made_up(num_images=397, num_objects=1000):
    rng = random.Random(3)
    ids = rng.sample(range(10_000), num_images)
    objects = [ReferredObject(n, rng.choice(ids), (n,), "train", (Sentence(n, "a", "a"),)) for n in range(num_objects)]
    return refer_set(objects, sorted(ids)), objects


@pytest.mark.parametrize("percent", [0.5, 1, 2, 5, 10, 100])
def test_published_draw_computed_literally(percent):
    found, objects = made_up()
    order = []
    for thing in objects:
        if thing.image_id not in order:
            order.append(thing.image_id)
    random.seed(0)
    labelled = random.sample(order, math.floor(percent / 100 * len(order)))
    split = draw_refer_split(found, percent=percent, draw="published")
    assert split.labelled == tuple(sorted(labelled))
    assert sorted([*split.labelled, *split.unlabelled]) == sorted(order)
    assert (split.percent, split.seed, split.draw) == (percent, 0, "published")


def test_published_draw_goes_by_the_order_of_the_file():
    found, objects = made_up()
    backwards = refer_set(objects[::-1], [image.image_id for image in found.coco.images])
    split, other = (draw_refer_split(s, percent=5, draw="published") for s in (found, backwards))
    assert split.labelled != other.labelled
    assert draw_refer_split(found, percent=5).labelled == draw_refer_split(backwards, percent=5).labelled


def test_our_draw_is_nested_and_of_referred_images_only():
    found, objects = made_up()
    parts = [set(draw_refer_split(found, percent=percent).labelled) for percent in (0.5, 1, 2, 5)]
    assert all(small < large for small, large in pairwise(parts))
    assert [len(part) for part in parts] == [math.floor(len(found.image_ids) * p / 100) for p in (0.5, 1, 2, 5)]
    assert parts[-1] <= {thing.image_id for thing in objects}
    assert parts[1] != set(draw_refer_split(found, percent=1, seed=1).labelled)


def test_a_draw_is_kept_and_never_redrawn(tmp_path):
    found, _ = made_up()
    split = draw_refer_split(found, percent=5, draw="published")
    save_split(split, tmp_path / "split.json")
    assert load_refer_split(tmp_path / "split.json", found) == split
    with pytest.raises(InputError, match=r"5 %, seed 0, nested"):
        save_split(draw_refer_split(found, percent=5), tmp_path / "split.json")


def test_wrong_draws(tmp_path):
    found, _ = made_up()
    with pytest.raises(ConfigError, match="nested"):
        draw_refer_split(found, percent=5, draw="random")
    with pytest.raises(InputError, match="percent"):
        draw_refer_split(found, percent=0, draw="published")
    with pytest.raises(InputError, match="no referred object"):
        draw_refer_split(refer_set([], [1]), percent=5)
    with pytest.raises(InputError, match="not found"):
        load_refer_split(tmp_path / "none.json", found)


def test_a_split_for_instances_serves_too(tmp_path):
    """``small_scenes`` splits the images of the annotation file; here one of them has no expression."""
    scenes = small_scenes(tmp_path / "scenes", num_train=5)
    whole = load_refer_set(
        expressions_file=scenes.expressions("train"),
        annotation_file=scenes.annotations("train"),
        image_root=scenes.image_root,
        split="train",
    )
    found = whole.of_images(whole.image_ids[1:])
    split = load_refer_split(scenes.root / "split.json", found)
    coco = load_coco(scenes.annotations("train"), scenes.image_root)
    assert sorted([*split.labelled, *split.unlabelled]) == sorted(coco.by_id)
    with pytest.raises(InputError, match="made for other images"):
        load_refer_split(scenes.root / "split.json", made_up()[0])


@pytest.mark.skipif(REFCOCO is None, reason="REFCOCO_REFS does not name RefCOCO's refs(unc).p")
def test_published_list_of_refcoco():
    """The one list that was released with SemiRES, 1 % of RefCOCO, by its hashes."""
    objects, _ = read_objects(Path(str(REFCOCO)), split="train")
    found = refer_set(objects, dict.fromkeys(thing.image_id for thing in objects))
    split = draw_refer_split(found, percent=1, draw="published")
    labelled = found.of_images(split.labelled)
    assert (len(split.labelled), len(labelled.objects), labelled.num_sentences) == (169, 432, 1222)
    assert digest(split.labelled) == "eae758787c046ea161123110e1c48267e572ed3afdf703c2171aa1f98d1747f7"
    refs = sorted(thing.ref_id for thing in labelled.objects)
    assert digest(refs) == "7e486686b49702bbd632fe6ce8c32da334aac72eae0402c736db50c5e7e86dec"


def digest(ids):
    return hashlib.sha256(",".join(map(str, ids)).encode()).hexdigest()
