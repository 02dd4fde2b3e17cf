"""The scenes on disk: complete, deterministic, disjoint, atomic; and their pictures."""

import json
from dataclasses import replace

import numpy as np
import pytest

from pipeline.data.coco import check_image_files, load_coco
from pipeline.errors import ConfigError, InputError
from pipeline.images import read_image
from pipeline.masks import rle
from pipeline.scenes import dataset
from pipeline.scenes.cache import draw_by_index
from pipeline.scenes.contact_sheet import draw_contact_sheet, draw_outlines
from pipeline.scenes.dataset import CLASS_NAMES, VAL_FIRST_ID, read_expressions, write_scenes
from pipeline.scenes.expressions import describe, scene_objects
from pipeline.scenes.render import Scene, SceneInstance, SceneStyle

STYLE = SceneStyle(size=96)


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    return write_scenes(tmp_path_factory.mktemp("s") / "scenes", num_train=6, num_val=3, seed=7, style=STYLE)


def test_files_hold_exactly_the_drawn_scenes(written):
    for split, count, seed, first_id in (("train", 6, 7, 1), ("val", 3, 1_000_007, VAL_FIRST_ID)):
        coco = load_coco(written.annotations(split), written.image_root)
        assert check_image_files(coco, decode=True) == []
        assert [image.image_id for image in coco.images] == list(range(first_id, first_id + count))
        assert tuple(category.name for category in coco.categories) == CLASS_NAMES
        by_id = {}
        for index, image in enumerate(coco.images):
            scene = draw_by_index(index, group="benchmark", style=STYLE, seed=seed)
            np.testing.assert_array_equal(read_image(coco.path_of(image)), scene.image)
            for annotation, instance in zip(coco.annotations[image.image_id], scene.instances, strict=True):
                np.testing.assert_array_equal(rle.decode(annotation.rle), instance.mask)
                assert CLASS_NAMES[coco.labels[annotation.category_id]] == instance.family
                assert annotation.area == instance.mask.sum()
                by_id[annotation.annotation_id] = annotation
        expressions = read_expressions(written.expressions(split))
        assert {e.split for e in expressions} == {split}
        assert all(by_id[e.annotation_id].image_id == e.image_id for e in expressions)
        assert all(e.ref_id == e.annotation_id for e in expressions)
        assert [e.sentence_id for e in expressions] == list(range(1, len(expressions) + 1))


def test_expressions_speak_of_the_right_object(written):
    coco = load_coco(written.annotations("train"), written.image_root)
    expressions = read_expressions(written.expressions("train"))
    for index, image in enumerate(coco.images):
        objects = scene_objects(draw_by_index(index, group="benchmark", style=STYLE, seed=7))
        expected = describe(objects, np.random.default_rng([7, index, 1]))
        ids = [annotation.annotation_id for annotation in coco.annotations[image.image_id]]
        ours = [(ids.index(e.annotation_id), e.sentence) for e in expressions if e.image_id == image.image_id]
        assert ours == expected


def test_same_settings_same_bytes_and_more_scenes_change_no_earlier_one(written, tmp_path):
    again = write_scenes(tmp_path / "again", num_train=6, num_val=3, seed=7, style=STYLE)
    names = sorted(p.relative_to(written.root) for p in written.root.rglob("*") if p.is_file())
    assert len(names) == 9 + 5
    assert names == sorted(p.relative_to(again.root) for p in again.root.rglob("*") if p.is_file())
    for name in names:
        assert (written.root / name).read_bytes() == (again.root / name).read_bytes()
    more = write_scenes(tmp_path / "more", num_train=7, num_val=3, seed=7, style=STYLE)
    for name in names:
        if name.suffix == ".png" or name.name == "val.json":
            assert (written.root / name).read_bytes() == (more.root / name).read_bytes()


def test_splits_and_seeds_share_no_picture(written, tmp_path):
    other = write_scenes(tmp_path / "other", num_train=6, num_val=3, seed=8, style=STYLE)
    pictures = [p.read_bytes() for files in (written, other) for p in sorted(files.image_root.rglob("*.png"))]
    assert len(set(pictures)) == 18


