"""The pictures of S4M: what they show is what the runs hold, and every panel has its words."""

import sys
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from jobs.measurements import figures
from jobs.measurements.figure_pages import outlined, page, save
from jobs.measurements.figures import Labelled, Runs, arp_figure, label_images, refinement_figure, similarity_figure
from jobs.measurements.similarity_rows import deepest_point, network_rows
from jobs.networks import build_transforms
from pipeline.data.coco import make_coco
from pipeline.data.coco_entries import Annotation, Category, CocoImage
from pipeline.errors import CheckpointError, InputError
from pipeline.masks import rle
from pipeline.refine.interface import TeacherMasks

BLUE = 130, 170, 200
"""Lighter than ink, and no grey: letters have grey edges."""


pytestmark = pytest.mark.usefixtures("one_thread")


def test_a_page_has_titles_above_captions_below_and_a_note():
    blue = np.full((40, 60, 3), BLUE, np.uint8)
    sheet = page(("first", "second"), [[(blue, "a"), (blue[:20], "b")], [(blue, ""), (blue, "d")]], "a note " * 20)
    places = np.argwhere((sheet == BLUE).all(-1))
    left, right = 10, 10 + 60 + 8
    top = places[:, 0].min()
    assert (sheet[top : top + 40, left : left + 60] == BLUE).all()
    assert (sheet[top : top + 20, right : right + 60] == BLUE).all()
    ink = (sheet < 100).any(-1)
    assert ink[:top, left : left + 60].any()
    assert ink[:top, right : right + 60].any()
    assert ink[top + 40 : top + 54, left : left + 20].any()
    assert ink[top + 20 : top + 36, right : right + 20].any()  # below a smaller picture its words are nearer
    second = places[places[:, 0] > top + 45][:, 0].min()
    assert not ink[second + 40 : second + 54, left : left + 60].any()  # no caption there
    assert ink[second + 60 :].any(axis=1).sum() > 15  # two lines of the note, at least


def test_outlines_keep_to_the_masks_at_another_size():
    image, mask = np.zeros((50, 100, 3), np.uint8), np.zeros((1, 50, 100), bool)
    mask[0, 10:30, 20:60] = True
    picture = outlined(image, mask, np.array([1]), side=200)
    assert picture.shape == (100, 200, 3)
    red = np.argwhere((picture == (255, 64, 64)).all(-1))
    np.testing.assert_allclose([red.min(0), red.max(0)], [[20, 40], [59, 119]], atol=2)
    np.testing.assert_array_equal(outlined(image, mask[:0], np.zeros(0, np.int64), side=200), 0)


def test_a_palette_keeps_a_picture_of_few_colours(tmp_path):
    picture = np.zeros((30, 30, 3), np.uint8)
    picture[:10], picture[10:20] = (255, 0, 0), (0, 0, 255)
    save(picture, tmp_path / "deep/x.png")
    with Image.open(tmp_path / "deep/x.png") as read:
        assert read.mode == "P"
        np.testing.assert_array_equal(read.convert("RGB"), picture)


def test_the_point_is_the_deepest_and_its_map_is_summed_up():
    mask = np.zeros((16, 16), bool)
    mask[0:8, 0:8] = True
    x, y = deepest_point(mask)
    assert 2 < x < 6
    assert 2 < y < 6
    row = np.full((4, 4), -0.5, np.float32)
    row[:2, :2] = 0.75
    assert figures._inside_outside(row, mask) == "object 0.75, rest -0.50"


def test_the_command_draws_all_three(demo, tmp_path, monkeypatch):
    monkeypatch.setattr(figures, "SIDE", 64)
    also = [f"{name}={demo.root / name}" for name in figures.NAMES]
    monkeypatch.setattr(sys, "argv", ["figures", str(demo.root), str(tmp_path / "out"), "--also", *also])
    figures.main()
    sizes = {path.name: Image.open(path).size for path in sorted((tmp_path / "out").iterdir())}
    assert set(sizes) == {"s4m_fig4.png", "s4m_fig7.png", "s4m_figA4.png"}
    assert sizes["s4m_fig4.png"][0] == sizes["s4m_figA4.png"][0] == 4 * (figures.SIDE + 8) - 8 + 20
    assert sizes["s4m_fig7.png"][1] > 6 * 64  # four and two rows of 64 pixels


@pytest.mark.parametrize("also", [["demo"], ["teacher_supervised=a"], [f"{name}=" for name in figures.NAMES]])
def test_other_runs_are_named_each(also, tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["figures", str(tmp_path), str(tmp_path / "out"), "--also", *also])
    with pytest.raises(SystemExit, match=r"which runs[\s\S]*student_cpi_u=RUN_DIR"):
        figures.main()


