"""Files of referring expressions: what they say, what is refused, and which masks are read."""

import copy
import json
import os
import pickle
from pathlib import Path

import numpy as np
import pytest

from pipeline.data.referring.expression_files import in_split, read_objects
from pipeline.data.referring.safe_pickle import read_pickle, restored
from pipeline.data.referring.sets import load_refer_set, open_refer_files
from pipeline.errors import AnnotationError, ConfigError, InputError
from tests.toy_refer import ANNOTATIONS, REFS, SIZES, annotation, ref, write_refs
from tests.toy_scenes import small_scenes

SHARED = Path(__file__).parents[2].parent / "shared" / "data"
REAL = SHARED / "refer"


def load(files, **changes):
    return load_refer_set(**files.settings(**changes))


def dumped(tmp_path, content, protocol=2):
    path = tmp_path / "refs.p"
    path.write_bytes(content if isinstance(content, bytes) else pickle.dumps(content, protocol=protocol))
    return path


# --- pickles


@pytest.mark.parametrize("protocol", [0, 1, 2, 3, 4, 5])
def test_pickle_with_numbers_of_numpy_says_what_json_says(tmp_path, protocol):
    refs = copy.deepcopy(REFS)
    refs[0]["ref_id"], refs[0]["ann_id"], refs[0]["image_id"] = np.int64(1), np.int32(4), np.uint16(12)
    refs[1]["score"] = np.float32(0.5)
    path = dumped(tmp_path, refs, protocol)
    (tmp_path / "refs.json").write_text(json.dumps(REFS))
    assert read_objects(path, split="all") == read_objects(tmp_path / "refs.json", split="all")
    assert read_pickle(path)[1]["score"] == 0.5


def test_pickle_of_python_2(tmp_path):
    """Written by hand: texts without an encoding, a long, and a numpy scalar whose bytes are such a text."""
    entry = b"(dp1\nS'word'\nS'caf\\xc3\\xa9'\nsS'plain'\nV\\u00e9t\\u00e9\nsS'id'\nL7L\nsS'n'\n"
    scalar = (
        b"cnumpy.core.multiarray\nscalar\n(cnumpy\ndtype\n(S'i8'\nI0\nI1\ntR"
        b"(I3\nS'<'\nNNNI-1\nI-1\nI0\ntbS'\\x05\\x00\\x00\\x00\\x00\\x00\\x00\\x00'\ntR"
    )
    (row,) = read_pickle(dumped(tmp_path, b"(lp0\n" + entry + scalar + b"sa."))
    assert {key: restored(value) if isinstance(value, str) else value for key, value in row.items()} == {
        "word": "café", "plain": "été", "id": 7, "n": 5,
    }  # fmt: skip


class Runs:
    def __init__(self, function, *arguments):
        self.call = (function, arguments)

    def __reduce__(self):
        return self.call


def test_a_pickle_that_runs_code_is_refused_and_nothing_runs(tmp_path):
    marker = tmp_path / "ran"
    for function, arguments in [(os.system, (f"touch {marker}",)), (eval, ("1",)), (getattr, ("", "join"))]:
        path = dumped(tmp_path, [*REFS, {"more": Runs(function, *arguments)}])
        with pytest.raises(InputError, match="asks for code to be run") as refused:
            read_pickle(path)
        assert function.__name__ in str(refused.value)
    assert not marker.exists()


@pytest.mark.parametrize(
    "content",
    [
        [np.array([1, 2])],
        [np.array([REFS], dtype=object)],
        [np.str_("text")],
        [np.dtype("O"), Path("x")],
        b"cnumpy.core.multiarray\nscalar.__globals__\n.",
        b"\x80\x04\x8c\x15numpy.core.multiarray\x8c\x12scalar.__globals__\x93.",
        b"c_codecs\nencode\n(S'a'\nS'zip'\ntR.",
    ],
)
def test_other_things_than_numbers_are_refused(tmp_path, content):
    with pytest.raises(InputError, match="asks for code to be run"):
        read_pickle(dumped(tmp_path, content))


