"""COCO files: every form that is right, every way one can be wrong, and real ones."""

import copy
import json
import logging
import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as oracle
from pycocotools.coco import COCO

from pipeline.data.coco import (
    check_image_files,
    folder_as_coco,
    load_coco,
    load_images,
    subset,
    without_images,
    write_coco,
)
from pipeline.errors import AnnotationError, ConfigError, InputError, TooManyQuarantinedError
from pipeline.masks import rle

SHARED = Path(__file__).parents[2].parent / "shared" / "data"
MASK = np.zeros((6, 8), bool)
MASK[1:4, 2:7] = True


def good():
    """Two images, gaps in ids, category id 0, all three segmentation forms and a crowd."""
    counts = [int(n) for n in np.diff(np.flatnonzero(np.diff(np.r_[2, MASK.T.ravel(), 2])))]
    compressed = rle.encode(MASK)
    return {
        "images": [
            {"id": 7, "file_name": "a.png", "height": 6, "width": 8},
            {"id": 3, "file_name": "sub/b.png", "height": 6, "width": 8},
        ],
        "categories": [{"id": 90, "name": "cat"}, {"id": 0, "name": "dog"}, {"id": 17, "name": "horse"}],
        "annotations": [
            {"id": 5, "image_id": 7, "category_id": 0, "segmentation": [[2, 1, 7, 1, 7, 4, 2, 4]], "area": 15.5},
            {"id": 0, "image_id": 7, "category_id": 90, "segmentation": {"size": [6, 8], "counts": counts}},
            {"id": 9, "image_id": 3, "category_id": 17, "iscrowd": 1, "segmentation": dict(compressed)},
        ],
    }


@pytest.fixture
def root(tmp_path):
    (tmp_path / "images" / "sub").mkdir(parents=True)
    for name in ("a.png", "sub/b.png"):
        Image.fromarray(np.zeros((6, 8, 3), np.uint8)).save(tmp_path / "images" / name)
    return tmp_path / "images"


def write(root, content):
    path = root.parent / "instances.json"
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return path


def load(root, content, **options):
    return load_coco(write(root, content), root, **options)


def test_all_forms_give_the_same_mask(root):
    coco = load(root, good())
    assert [(c.category_id, c.name) for c in coco.categories] == [(90, "cat"), (0, "dog"), (17, "horse")]
    assert coco.labels == {90: 0, 0: 1, 17: 2}
    assert [image.image_id for image in coco.images] == [7, 3]
    polygon, uncompressed = coco.annotations[7]
    (crowd,) = coco.annotations[3]
    for annotation in (polygon, uncompressed, crowd):
        np.testing.assert_array_equal(rle.decode(annotation.rle), MASK)
        assert annotation.bbox_xywh == (2, 1, 5, 3)
    assert (polygon.annotation_id, polygon.area, polygon.iscrowd) == (5, 15.5, False)
    assert (uncompressed.annotation_id, uncompressed.area) == (0, 15)
    assert crowd.iscrowd
    assert coco.path_of(coco.by_id[3]) == root.resolve() / "sub" / "b.png"


def test_fingerprint_ignores_order_and_folder_but_nothing_else(root):
    base = load(root, good()).fingerprint
    shuffled = good()
    shuffled["images"].reverse()
    shuffled["annotations"].reverse()
    assert load(root, shuffled).fingerprint == base
    changes = [
        ("images", 0, "id", 8), ("images", 0, "file_name", "c.png"), ("categories", 0, "name", "lion"),
        ("annotations", 0, "category_id", 17), ("annotations", 2, "iscrowd", 0), ("annotations", 1, "id", 1),
        ("annotations", 0, "segmentation", [[2, 1, 7, 1, 7, 4, 2, 5]]),
    ]  # fmt: skip
    for key, place, name, value in changes:
        changed = good()
        changed[key][place][name] = value
        if key == "images" and name == "id":
            for annotation in changed["annotations"][:2]:
                annotation["image_id"] = value
        assert load(root, changed).fingerprint != base, (key, name)


def test_missing_size_comes_from_the_header(root):
    content = good()
    for image in content["images"]:
        del image["height"], image["width"]
    coco = load(root, content)
    assert {(image.height, image.width) for image in coco.images} == {(6, 8)}
    assert coco.fingerprint == load(root, good()).fingerprint


def test_class_names_select_and_order(root):
    coco = load(root, good(), class_names=["horse", "cat"])
    assert [c.name for c in coco.categories] == ["horse", "cat"]
    assert {a.category_id for entries in coco.annotations.values() for a in entries} == {17, 90}
    assert len(coco.images) == 2


