"""Splits: nested, reproducible, tied to their images, never redrawn."""

import json
from itertools import pairwise
from pathlib import Path

import pytest

from pipeline.data.coco import CocoImage, load_coco, make_coco
from pipeline.data.splits import Split, draw_split, load_split, save_split, split_from_names
from pipeline.errors import InputError

SHARED = Path(__file__).parents[2].parent / "shared" / "data"


def images(number, *, first=1, name="{:04}.png"):
    return make_coco(Path("."), [CocoImage(n, name.format(n), 4, 4) for n in range(first, first + number)], (), ())


@pytest.mark.parametrize(
    ("number", "percent", "labelled"),
    [
        (132, 10, 13),
        (2975, 5, 148),
        (100, 7, 7),
        (10_000, 0.29, 29),
        (30, 1, 1),
        (3, 100, 3),
        (118_287 // 100, 50, 591),
    ],
)
def test_counts(number, percent, labelled):
    split = draw_split(images(number), percent=percent, seed=0)
    assert len(split.labelled) == labelled
    assert sorted([*split.labelled, *split.unlabelled]) == list(range(1, number + 1))
    assert list(split.labelled) == sorted(split.labelled)


def test_nested_for_every_pair():
    coco = images(400)
    sets = [set(draw_split(coco, percent=p, seed=3).labelled) for p in (1, 2, 5, 10, 20, 30, 100)]
    for smaller, larger in pairwise(sets):
        assert smaller < larger


def test_seed_and_images_decide_and_nothing_else():
    coco = images(200)
    base = draw_split(coco, percent=10, seed=0)
    assert base == draw_split(images(200), percent=10, seed=0)
    assert draw_split(make_coco(Path("/x"), coco.images[::-1], (), ()), percent=10, seed=0) == base
    assert draw_split(coco, percent=10, seed=1).labelled != base.labelled
    assert draw_split(images(200, name="x{}.png"), percent=10, seed=0).labelled != base.labelled


def test_the_drawing_never_changes():
    # Written down once; a change here would silently redraw everybody's splits.
    assert draw_split(images(40), percent=10, seed=0).labelled == (1, 10, 17, 30)


def test_the_drawing_is_about_uniform():
    counts = dict.fromkeys(range(1, 21), 0)
    for seed in range(2000):
        for image_id in draw_split(images(20), percent=25, seed=seed).labelled:
            counts[image_id] += 1
    assert all(420 < count < 580 for count in counts.values())  # 500 expected, sigma 19


@pytest.mark.parametrize("percent", [0, -1, 100.5, float("nan")])
def test_percent_out_of_range(percent):
    with pytest.raises(InputError, match="out of range"):
        draw_split(images(10), percent=percent, seed=0)


def test_no_images():
    with pytest.raises(InputError, match="empty data set"):
        draw_split(images(0), percent=10, seed=0)


def test_saved_once_and_read_back(tmp_path):
    coco, path = images(50), tmp_path / "splits" / "10.json"
    split = draw_split(coco, percent=10, seed=4)
    save_split(split, path)
    before = path.stat().st_mtime_ns, path.read_bytes()
    save_split(split, path)
    assert (path.stat().st_mtime_ns, path.read_bytes()) == before
    assert load_split(path, coco) == split
    for other in (draw_split(coco, percent=10, seed=5), draw_split(coco, percent=20, seed=4)):
        with pytest.raises(InputError, match="never redrawn"):
            save_split(other, path)
    assert path.read_bytes() == before[1]


def test_split_of_other_images_is_refused(tmp_path):
    save_split(draw_split(images(50), percent=10, seed=4), tmp_path / "s.json")
    for other in (images(51), images(50, first=2), images(50, name="y{}.png")):
        with pytest.raises(InputError, match="made for other images"):
            load_split(tmp_path / "s.json", other)


def test_annotations_do_not_matter_for_a_split(tmp_path):
    coco = images(50)
    larger = make_coco(Path("."), [CocoImage(i.image_id, i.file_name, 9, 9) for i in coco.images], (), ())
    save_split(draw_split(coco, percent=10, seed=4), tmp_path / "s.json")
    assert load_split(tmp_path / "s.json", larger)


@pytest.mark.parametrize(
    "change",
    [
        lambda text: text[:-9],
        lambda text: "[]",
        lambda text: text.replace('"version": 1', '"version": 2'),
        lambda text: text.replace('"seed"', '"sed"'),
        lambda text: text.replace('"labelled": [', '"labelled": ["x", '),
        lambda text: text.replace('"labelled": [', '"labelled": [999, '),
    ],
)
def test_damaged_file(tmp_path, change):
    save_split(draw_split(images(50), percent=10, seed=4), tmp_path / "s.json")
    changed = change((tmp_path / "s.json").read_text())
    (tmp_path / "s.json").write_text(changed)
    with pytest.raises(InputError, match="damaged"):
        load_split(tmp_path / "s.json", images(50))


def test_missing_file_names_the_command(tmp_path):
    with pytest.raises(InputError, match=r"make it first: s4m-pipeline split$"):
        load_split(tmp_path / "s.json", images(5))
    coco = images(5)
    for name, out in (("split_5/split.json", "split_5"), ("s.json", "FOLDER, and name FOLDER/split.json")):
        with pytest.raises(InputError) as caught:
            load_split(Path(name), coco, source=["my data/train.json"])
        words = f"split 'my data/train.json' --image-root {coco.image_root} --percent P --out {out}"
        assert caught.value.fix == f"make it first: s4m-pipeline {words}"


def city(*names):
    return make_coco(Path("."), [CocoImage(n, name, 4, 4) for n, name in enumerate(names)], (), ())


def test_published_list_of_ground_truth_names(tmp_path):
    coco = city(*(f"{c}/{c}_000{n}_leftImg8bit.png" for c in ("ulm", "bonn") for n in range(3)))
    lines = "ulm_0001_gtFine_instanceIds.png\n\nbonn/bonn_0002_leftImg8bit.png\nbonn_0000\n"
    (tmp_path / "perc_50.txt").write_text(lines)
    split = split_from_names(coco, tmp_path / "perc_50.txt")
    assert split == Split(split.fingerprint, 50.0, None, (1, 3, 5), (0, 2, 4), "perc_50.txt")
    save_split(split, tmp_path / "s.json")
    assert load_split(tmp_path / "s.json", coco) == split


def test_wrong_names_are_told_together(tmp_path):
    coco = city("a/one.png", "b/one.png", "three.png")
    (tmp_path / "l.txt").write_text("one.png\nthre.png\nthree.png\nthree\n")
    with pytest.raises(InputError) as caught:
        split_from_names(coco, tmp_path / "l.txt")
    message = str(caught.value)
    assert message.startswith("3 names")
    assert "'one.png': 2 images" in message
    assert "did you mean 'three.png'" in message
    assert "'three': the same image as 'three.png'" in message


def test_list_that_is_none(tmp_path):
    (tmp_path / "l.txt").write_text("\n \n")
    with pytest.raises(InputError, match="empty"):
        split_from_names(city("a.png"), tmp_path / "l.txt")
    with pytest.raises(InputError, match="cannot be read"):
        split_from_names(city("a.png"), tmp_path / "none.txt")


@pytest.mark.skipif(not SHARED.exists(), reason="the real images are not beside this checkout")
def test_real_set(tmp_path):
    coco = load_coco(SHARED / "coco_photos" / "instances.json", SHARED / "coco_photos" / "images")
    split = draw_split(coco, percent=50, seed=0)
    save_split(split, tmp_path / "s.json")
    assert load_split(tmp_path / "s.json", coco) == split
    assert json.loads((tmp_path / "s.json").read_text())["percent"] == 50