def test_a_pickle_cannot_change_what_the_next_one_meets(tmp_path):
    """BUILD sets attributes of whatever was named; the names stand for other objects in every file."""
    call = b"(S'a'\ntR."
    poison = b"c_codecs\nencode\n(N(dS'__defaults__'\n(S'zip'\ntstb"
    with pytest.raises(InputError, match="'zip'"):  # it works on its own file
        read_pickle(dumped(tmp_path, poison + call))
    assert read_pickle(dumped(tmp_path, b"c_codecs\nencode\n" + call)) == b"a"


def test_damaged_files(tmp_path):
    whole = pickle.dumps(REFS, protocol=2)
    for content in (b"", whole[:-1], whole[: len(whole) // 2], b"<html>not found</html>", b"\x80\x63.", b"(lp0\n0."):
        with pytest.raises(InputError, match="not a pickle, or a damaged one"):
            read_pickle(dumped(tmp_path, content))
    with pytest.raises(InputError, match="cannot be read"):
        read_pickle(tmp_path / "none.p")
    for content in ([], {"refs": 1}, [1, 2], "text"):
        with pytest.raises(InputError, match="not a file of referring expressions"):
            read_objects(dumped(tmp_path, content), split="train")
    (tmp_path / "bad.json").write_text("[{")
    with pytest.raises(InputError, match="cannot be read"):
        read_objects(tmp_path / "bad.json", split="train")


# --- what a file says


def test_objects_of_a_split_in_file_order(tmp_path):
    found = load(write_refs(tmp_path, REFS))
    assert [thing.ref_id for thing in found.objects] == [1, 2, 3, 4]
    assert found.image_ids == (12, 11)
    assert (found.objects[0].annotation_ids, found.objects[0].split) == ((4,), "train")
    assert [(s.sentence_id, s.text, s.raw) for s in found.objects[0].sentences] == [
        (100, "big box", "Big Box"), (101, "box on the right", "Box On The Right"),
    ]  # fmt: skip
    assert found.num_sentences == 7
    assert [thing.ref_id for thing in found.of_images([11]).objects] == [2, 3]
    assert [image.image_id for image in found.referred_images.images] == [11, 12]


def test_split_names(tmp_path):
    files = write_refs(tmp_path, REFS)
    numbers = {s: [t.ref_id for t in load(files, split=s).objects] for s in ("val", "testA", "testB", "test", "testAB")}
    assert numbers == {"val": [5], "testA": [6, 7], "testB": [7], "test": [6, 7], "testAB": [7]}
    assert not in_split("train", "testA")
    assert not in_split("trainA", "testA")
    with pytest.raises(ConfigError, match=r"'testA', 'testAB', 'train', 'val'.*'all'"):
        load(files, split="validation")


def test_truth_is_the_union_at_native_size(tmp_path):
    found = load(write_refs(tmp_path, REFS))
    expected = np.zeros(SIZES[11], bool)
    expected[10:20, 30:50] = expected[15:35, 40:55] = True
    np.testing.assert_array_equal(found.truth(found.objects[2]), expected)
    assert found.truth_area(found.objects[2]) == expected.sum()


def test_overlaps_of_polygons_as_holes_on_demand(tmp_path):
    files = write_refs(tmp_path, REFS)
    union, hole = load(files), load(files, mask_overlap="hole")
    thing = union.objects[2]
    counts = np.zeros(SIZES[11], int)
    counts[10:20, 30:50] += 1
    counts[15:35, 40:55] += 1
    np.testing.assert_array_equal(hole.truth(thing), counts == 1)
    assert (counts == 2).sum() == union.truth_area(thing) - hole.truth_area(thing) > 0
    np.testing.assert_array_equal(hole.truth(union.objects[0]), union.truth(union.objects[0]))
    with pytest.raises(ConfigError, match="union"):
        load(files, mask_overlap="sum")


def test_no_target_and_several_targets(tmp_path):
    refs = [
        ref(1, 11, [-1], "nobody"),
        ref(2, 11, [1, 2], "both men"),
        ref(3, 12, [], "an elephant"),
        ref(4, 12, [3], "small one"),
        ref(5, 12, -1, "a kite"),
    ]
    found = load(write_refs(tmp_path, refs, name="grefs(toy).json"), expressions_file=tmp_path / "grefs(toy).json")
    assert [thing.annotation_ids for thing in found.objects] == [(), (1, 2), (), (3,), ()]
    assert not found.truth(found.objects[0]).any()
    assert found.truth(found.objects[0]).shape == SIZES[11]
    both = found.truth(found.objects[1])
    assert both[6, 6]
    assert both[30, 50]
    assert found.truth_area(found.objects[1]) == both.sum() == 25 * 20 + 200 + 300 - 50


def test_refs_without_annotation_or_image_are_named_together(tmp_path):
    refs = [*REFS[:4], ref(8, 11, 99, "gone"), ref(9, 12, 1, "elsewhere"), ref(10, 12, [3, 98], "half gone")]
    with pytest.raises(AnnotationError, match="3 problems") as told:
        load(write_refs(tmp_path, refs))
    text = str(told.value)
    assert "ref 8: ref without its annotation" in text
    assert "ann_id 99" in text
    assert "ref 9: annotation of another image (expected image 12, got annotation 1 of image 11)" in text
    assert "ann_id 98" in text
    with pytest.raises(AnnotationError, match="without its image"):
        load(write_refs(tmp_path, [*REFS, ref(11, 77, 1, "nowhere")]))
    # Other splits may have what problems they like.
    assert len(load(write_refs(tmp_path, [*REFS, ref(11, 77, 1, "nowhere", split="val")])).objects) == 4


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"ref_id": 1}, "ref_id used twice"),
        ({"ref_id": "2"}, "ref_id is not a whole number"),
        ({"image_id": None}, "image_id is not a whole number"),
        ({"ann_id": "1"}, "ann_id is neither"),
        ({"ann_id": [1, None]}, "ann_id is neither"),
        ({"sentences": "left man"}, "sentences are not a list"),
        ({"sentences": [{"sent_id": 1}]}, "a sentence without text"),
        ({"sentences": [{"sent_id": 1, "sent": 5}]}, "a sentence without text"),
        ({"sentences": [{"sent": "left man"}]}, "sent_id is not a whole number"),
    ],
)
def test_wrong_entries(tmp_path, change, message):
    with pytest.raises(AnnotationError, match=message):
        load(write_refs(tmp_path, [REFS[0], {**REFS[1], **change}]))


