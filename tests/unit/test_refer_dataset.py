"""Referred objects as samples: what one is, streams that repeat themselves, masks that are not read, geometry."""

import json
import shutil

import numpy as np

import pipeline.models.mmcv_ops  # noqa: F401  isort: skip  (before mmdet)
import pytest
import torch
from mmengine.dataset.utils import pseudo_collate
from PIL import Image, ImageFilter

from pipeline.data.instance_dataset import PairedStream, StreamDataset, seeded
from pipeline.data.referring.dataset import CheckedReferDataset, ReferDataset
from pipeline.data.referring.sample import META_KEYS
from pipeline.data.referring.splits import draw_refer_split
from pipeline.data.referring.transforms import (
    FlipWithWords,
    HideReferredTruth,
    PackReferred,
    RandomBlur,
    ResizeToSquare,
)
from pipeline.data.splits import save_split
from pipeline.errors import ConfigError, InputError, TooManyQuarantinedError
from pipeline.images import read_image
from pipeline.masks.warp import map_points, warp_to_canonical, warp_to_view
from pipeline.models.mask2former import view_of
from tests.toy_refer import ANNOTATIONS, REFS, SIZES, ref, write_refs

SIZE = 32
WEAK = [{"type": ResizeToSquare, "size": SIZE}, {"type": RandomBlur}, {"type": PackReferred}]


@pytest.fixture
def files(tmp_path):
    """Four labelled objects in two images; the split calls one of the images labelled."""
    files = write_refs(tmp_path, REFS)
    found = ReferDataset(pipeline=[], **files.settings()).refer_set
    save_split(draw_refer_split(found, percent=50, seed=3), tmp_path / "split.json")
    return files


def part(files, name, pipeline=(), **changes):
    settings = files.settings(split_file=str(files.root / "split.json"), part=name, **changes)
    return {"type": ReferDataset, "pipeline": list(pipeline), **settings}


def same(one, other):
    """Whether two packed samples are equal to the bit."""
    a, b = one["data_samples"], other["data_samples"]
    assert set(a.all_keys()) == set(b.all_keys())
    return torch.equal(one["inputs"], other["inputs"]) and all(
        torch.equal(a.get(key), b.get(key)) if key not in META_KEYS else np.array_equal(a.get(key), b.get(key))
        for key in a.all_keys()
    )


# --- what a sample is


def test_epochs_of_objects_and_of_expressions(files):
    objects = ReferDataset(pipeline=[], **files.settings())
    assert [objects[i]["ref_id"] for i in range(len(objects))] == [1, 2, 3, 4]
    every = ReferDataset(pipeline=[], **files.settings(epoch="expression", sentence="all", text="raw"))
    assert [(s["ref_id"], s["sentence_id"], s["sentence"]) for s in map(every.__getitem__, range(len(every)))] == [
        (1, 100, "Big Box"), (1, 101, "Box On The Right"), (2, 200, "Left Man"), (3, 300, "Right Man In Red"),
        (3, 301, "Man On The Right"), (3, 302, "Red Shirt"), (4, 400, "Tiny Thing"),
    ]  # fmt: skip
    drawn = ReferDataset(pipeline=[], **files.settings(epoch="expression"))
    assert [drawn[i]["ref_id"] for i in range(len(drawn))] == [1, 1, 2, 3, 3, 3, 4]


def test_a_random_sentence_is_each_of_them(files):
    objects = ReferDataset(pipeline=[], **files.settings())
    with seeded([1]):
        told = [objects[2]["sentence"] for _ in range(60)]
    assert set(told) == {"right man in red", "man on the right", "red shirt"}
    assert min(map(told.count, set(told))) > 8
    with seeded([1]):
        assert [objects[2]["sentence"] for _ in range(60)] == told


def test_the_untransformed_sample(files):
    sample = ReferDataset(pipeline=[], **files.settings())[0]
    assert sample["img"].shape == (*SIZES[12], 3)
    np.testing.assert_array_equal(sample["img"], read_image(files.root / "images" / "12.png"))
    assert sample["gt_mask"].sum() == sample["gt_mask"][20:40, 20:44].sum() == 24 * 20
    assert (sample["img_id"], sample["has_target"], sample["ori_shape"]) == (12, True, SIZES[12])