def test_what_is_shown_is_what_the_runs_say(demo):
    runs = Runs.of_demo(demo.root)
    shown = label_images(runs, 2)
    counts = [len(each.teacher) for each in shown]
    assert counts == sorted(counts, reverse=True)
    assert counts[1] > 0
    for each in shown:
        assert set(each.refined) == {"points", "CPI-U"}
        assert all(len(masks) == len(each.teacher) for masks in each.refined.values())
        assert not np.array_equal(each.refined["points"], each.teacher.masks)
    network = runs.network("teacher_structural")
    image = runs.unlabelled().record(0)["img"]
    ready = build_transforms(runs.config("teacher_structural"))
    (row,) = network_rows(network, ready, image, [5], (4, 4))
    assert row.shape == (4, 4)
    assert row[1, 1] == pytest.approx(1, abs=1e-5)  # a cell is like itself
    with pytest.raises(CheckpointError, match="student_points"):
        runs.network("student_points")


def squares(*corners, side=20):
    masks = np.zeros((len(corners), 64, 64), bool)
    for mask, (top, left) in zip(masks, corners, strict=True):
        mask[top : top + side, left : left + side] = True
    return masks


def labelled(value, *corners):
    masks = squares(*corners)
    teacher = TeacherMasks(
        masks.astype(np.float32), np.ones((64, 64), bool), np.arange(len(masks)), np.ones(len(masks), np.float32)
    )
    image = np.full((64, 64, 3), value, np.uint8)
    return Labelled(image, masks, np.arange(len(masks)), teacher, {"points": masks, "CPI-U": masks})


def test_arp_pastes_the_second_into_the_first(monkeypatch):
    pages = []
    monkeypatch.setattr(figures, "page", lambda titles, rows, note: pages.append(rows))
    monkeypatch.setattr(figures, "strong_view", lambda image: image)
    one, other = labelled(50, (0, 0), (40, 40)), labelled(200, (0, 0))
    arp_figure([one, other, other, one])
    static, moved = pages[0]
    assert [caption for _, caption in static[:3]] == [
        "2 pseudo-labels",
        "1 pseudo-labels",
        "static: 2 labels, 1 covered",
    ]
    assert moved[2][1].startswith("moved: ")
    student = static[3][0]
    assert (student[30, 30] == 200).all()  # inside the pasted square, at the figure's scale
    assert (student[-5, 5] == 50).all()


def test_captions_of_refinement_tell_overlap_with_the_truth(monkeypatch):
    pages = []
    monkeypatch.setattr(figures, "page", lambda titles, rows, note: pages.append(rows))
    each = labelled(50, (0, 0), (40, 40))
    half = each.teacher.masks.copy()
    half[0, 10:] = False
    refinement_figure([replace(each, refined={"points": half, "CPI-U": ~each.teacher.masks})])
    captions = ["2 objects", "2 masks, IoU 1.00", "2 masks, IoU 0.75", "2 masks, IoU 0.11"]
    assert [caption for _, caption in pages[0][0]] == captions
    assert figures._quality(half[:0], each.truth) == "no mask"


def test_the_similarity_page_is_of_images_with_an_object_of_one_percent(demo, monkeypatch):
    """Crowds are no objects; where there is none the page is refused."""
    image = CocoImage(1, "a.png", 100, 100)

    def of(side, *, iscrowd=False):
        code = rle.encode(np.pad(np.ones((side, side), bool), (0, 100 - side)))
        entry = Annotation(1, 1, 1, code, float(side * side), rle.bbox_xywh(code), iscrowd)
        return make_coco("", [image], [Category(1, "a")], [entry])

    shown = [figures._shows_an_object(coco, image) for coco in (of(10), of(9), of(50, iscrowd=True))]
    assert shown == [True, False, False]
    monkeypatch.setattr(figures, "_LEAST_SHARE", 1.1)
    with pytest.raises(InputError, match="no unlabelled image shows"):
        similarity_figure([Runs.of_demo(demo.root)], figures.build_backend("scenes-nano"), images=[2])


def test_the_similarity_page_has_a_row_for_each_image(demo, monkeypatch):
    pages = []
    monkeypatch.setattr(figures, "page", lambda titles, rows, note: pages.append((titles, rows)))
    similarity_figure([Runs.of_demo(demo.root)], figures.build_backend("scenes-nano"), images=[2])
    titles, rows = pages[0]
    assert [len(row) for row in rows] == [len(titles)] * 2
    maps = [picture for picture, _ in rows[0][1:]]
    assert all(picture.shape == (64, 64, 3) for picture in maps)
    assert len({picture.tobytes() for picture in maps}) == 4