def test_blank_sentences_are_left_out_and_counted(tmp_path, caplog):
    refs = [
        ref(1, 11, 1, "left man", ("", " ")),
        ref(2, 11, 2, ("", "\t")),
        ref(3, 12, 3, ("", "?!"), ("small", "")),
    ]
    found = load(write_refs(tmp_path, refs))
    assert [thing.ref_id for thing in found.objects] == [1, 3]
    assert [(s.text, s.raw) for s in found.objects[1].sentences] == [("?!", "?!"), ("small", "small")]
    assert (found.left_out.blank_sentences, found.left_out.objects_without_sentence) == (2, 1)
    assert "2 blank sentences and 1 objects" in caplog.text


def test_an_object_whose_mask_has_no_pixel_is_left_out(tmp_path, caplog):
    annotations = [*ANNOTATIONS, annotation(8, 11, (5, 5, 5, 9))]
    refs = [REFS[0], ref(8, 11, 8, "a line"), ref(9, 11, [1, 8], "man and line")]
    found = load(write_refs(tmp_path, refs, annotations=annotations))
    assert [(t.ref_id, t.annotation_ids) for t in found.objects] == [(1, (4,)), (9, (1,))]
    assert found.left_out.objects_without_pixel == 1
    assert "left out 1 objects whose masks cover no pixel" in caplog.text