def test_settings_that_do_not_go_together(files):
    for changes, message in [
        ({"sentence": "all"}, "one sample has one sentence"),
        ({"part": "labelled"}, "split_file"),
        ({"part": "unlabelled", "split_file": "x", "truth": "shown"}, "unlabelled images show no truth"),
        ({"epoch": "objects"}, "unknown epoch"),
        ({"text": "cleaned"}, "unknown text"),
        ({"mask_overlap": "sum"}, "union"),
        ({"splitfile": "x"}, "did you mean 'split_file'"),
        ({"split": "validation"}, "unknown split"),
    ]:
        with pytest.raises(ConfigError, match=message):
            ReferDataset(pipeline=[], **files.settings(**changes))
    with pytest.raises(ConfigError, match=r"no .*'split'"):
        ReferDataset(pipeline=[], expressions_file="a", annotation_file="b", image_root="c")


def test_a_packed_sample(files):
    packed = ReferDataset(pipeline=WEAK, **files.settings())[1]
    sample = packed["data_samples"]
    assert packed["inputs"].shape == (3, SIZE, SIZE)
    assert packed["inputs"].dtype == torch.uint8
    assert set(sample.metainfo_keys()) == set(META_KEYS)
    assert (sample.img_id, sample.ref_id, sample.sentence) == (11, 2, "left man")
    assert (sample.ori_shape, sample.img_shape) == (SIZES[11], (SIZE, SIZE))
    assert sample.gt_mask.shape == (SIZE, SIZE)
    assert sample.gt_mask.dtype == torch.bool


def test_generalised_samples(tmp_path):
    refs = [ref(1, 11, [-1], "nobody"), ref(2, 11, [1, 2], "both men")]
    dataset = ReferDataset(pipeline=WEAK, **write_refs(tmp_path, refs).settings())
    nobody, both = (dataset[i]["data_samples"] for i in range(2))
    assert (nobody.has_target, both.has_target) == (False, True)
    assert not nobody.gt_mask.any()
    assert both.gt_mask.any()


# --- labelled and unlabelled


def test_parts_are_the_objects_of_the_images(files):
    labelled, unlabelled = (ReferDataset(**without_type(part(files, name))) for name in ("labelled", "unlabelled"))
    split = json.loads((files.root / "split.json").read_text())
    assert {labelled.record(i)["img_id"] for i in range(len(labelled))} == set(split["labelled"])
    assert {unlabelled.record(i)["img_id"] for i in range(len(unlabelled))} == set(split["unlabelled"])
    assert len(labelled) + len(unlabelled) == 4


def without_type(config):
    return {key: value for key, value in config.items() if key != "type"}


def poison(entry):
    return {**entry, "segmentation": [[1, 2, "three"]], "area": "large"}


@pytest.mark.parametrize("how", ["removed", "poisoned", "moved"])
def test_no_mask_of_an_unlabelled_image_is_read(files, how):
    """Training samples are the same, to the bit, whatever the annotations of unlabelled images say."""

    def samples():
        paired = PairedStream(
            stream(part(files, "labelled", WEAK), name="labelled"),
            stream(part(files, "unlabelled", WEAK), name="unlabelled"),
        )
        return [paired[position] for position in range(8)]

    before = samples()
    unlabelled = set(json.loads((files.root / "split.json").read_text())["unlabelled"])
    assert any(entry["image_id"] in unlabelled for entry in ANNOTATIONS)
    changed = [
        entry if entry["image_id"] not in unlabelled else poison(entry)
        for entry in ANNOTATIONS
        if how != "removed" or entry["image_id"] not in unlabelled
    ]
    if how == "moved":
        changed = [
            {**entry, "segmentation": [[0, 0, 3, 0, 3, 3]]} if entry["image_id"] in unlabelled else entry
            for entry in ANNOTATIONS
        ]
    write_refs(files.root, REFS, annotations=changed)
    after = samples()
    for one, other in zip(before, after, strict=True):
        for branch in ("sup", "unsup"):
            assert same({k: v[branch] for k, v in one.items()}, {k: v[branch] for k, v in other.items()})
        assert "gt_mask" in one["data_samples"]["sup"]
        assert set(one["data_samples"]["unsup"].keys()) == set()


def test_hidden_truth_is_read_only_on_demand_and_shown_to_no_loss(files):
    hidden = ReferDataset(**without_type(part(files, "unlabelled", WEAK, truth="hidden")))
    whole = ReferDataset(pipeline=WEAK, **files.settings())
    by_ref = {whole[i]["data_samples"].ref_id: whole[i]["data_samples"].gt_mask for i in range(len(whole))}
    for index in range(len(hidden)):
        sample = hidden[index]["data_samples"]
        assert set(sample.keys()) == {"hidden_truth"}
        assert torch.equal(sample.hidden_truth, by_ref[sample.ref_id])


