"""Cityscapes' ground truth as COCO files: what becomes of every kind of id, and what is refused."""

import json

import numpy as np
import pytest
from PIL import Image

from jobs.convert_cityscapes import run
from pipeline.data.cityscapes import THING_CLASSES, load_void
from pipeline.data.coco import load_coco
from pipeline.data.splits import split_from_names
from pipeline.errors import AnnotationError, InputError
from pipeline.masks import rle
from tests.toy_published import ROAD, street, write_cityscapes, write_ids


def one_image(root, ids, part="train"):
    write_ids(root, part, "aachen_000000_000019", ids)
    run(root, parts=[part])
    return load_coco(root / f"annotations/{part}.json", root / "leftImg8bit" / part)


def test_every_kind_of_id_becomes_what_it_means(tmp_path):
    ids = np.full((20, 40), ROAD, np.uint16)
    ids[0:4, 0:10] = 26000  # the first car
    ids[0:4, 20:30] = 26000  # its other half, behind a pole
    ids[5, 5] = 33017  # one pixel of a bicycle
    ids[10:12] = 24  # persons as a group
    ids[14] = 0  # void
    ids[16] = 29  # caravans as a group: void
    ids[18] = 29001  # a caravan: neither an object nor void
    coco = one_image(tmp_path, ids)
    assert [(c.category_id, c.name) for c in coco.categories] == [(c.category_id, c.name) for c in THING_CLASSES]
    found = {(a.category_id, a.iscrowd): rle.decode(a.rle) for a in coco.annotations[1]}
    assert set(found) == {(26, False), (33, False), (24, True)}
    assert (found[26, False] == (ids == 26000)).all()
    assert (found[33, False] == (ids == 33017)).all()
    assert (found[24, True] == (ids == 24)).all()
    assert {a.category_id: a.area for a in coco.annotations[1]} == {26: 80, 33: 1, 24: 80}
    void = rle.decode(load_void(tmp_path / "annotations/train.json", coco)[1])
    assert (void == np.isin(ids, (0, 29))).all()


def test_an_image_without_objects_stays_and_one_without_void_has_none(tmp_path):
    coco = one_image(tmp_path, np.full((8, 16), ROAD, np.uint16))
    assert len(coco.images) == 1
    assert coco.annotations[1] == ()
    assert load_void(tmp_path / "annotations/train.json", coco) == {}


def test_masks_of_a_street_are_those_of_its_ids(tmp_path):
    root = write_cityscapes(tmp_path)
    run(root)
    for part, seeds in (("train", [400, 401, 402, 403]), ("val", [200, 201])):
        coco = load_coco(root / f"annotations/{part}.json", root / "leftImg8bit" / part)
        assert len(coco.images) == len(seeds)
        for image in coco.images:
            ids = street(seeds[int(image.file_name.split("_")[1])])
            masks = [rle.decode(entry.rle) for entry in coco.annotations[image.image_id]]
            assert sum(masks).max() == 1  # disjoint
            assert (sum(masks) == np.isin(ids // 1000, range(24, 34)) | (ids == 24)).all()


def test_a_published_list_finds_its_images(tmp_path):
    root = write_cityscapes(tmp_path)
    run(root, parts=["train"])
    (tmp_path / "perc_50.txt").write_text(
        "bremen_000001_000019_gtFine_instanceIds.png\naachen_000002_000019_gtFine_instanceIds.png\n"
    )
    coco = load_coco(root / "annotations/train.json", root / "leftImg8bit/train")
    split = split_from_names(coco, tmp_path / "perc_50.txt")
    assert sorted(coco.by_id[i].file_name for i in split.labelled) == [
        "aachen/aachen_000002_000019_leftImg8bit.png",
        "bremen/bremen_000001_000019_leftImg8bit.png",
    ]
    assert len(split.unlabelled) == 2


def test_the_same_command_twice_is_a_no_op_and_other_ground_truth_is_refused(tmp_path, capsys):
    root, out = write_cityscapes(tmp_path / "data"), tmp_path / "out"
    run(root, out=out)
    before = {path.name: path.read_bytes() for path in out.iterdir()}
    assert set(before) == {"train.json", "val.json"}
    (out / "val.json").unlink()  # as if killed between the two
    capsys.readouterr()
    run(root, out=out)
    assert {path.name: path.read_bytes() for path in out.iterdir()} == before
    assert "train: all 4 images are converted" in capsys.readouterr().out
    write_ids(root, "val", "aachen_000000_000019", street(7))
    with pytest.raises(InputError, match="a conversion of other ground truth"):
        run(root, out=out)
    assert {path.name: path.read_bytes() for path in out.iterdir()} == before
    run(root, out=out, overwrite=True)
    assert (out / "val.json").read_bytes() != before["val.json"]
    assert (out / "train.json").read_bytes() == before["train.json"]


def test_a_file_of_something_else_is_never_written_over(tmp_path):
    root = write_cityscapes(tmp_path / "data")
    (tmp_path / "train.json").write_text(json.dumps({"images": []}))
    with pytest.raises(InputError, match="this command did not write"):
        run(root, out=tmp_path, overwrite=True)
    assert not (tmp_path / "val.json").exists()


def test_what_is_wrong_with_a_tree_is_told(tmp_path):
    with pytest.raises(InputError, match="not the layout of Cityscapes") as caught:
        run(tmp_path / "data")
    assert str(tmp_path / "data/leftImg8bit/train/CITY") in str(caught.value)
    root = write_cityscapes(tmp_path / "data")
    with pytest.raises(InputError, match="no such part"):
        run(root, parts=["test"])
    with pytest.raises(InputError, match="a folder is wanted"):
        run(root, out=tmp_path / "all.json")
    truth = root / "gtFine/train/bremen/bremen_000001_000019_gtFine_instanceIds.png"
    truth.unlink()
    with pytest.raises(AnnotationError, match="1 of 4 images have no ground truth") as caught:
        run(root)
    assert str(truth) in str(caught.value)
    assert not (root / "annotations").exists()


@pytest.mark.parametrize(
    ("picture", "told"),
    [
        (Image.new("L", (128, 64), 26), "not of 16 bits"),
        (Image.new("RGB", (128, 64)), "not of 16 bits"),
        (Image.fromarray(np.full((64, 64), 7, np.uint16)), "another size than its image"),
        (Image.fromarray(np.full((64, 128), 26, np.uint16) * 500), r"(?s)does not have.*\[13000\]"),
        (Image.fromarray(np.full((64, 128), 34, np.uint16)), r"(?s)does not have.*\[34\]"),
        (None, "cannot be read"),
    ],
    ids=["8 bits", "colours", "size", "class without instances", "unknown class", "damaged"],
)
def test_ground_truth_that_is_not_cityscapes_is_refused(tmp_path, picture, told):
    root = write_cityscapes(tmp_path / "data")
    truth = root / "gtFine/train/aachen/aachen_000000_000019_gtFine_instanceIds.png"
    if picture is None:
        truth.write_bytes(truth.read_bytes()[:200])
    else:
        picture.save(truth)
    with pytest.raises(AnnotationError, match=told) as caught:
        run(root)
    assert str(truth) in str(caught.value)
    assert not (root / "annotations/train.json").exists()


def test_a_coco_file_has_no_void(tmp_path):
    coco = one_image(tmp_path, street(1))
    file = tmp_path / "annotations/train.json"
    content = json.loads(file.read_text())
    content.pop("void")
    file.write_text(json.dumps(content))
    with pytest.raises(AnnotationError, match="not a converted Cityscapes file"):
        load_void(file, coco)