@pytest.mark.parametrize("names", [["cat", "hose", "dog"], ["cat", "Horse"]])
def test_mistyped_class_names_the_nearest(root, names):
    with pytest.raises(ConfigError, match="did you mean 'horse'"):
        load(root, good(), class_names=names)


@pytest.mark.parametrize("names", [[], ["cat", "cat"]])
def test_class_list_that_is_none(root, names):
    with pytest.raises(ConfigError):
        load(root, good(), class_names=names)


CASES = {
    "duplicate image id": (("images", 1, "id", 7), "image id used twice", "image 7 (entry 1"),
    "text image id": (("images", 1, "id", "3"), "not a whole number", "'3'"),
    "duplicate file": (("images", 1, "file_name", "a.png"), "file_name used twice", "only image 7"),
    "no file name": (("images", 1, "file_name", None), "without file_name", "image 3"),
    "traversal": (("images", 1, "file_name", "../../etc/passwd"), "climbs out", "../../etc/passwd"),
    "absolute": (("images", 1, "file_name", "/etc/hostname"), "absolute", "/etc/hostname"),
    "NUL": (("images", 1, "file_name", "a\0.png"), "NUL", "image 3"),
    "size of nothing": (("images", 1, "width", 0), "image size is wrong", "6 x 0"),
    "half a size": (("images", 1, "width", None), "image size is wrong", "6 x None"),
    "forged size": (("images", 1, "width", 10**9), "image size is wrong", "1000000000"),
    "duplicate annotation id": (("annotations", 2, "id", 5), "annotation id used twice", "annotation 5"),
    "no annotation id": (("annotations", 2, "id", None), "id is not a whole number", "entry 2"),
    "annotation without image": (("annotations", 2, "image_id", 4), "annotation without image", "annotation 9"),
    "unknown category": (("annotations", 2, "category_id", 1), "unknown category", "[0, 17, 90]"),
    "crowd": (("annotations", 2, "iscrowd", 2), "iscrowd", "0 or 1"),
    "no mask": (("annotations", 2, "segmentation", None), "neither polygons nor RLE", "annotation 9"),
    "two points": (("annotations", 2, "segmentation", [[1, 1, 3, 3]]), "polygon", "4 numbers"),
    "RLE size": (
        ("annotations", 2, "segmentation", {"size": [8, 6], "counts": [48]}), "size of an RLE differs", "[8, 6]",
    ),
    "RLE counts": (("annotations", 2, "segmentation", {"size": [6, 8], "counts": [10, 5]}), "malformed", "48"),
    "RLE text": (("annotations", 2, "segmentation", {"size": [6, 8], "counts": "~~"}), "malformed", "annotation 9"),
    "duplicate category id": (("categories", 1, "id", 90), "category id used twice", "'cat' and 'dog'"),
    "duplicate category name": (("categories", 1, "name", "cat"), "category name used twice", "'cat'"),
    "category without name": (("categories", 1, "name", ""), "without a name", "category 0"),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_wrong_entry_is_named(root, case):
    (key, place, name, value), what, detail = CASES[case]
    content = good()
    content[key][place][name] = value
    if case.startswith("duplicate category id"):
        content["annotations"] = content["annotations"][1:]
    with pytest.raises(AnnotationError) as caught:
        load(root, content)
    message = str(caught.value)
    assert what in message
    assert detail in message
    assert "instances.json" in message
    assert "next:" in message


def test_link_out_of_the_folder_is_refused(root):
    (root / "out.png").symlink_to("/etc/hostname")
    content = good()
    content["images"][1]["file_name"] = "out.png"
    with pytest.raises(AnnotationError, match="symbolic link"):
        load(root, content)


def test_all_problems_are_told_together_and_the_list_is_cut(root):
    content = good()
    content["annotations"][0]["category_id"] = 4
    content["annotations"][1]["image_id"] = 99
    content["images"][1]["file_name"] = "../x.png"  # annotation 9 of this image is no further problem
    with pytest.raises(AnnotationError) as caught:
        load(root, content)
    assert str(caught.value).startswith("3 problems")
    assert all(part in str(caught.value) for part in ("image 3", "annotation 5", "annotation 0", "got 99"))
    content["annotations"] = [dict(content["annotations"][0], id=n) for n in range(30)]
    with pytest.raises(AnnotationError) as caught:
        load(root, content)
    assert str(caught.value).startswith("31 problems")
    assert "and 11 more" in str(caught.value)


@pytest.mark.parametrize(
    ("key", "name", "value", "what"),
    [
        ("categories", "id", "90", "category id is not a whole number"),
        ("categories", "id", None, "category id is not a whole number"),
        ("categories", "name", None, "category without a name"),
        ("images", "id", "7", "image id is not a whole number"),
        ("images", "width", 0, "image size is wrong"),
    ],
)
def test_what_refers_to_a_wrong_entry_is_no_second_problem(root, key, name, value, what):
    content = good()
    content[key][0][name] = value
    with pytest.raises(AnnotationError, match=f"^{what}\n"):
        load(root, content)


@pytest.mark.parametrize(
    ("content", "what"),
    [
        ("", "not JSON"),
        ('{"images": [', "not JSON"),
        ("[" * 100_000, "not JSON"),
        ("[]", "a results file"),
        ("3", "no list of images"),
        ('{"annotations": []}', "no list of images"),
        ('{"images": {"1": 2}}', "'images' is not a list"),
        ('{"images": [1]}', "'images' is not a list"),
        ('{"images": []}', "empty data set"),
    ],
)
def test_files_that_are_not_coco(root, content, what):
    with pytest.raises(AnnotationError, match=what):
        load(root, content)


def test_missing_file_and_folder(root, tmp_path):
    with pytest.raises(AnnotationError, match="not found"):
        load_coco(tmp_path / "none.json", root)
    with pytest.raises(InputError, match="image folder not found"):
        load_coco(write(root, good()), tmp_path / "none")


def test_empty_masks_are_left_out_and_counted(root, caplog):
    content = good()
    content["annotations"][1]["segmentation"]["counts"] = [48]
    with caplog.at_level(logging.WARNING):
        coco = load(root, content)
    assert [a.annotation_id for a in coco.annotations[7]] == [5]
    assert "1 annotations cover no pixel" in caplog.text


def test_unlabelled_forms(root):
    content = good()
    bare = load_images(write(root, {"images": content["images"]}), root)
    assert (len(bare.images), bare.num_annotations, bare.categories) == (2, 0, ())
    dummy = dict(content, categories=[])
    assert load_images(write(root, dummy), root).fingerprint == bare.fingerprint
    assert load_images(write(root, content), root).num_annotations == 3
    with pytest.raises(AnnotationError, match=r"^no categories\n"):
        load(root, dummy)  # asked for as labelled data it is an error
    with pytest.raises(ConfigError, match="no image folder"):
        load_images(write(root, content), None)


def test_folder_is_deterministic_and_reports_broken_files(root):
    (root / "z.jpg").write_bytes(b"<html>")
    (root / "notes.txt").write_text("no image")
    (root / ".hidden.png").write_bytes(b"")
    (root / "A.PNG").write_bytes((root / "a.png").read_bytes())
    coco = folder_as_coco(root)
    assert [(i.image_id, i.file_name) for i in coco.images] == [(1, "A.PNG"), (2, "a.png"), (3, "sub/b.png")]
    assert [entry.file_name for entry in coco.broken] == ["z.jpg"]
    assert "HTML" in coco.broken[0].reason
    assert load_images(root, None) == coco


def test_mending_a_broken_file_of_a_folder_leaves_the_ids_of_all_others(root):
    (root / "0.png").write_bytes(b"<html>")
    before = folder_as_coco(root)
    assert [(i.image_id, i.file_name) for i in before.images] == [(2, "a.png"), (3, "sub/b.png")]
    (root / "0.png").write_bytes((root / "a.png").read_bytes())
    after = folder_as_coco(root)
    assert after.images[1:] == before.images
    assert (after.images[0].image_id, after.broken) == (1, ())


def test_a_file_name_that_is_no_text_is_a_broken_file_that_can_be_told(root):
    try:
        Path(os.fsdecode(os.fsencode(root) + b"/\xff.png")).write_bytes((root / "a.png").read_bytes())
    except OSError:
        pytest.skip("this file system takes no such name")
    (entry,) = folder_as_coco(root).broken
    assert "half a character" in entry.reason
    assert entry.file_name.encode() == b"\\udcff.png"


def test_empty_folder(tmp_path):
    with pytest.raises(InputError, match="empty data set"):
        folder_as_coco(tmp_path)
    (tmp_path / "a.png").write_bytes(b"")
    with pytest.raises(InputError, match="0 bytes"):
        folder_as_coco(tmp_path)
    with pytest.raises(InputError, match="not found"):
        folder_as_coco(tmp_path / "none")


def hundred(root):
    pixels = np.random.default_rng(0).integers(0, 256, (6, 8, 3), dtype=np.uint8)
    images = [{"id": n, "file_name": f"{n:03}.png", "height": 6, "width": 8} for n in range(100)]
    for image in images:
        Image.fromarray(pixels).save(root / image["file_name"])
    return load(root, {"images": images})


def test_broken_images_are_named_counted_and_budgeted(root, caplog):
    coco = hundred(root)
    assert check_image_files(coco) == []
    (root / "005.png").unlink()
    assert [entry.file_name for entry in check_image_files(coco)] == ["005.png"]  # 1 of 100 is allowed
    assert "005.png" in caplog.text
    assert "1 of 100" in caplog.text
    Image.fromarray(np.zeros((8, 6, 3), np.uint8)).save(root / "050.png")
    with pytest.raises(TooManyQuarantinedError) as caught:
        check_image_files(coco)
    assert all(part in str(caught.value) for part in ("2 of 100", "005.png", "050.png", "6 x 8", "8 x 6", "EXIF"))
    broken = check_image_files(coco, max_broken_share=0.02)
    rest = without_images(coco, broken)
    assert len(rest.images) == 98
    assert check_image_files(rest) == []
    assert without_images(rest, []) is rest


def test_decoding_check_finds_truncation(root):
    coco = hundred(root)
    path = root / "010.png"
    path.write_bytes(path.read_bytes()[:-30])
    assert check_image_files(coco) == []  # the header is fine
    assert [entry.file_name for entry in check_image_files(coco, decode=True)] == ["010.png"]


def test_images_broken_at_loading_count_too(root):
    content = good()
    del content["images"][0]["height"], content["images"][0]["width"]
    (root / "a.png").write_bytes(b"")
    coco = load(root, content)
    assert [image.file_name for image in coco.images] == ["sub/b.png"]
    assert coco.num_annotations == 1
    with pytest.raises(TooManyQuarantinedError, match="1 of 2"):
        check_image_files(coco)


def test_subset(root):
    coco = load(root, good())
    one = subset(coco, [3])
    assert [image.image_id for image in one.images] == [3]
    assert one.annotations == {3: coco.annotations[3]}
    assert one.categories == coco.categories
    assert one.fingerprint != coco.fingerprint
    assert subset(coco, [3, 7]).fingerprint == coco.fingerprint
    with pytest.raises(InputError, match=r"\[4\]"):
        subset(coco, [3, 4])


def test_written_file_is_read_by_pycocotools_and_by_us(root, tmp_path, capsys):
    coco = load(root, good())
    write_coco(coco, tmp_path / "new" / "out.json")
    api = COCO(str(tmp_path / "new" / "out.json"))
    capsys.readouterr()
    assert sorted(api.anns) == [1, 2, 3]
    for annotation in api.anns.values():
        assert isinstance(annotation["segmentation"]["counts"], str)
        np.testing.assert_array_equal(api.annToMask(annotation), MASK)
        assert annotation["bbox"] == list(oracle.toBbox(rle.encode(MASK)))
    assert [c["id"] for c in api.dataset["categories"]] == [90, 0, 17]
    again = load_coco(tmp_path / "new" / "out.json", root)
    assert again.images == coco.images
    assert [p.name for p in (tmp_path / "new").iterdir()] == ["out.json"]
    write_coco(again, tmp_path / "twice.json")
    assert (tmp_path / "twice.json").read_bytes() == (tmp_path / "new" / "out.json").read_bytes()


def test_input_is_not_changed(root):
    content = good()
    before = copy.deepcopy(content)
    load(root, content)
    assert content == before


@pytest.mark.skipif(not SHARED.exists(), reason="the real images are not beside this checkout")
@pytest.mark.parametrize(
    ("name", "images", "objects", "classes"), [("dsb2018", 132, 5089, 1), ("coco_photos", 26, 181, 80)]
)
def test_real_sets(name, images, objects, classes):
    coco = load_coco(SHARED / name / "instances.json", SHARED / name / "images")
    assert (len(coco.images), coco.num_annotations, len(coco.categories)) == (images, objects, classes)
    assert check_image_files(coco) == []
    raw = {a["id"]: a for a in json.loads((SHARED / name / "instances.json").read_text())["annotations"]}
    for entries in coco.annotations.values():
        for annotation in entries[:3]:
            told = raw[annotation.annotation_id]
            assert int(oracle.area(told["segmentation"])) == rle.area(annotation.rle)
            assert list(annotation.bbox_xywh) == told["bbox"]
            assert annotation.iscrowd == bool(told["iscrowd"])