def test_unlabelled_samples_do_not_tell_whether_anything_is_meant(tmp_path):
    refs = [ref(1, 11, [-1], "nobody"), ref(2, 12, [3], "small one")]
    files = write_refs(tmp_path, refs)
    found = ReferDataset(pipeline=[], **files.settings()).refer_set
    save_split(draw_refer_split(found, percent=50, seed=0), tmp_path / "split.json")
    for truth in ("none", "hidden"):
        dataset = ReferDataset(**without_type(part(files, "unlabelled", truth=truth)))
        assert [dataset[i]["has_target"] for i in range(len(dataset))] == [True]
    (sample,) = [
        HideReferredTruth()(entry)
        for entry in map(ReferDataset(pipeline=[], **files.settings()).record, range(2))
        if not entry["has_target"]
    ]
    assert sample["has_target"]
    assert "gt_mask" not in sample
    assert not sample["hidden_mask"].any()


# --- streams


def stream(dataset, **changes):
    return {"type": StreamDataset, "dataset": dataset, "seed": 5, **changes}


def build(config):
    return StreamDataset(**without_type(config))


def test_a_stream_is_a_function_of_its_position(files):
    config = stream(part(files, "labelled", [*WEAK[:1], {"type": FlipWithWords}, *WEAK[1:]], epoch="expression"))
    forwards = [build(config)[position] for position in range(9)]
    again = build(config)
    backwards = [again[position] for position in reversed(range(9))][::-1]
    assert all(same(one, other) for one, other in zip(forwards, backwards, strict=True))
    other = build({**config, "seed": 6})
    assert not all(same(forwards[position], other[position]) for position in range(9))
    assert len({(s["data_samples"].sentence, int(s["inputs"].sum())) for s in forwards}) > 3


def test_every_object_once_a_pass(files):
    found = build(stream({"type": ReferDataset, "pipeline": WEAK, **files.settings()}))
    for number in range(3):
        assert sorted(found[4 * number + place]["data_samples"].ref_id for place in range(4)) == [1, 2, 3, 4]
    batch = pseudo_collate([found[0], found[1]])
    assert len(batch["inputs"]) == len(batch["data_samples"]) == 2


def test_repeats_are_for_whole_images(files):
    with pytest.raises(ConfigError, match="only whole images"):
        build(stream({"type": ReferDataset, "pipeline": WEAK, **files.settings()}, repeat_threshold=0.1))


def test_a_broken_image_is_passed_over_and_counted_once(files):
    (files.root / "images" / "12.png").write_bytes(b"no image")
    data = {"type": ReferDataset, "pipeline": WEAK, **files.settings()}
    allowed = build(stream(data, max_broken_share=0.5))
    assert {allowed[position]["data_samples"].img_id for position in range(8)} == {11}
    with pytest.raises(TooManyQuarantinedError, match="1 of 2 images are broken"):
        [build(stream(data, max_broken_share=0.4))[position] for position in range(4)]
    checked = CheckedReferDataset(pipeline=WEAK, max_broken_share=0.5, **files.settings())
    assert [checked[i]["data_samples"].ref_id for i in range(len(checked))] == [2, 3]
    with pytest.raises(TooManyQuarantinedError):
        CheckedReferDataset(pipeline=WEAK, **files.settings())


def test_an_empty_part_and_a_split_of_other_images(files, tmp_path):
    everything = ReferDataset(pipeline=[], **files.settings()).refer_set
    save_split(draw_refer_split(everything, percent=100), tmp_path / "whole.json")
    with pytest.raises(InputError, match="empty"):
        ReferDataset(pipeline=[], **files.settings(split_file=str(tmp_path / "whole.json"), part="unlabelled"))
    shutil.copy(files.root / "split.json", tmp_path / "other.json")
    with pytest.raises(InputError, match="made for other images"):
        ReferDataset(
            pipeline=[], **files.settings(split="testA", split_file=str(tmp_path / "other.json"), part="labelled")
        )


# --- geometry


def drawn_sample(height, width, sentence="the left one"):
    """A smooth image, so that bilinear sampling can be followed, and a mask of half planes."""
    rows, columns = np.mgrid[:height, :width]
    img = np.stack([rows * 255 / height, columns * 255 / width, np.full_like(rows, 90)], -1).astype(np.uint8)
    mask = (columns < width / 3) & (rows > height / 4)
    return {
        "img": img,
        "gt_mask": mask,
        "homography_matrix": np.eye(3, dtype=np.float32),
        "ori_shape": (height, width),
        "img_shape": (height, width),
        "sentence": sentence,
    }