def test_finished_folder_is_left_alone(written, monkeypatch):
    monkeypatch.setattr(dataset, "_write_split", None)  # anything drawn would fail
    before = {p: p.stat().st_mtime_ns for p in written.root.rglob("*")}
    assert write_scenes(written.root, num_train=6, num_val=3, seed=7, style=STYLE) == written
    assert {p: p.stat().st_mtime_ns for p in written.root.rglob("*")} == before


@pytest.mark.parametrize(
    ("change", "named"),
    [({"seed": 8}, "'seed': 8"), ({"num_val": 4}, "'num_val': 4"), ({"style": replace(STYLE, size=64)}, "'size': 64")],
)
def test_other_settings_are_refused(written, change, named):
    with pytest.raises(InputError, match="other settings") as caught:
        write_scenes(written.root, **{"num_train": 6, "num_val": 3, "seed": 7, "style": STYLE, **change})
    assert named in str(caught.value)


def test_foreign_folder_is_refused_and_an_empty_one_is_used(tmp_path):
    settings = {"num_train": 1, "num_val": 1, "seed": 0, "style": STYLE}
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("years of work")
    with pytest.raises(InputError, match="something else"):
        write_scenes(tmp_path / "mine", **settings)
    assert (tmp_path / "mine" / "thesis.txt").exists()
    (tmp_path / "empty").mkdir()
    assert write_scenes(tmp_path / "empty", **settings).marker.exists()


def test_interrupted_writing_leaves_nothing(tmp_path):
    def stop(done, total):
        assert total == 4
        if done == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_scenes(tmp_path / "scenes", num_train=2, num_val=2, seed=0, style=STYLE, progress=stop)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("change", [{"seed": -1}, {"seed": 1_000_000}, {"num_train": 0}, {"num_val": 2_000_000}])
def test_settings_out_of_range(tmp_path, change):
    with pytest.raises(ConfigError, match="out of range"):
        write_scenes(tmp_path / "s", **{"num_train": 1, "num_val": 1, "seed": 0, **change})


def test_marker_names_what_it_was_made_from(written):
    marker = json.loads(written.marker.read_text())
    assert (marker["seed"], marker["num_train"], marker["style"]["size"]) == (7, 6, 96)
    for split in ("train", "val"):
        coco = load_coco(written.annotations(split), written.image_root)
        assert marker["fingerprints"][split] == coco.fingerprint


def test_expressions_that_are_none(tmp_path):
    (tmp_path / "e.json").write_text('[{"ref_id": 1}]')
    with pytest.raises(InputError, match="cannot be read"):
        read_expressions(tmp_path / "e.json")
    with pytest.raises(InputError, match="cannot be read"):
        read_expressions(tmp_path / "none.json")


def ring_scene(size=20):
    mask = np.zeros((size, size), bool)
    mask[4:16, 4:16] = True
    mask[8:12, 8:12] = False
    return Scene(np.full((size, size, 3), 90, np.uint8), [SceneInstance("ring", "red", mask)])


def test_outlines_follow_the_edge_and_the_hole():
    scene = ring_scene()
    drawn = draw_outlines(scene.image, scene.instances[0].mask[None], [(255, 0, 0)])
    red = (drawn == [255, 0, 0]).all(-1)
    assert red[4, 4:16].all()
    assert red[4:16, 15].all()
    assert red[9, 7]  # the hole
    assert not red[6, 6]
    assert (drawn[0, 0] == 90).all()
    assert (scene.image == 90).all()
    assert draw_outlines(scene.image, np.zeros((0, 20, 20), bool), [], scale=2).shape == (40, 40, 3)


def test_contact_sheet_places_tiles():
    sheet = draw_contact_sheet([ring_scene()] * 5, columns=3, scale=2)
    side, gap, legend = 40, 6, 26
    assert sheet.shape == (2 * side + 3 * gap + legend, 3 * side + 4 * gap, 3)
    first = sheet[gap : gap + side, gap : gap + side]
    fifth = sheet[2 * gap + side : 2 * gap + 2 * side, 2 * gap + side : 2 * gap + 2 * side]
    np.testing.assert_array_equal(first, fifth)
    empty = sheet[2 * gap + side : 2 * gap + 2 * side, 3 * gap + 2 * side : 3 * gap + 3 * side]
    assert (empty == 32).all()