def test_only_chosen_masks_are_parsed(tmp_path):
    """What is wrong with the annotations of other images does not matter."""
    poisoned = [entry if entry["image_id"] == 12 else {**entry, "segmentation": "x"} for entry in ANNOTATIONS]
    files = write_refs(tmp_path, REFS, annotations=poisoned)
    source = open_refer_files(**files.settings())
    chosen = source.with_masks(source.sentences.of_images([12]))
    assert chosen.truth_area(chosen.objects[0]) == 24 * 20
    assert source.sentences.coco.num_annotations == 0
    with pytest.raises(InputError, match="masks that were not read"):
        source.sentences.truth(source.sentences.objects[0])
    with pytest.raises(AnnotationError):
        source.with_masks(source.sentences)


def test_scenes(tmp_path):
    scenes = small_scenes(tmp_path / "scenes", num_train=4)
    found = load_refer_set(
        expressions_file=scenes.expressions("train"),
        annotation_file=scenes.annotations("train"),
        image_root=scenes.image_root,
        split="train",
    )
    rows = json.loads(scenes.expressions("train").read_text())
    told = [(s, thing) for thing in found.objects for s in thing.sentences]
    assert [(s.sentence_id, t.image_id, t.annotation_ids) for s, t in told] == [
        (row["sentence_id"], row["image_id"], (row["annotation_id"],)) for row in rows
    ]
    assert [(s.text, s.raw) for s, _ in told] == [(row["sentence"],) * 2 for row in rows]
    assert all(found.truth(thing).any() for thing in found.objects)
    rows[0]["annotation_id"] = 10**6
    rows[1]["sentence"] = " "
    (tmp_path / "bad.json").write_text(json.dumps(rows))
    with pytest.raises(AnnotationError, match="the sentence is empty"):
        read_objects(tmp_path / "bad.json", split="train")


# --- real text

needs_real = pytest.mark.skipif(not REAL.exists(), reason="the real expressions are not beside this checkout")


@needs_real
def test_real_pickle_says_what_its_json_says():
    from_pickle, _ = read_objects(REAL / "refs(real).p", split="all")
    from_json, _ = read_objects(REAL / "refs(real).json", split="all")
    assert from_pickle == from_json
    assert len(from_pickle) == 17
    assert {thing.split for thing in from_pickle} == {"val", "testB"}


@needs_real
def test_real_generalised_file():
    objects, _ = read_objects(REAL / "grefs(real).json", split="all")
    raw = json.loads((REAL / "grefs(real).json").read_text())
    assert len(objects) == 22
    assert [not thing.annotation_ids for thing in objects] == [row["no_target"] for row in raw]
    assert sum(not thing.annotation_ids for thing in objects) == 5


@needs_real
def test_real_expression_on_a_real_photo(tmp_path):
    """One of the real expressions is of a photo that is here with its annotation; the others are named as missing."""
    photos = SHARED / "coco_photos"
    files = {"annotation_file": photos / "instances.json", "image_root": photos / "images", "split": "val"}
    with pytest.raises(AnnotationError, match="14 problems"):
        load_refer_set(expressions_file=REAL / "refs(real).p", **files)
    here = [row for row in json.loads((REAL / "refs(real).json").read_text()) if row["image_id"] == 529]
    (tmp_path / "refs.json").write_text(json.dumps(here))
    found = load_refer_set(expressions_file=tmp_path / "refs.json", **files)
    (thing,) = found.objects
    truth = found.truth(thing)
    image = found.coco.by_id[529]
    assert truth.shape == (image.height, image.width)
    assert 0 < truth.sum() == found.truth_area(thing) < truth.size