@pytest.mark.parametrize(("height", "width"), [(40, 60), (33, 17), (16, 16), (7, 90)])
def test_resize_samples_masks_under_the_centres(height, width):
    sample = ResizeToSquare(16)(drawn_sample(height, width))
    mask = drawn_sample(height, width)["gt_mask"]
    rows = ((np.arange(16) + 0.5) * height / 16).astype(int)
    columns = ((np.arange(16) + 0.5) * width / 16).astype(int)
    np.testing.assert_array_equal(sample["gt_mask"], mask[rows][:, columns])
    pillow = Image.fromarray(mask.astype(np.uint8) * 255).resize((16, 16), Image.Resampling.NEAREST)
    np.testing.assert_array_equal(sample["gt_mask"], np.asarray(pillow) > 0)  # the released rule for the truth
    assert sample["img_shape"] == sample["img"].shape[:2] == (16, 16)
    np.testing.assert_allclose(map_points(np.array([[0, 0], [width, height]]), sample["homography_matrix"])[1], 16)


@pytest.mark.parametrize("flip", [{"horizontal": 1.0}, {"horizontal": 0.0, "vertical": 1.0}, {"horizontal": 0.0}])
def test_homography_is_where_pixels_and_masks_went(flip):
    height, width = 40, 60
    sample = FlipWithWords(**flip)(ResizeToSquare(SIZE)(drawn_sample(height, width)))
    original = drawn_sample(height, width)
    np.testing.assert_array_equal(
        sample["gt_mask"], warp_to_view(original["gt_mask"][None], sample["homography_matrix"], view_hw=(SIZE, SIZE))[0]
    )
    packed = PackReferred()({**sample, **dict.fromkeys(set(META_KEYS) - set(sample), 0)})["data_samples"]
    view = view_of({**packed.metainfo, "batch_input_shape": packed.img_shape})
    assert (view.canonical_hw, view.valid_hw) == ((height, width), (SIZE, SIZE))
    back, visible = warp_to_canonical(
        sample["img"].transpose(2, 0, 1).astype(np.float32),
        view.homography.numpy(),
        view_hw=view.valid_hw,
        canonical_hw=view.canonical_hw,
    )
    assert visible.all()
    inner = (slice(2, -2), slice(2, -2))
    assert np.abs(back.transpose(1, 2, 0) - original["img"])[inner].max() < 4.5  # a gradient of up to 6 a pixel


def test_a_hidden_truth_goes_with_its_image():
    whole = drawn_sample(8, 8, "the left one")
    hidden = FlipWithWords(horizontal=1.0)(HideReferredTruth()(drawn_sample(8, 8, "the left one")))
    assert "gt_mask" not in hidden
    assert not np.array_equal(whole["gt_mask"], whole["gt_mask"][:, ::-1])
    np.testing.assert_array_equal(hidden["hidden_mask"], whole["gt_mask"][:, ::-1])


def test_flips_exchange_words_or_do_not_happen():
    flip = FlipWithWords(horizontal=1.0)
    told = flip(drawn_sample(8, 8, "the left one"))
    assert told["sentence"] == "the right one"
    np.testing.assert_array_equal(told["img"], drawn_sample(8, 8)["img"][:, ::-1])
    doubtful = flip(drawn_sample(8, 8, "right behind the man"))
    np.testing.assert_array_equal(doubtful["img"], drawn_sample(8, 8)["img"])
    assert doubtful["sentence"] == "right behind the man"
    np.testing.assert_array_equal(doubtful["homography_matrix"], np.eye(3))
    upside = FlipWithWords(horizontal=0.0, vertical=1.0)(drawn_sample(8, 8, "the top star"))
    assert upside["sentence"] == "the bottom star"
    with seeded([2]):
        told = [FlipWithWords()(drawn_sample(8, 8))["sentence"] for _ in range(80)]
    assert 20 < told.count("the right one") < 60


def test_blur_is_pillows_half_of_the_time():
    before = np.random.default_rng(0).integers(0, 256, (9, 9, 3), np.uint8)
    blurred = np.asarray(Image.fromarray(before).filter(ImageFilter.GaussianBlur(1)))
    assert (blurred != before).any()
    with seeded([3]):
        outcomes = [RandomBlur()({"img": before})["img"] for _ in range(80)]
    changed = [image for image in outcomes if (image != before).any()]
    assert 20 < len(changed) < 60
    assert all((image == blurred).all() for image in changed)


def test_wrong_settings_of_transforms():
    for make in (lambda: ResizeToSquare(0), lambda: RandomBlur(1.5), lambda: FlipWithWords(vertical=-1)):
        with pytest.raises(ConfigError):
            make()
