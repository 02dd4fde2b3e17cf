"""The table on real images: tiles hold what the images hold, labels are drawn by image, and what tasks are told."""

import json
from contextlib import nullcontext
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from jobs.ablation.plan import Planner
from jobs.measurements import nuclei
from jobs.measurements.nuclei import (
    MIN_PIXELS,
    NUCLEI,
    SCALE,
    NucleiStudy,
    claim,
    prepare,
    refuse_full_tiles,
    tiles_of,
    write_tiles,
)
from pipeline.data.coco import load_coco, make_coco, write_coco
from pipeline.data.coco_entries import Annotation, Category, CocoImage
from pipeline.data.splits import load_split
from pipeline.errors import InputError
from pipeline.masks import rle
from pipeline.stores.proposal_store import ProposalStore

HEIGHT, WIDTH = 130, 300
"""One row of two tiles."""


def annotation(number, image_id, mask, *, iscrowd=False):
    code = rle.encode(mask)
    return Annotation(number, image_id, 7, code, float(mask.sum()), rle.bbox_xywh(code), iscrowd)


def rectangle(top, left, height, width):
    mask = np.zeros((HEIGHT, WIDTH), bool)
    mask[top : top + height, left : left + width] = True
    return mask


@pytest.fixture(scope="module")
def cells(tmp_path_factory):
    """Eight RGBA images with an object in each half, one across the middle, and one that leaves a small rest."""
    root = tmp_path_factory.mktemp("cells")
    rng = np.random.default_rng(0)
    images, entries = [], []
    for image_id in range(1, 9):
        pixels = rng.integers(0, 60, (HEIGHT, WIDTH, 4), np.uint8)
        objects = [rectangle(10, 10, 30, 30), rectangle(60, 200, 30, 40), rectangle(90, 140, 20, 30)]
        objects.append(rectangle(5, 148, 3, 50))
        for mask in objects:
            pixels[mask, :3] = 200
            entries.append(annotation(len(entries) + 1, image_id, mask))
        pixels[..., 3] = 255
        Image.fromarray(pixels).save(root / f"{image_id}.png")
        images.append(CocoImage(image_id, f"{image_id}.png", HEIGHT, WIDTH))
    write_coco(make_coco(root, images, [Category(7, "nucleus")], entries), root / "instances.json")
    return load_coco(root / "instances.json", root)


def study(cells, work_dir, **options):
    return NucleiStudy(NUCLEI, "short", work_dir=work_dir, source=cells, **{"num_seeds": 2, "percent": 20.0, **options})


def test_tiles_are_equal_parts_doubled_with_what_they_show_of_the_objects(cells):
    left, right = tiles_of(cells, cells.images[0])
    assert left.pixels.shape == right.pixels.shape == (SCALE * HEIGHT, SCALE * WIDTH // 2, 3)
    assert (left.column, right.column) == (0, 1)
    assert [int(shown.mask.sum()) for shown in left.objects] == [4 * 900, 4 * 20 * 10]  # of the last 6 pixels: too few
    assert [int(shown.mask.sum()) for shown in right.objects] == [4 * 1200, 4 * 20 * 20, 4 * 3 * 48]
    assert 6 < MIN_PIXELS <= 200
    assert {shown.category_id for shown in left.objects} == {7}
    for tile in (left, right):
        for shown in tile.objects:
            assert tile.pixels[shown.mask].mean() > 180  # the object is where its mask says


def test_tiles_of_evaluated_images_are_kept_apart_and_written_once(cells, tmp_path):
    out = tmp_path / "tiles"
    write_tiles(cells, (2, 5), out)
    train, val = (load_coco(out / f"{name}.json", out / "images") for name in ("train", "val"))
    assert (len(train.images), len(val.images)) == (12, 4)
    assert {image.file_name[:6] for image in val.images} == {"000002", "000005"}
    assert train.num_annotations == 6 * 5
    before = (out / "train.json").stat().st_mtime_ns
    write_tiles(cells, (2, 5), out)
    assert (out / "train.json").stat().st_mtime_ns == before


def test_crowds_stay_crowds(cells, tmp_path):
    entries = [annotation(1, 1, rectangle(10, 10, 30, 30)), annotation(2, 1, rectangle(60, 60, 30, 30), iscrowd=True)]
    coco = make_coco(cells.image_root, cells.images[:1], cells.categories, entries)
    write_tiles(coco, (), tmp_path / "tiles")
    written = json.loads((tmp_path / "tiles/train.json").read_text())["annotations"]
    assert [entry["iscrowd"] for entry in written] == [0, 1]


def test_an_image_of_another_size_is_refused(cells):
    wrong = make_coco(cells.image_root, [CocoImage(1, "1.png", HEIGHT, WIDTH - 1)], cells.categories, [])
    with pytest.raises(InputError, match=r"image size differs[\s\S]*1.png"):
        list(tiles_of(wrong, wrong.images[0]))


def test_a_work_directory_is_for_one_data_set(cells, tmp_path):
    claim(study(cells, tmp_path))
    claim(study(cells, tmp_path, num_seeds=3, percent=30.0))
    other = make_coco(cells.image_root, cells.images[:4], cells.categories, [])
    with pytest.raises(InputError, match=r"other images[\s\S]*another --work-dir"):
        claim(study(other, tmp_path))


def test_tiles_with_more_objects_than_queries_are_refused(cells, tmp_path, monkeypatch):
    asked = study(cells, tmp_path)
    write_tiles(cells, (2,), asked.scenes)
    for most, is_refused in ((3, False), (2, True)):
        monkeypatch.setattr(nuclei, "open_config", lambda _path, _options, most=most: SimpleNamespace(num_queries=most))
        with pytest.raises(InputError, match=r"more objects than[\s\S]*at most 2") if is_refused else nullcontext():
            refuse_full_tiles(asked)


def test_an_interrupted_cut_is_begun_again(cells, tmp_path, monkeypatch):
    out = tmp_path / "tiles"
    with monkeypatch.context() as patched:
        patched.setattr(nuclei, "write_coco", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            write_tiles(cells, (2,), out)
    assert not out.exists()
    write_tiles(cells, (2,), out)
    assert sorted(path.name for path in out.iterdir()) == ["images", "tiles.tsv", "train.json", "val.json"]


def test_labels_are_drawn_by_image_and_the_store_holds_every_tile(cells, tmp_path, monkeypatch):
    monkeypatch.setattr(nuclei, "CLICKS", 2)
    asked = study(cells, tmp_path, num_seeds=1)
    prepare(asked)
    train = load_coco(asked.scenes / "train.json", asked.scenes / "images")
    split = load_split(asked.split(1), train)
    names = [train.by_id[number].file_name[:6] for number in split.labelled]
    assert len(names) == 2  # the two tiles of one image: a fifth of six
    assert len(set(names)) == 1
    assert len(split.unlabelled) == 10
    library = ProposalStore.open(str(asked.store(1)))
    assert sorted(library.image_ids()) == sorted(image.image_id for image in train.images)
    with pytest.raises(TypeError, match="NucleiStudy"):
        prepare(object())


def test_every_row_is_told_of_tiles_labels_and_steps(cells, tmp_path):
    asked = study(cells, tmp_path, teacher_steps=5, student_steps=4)
    assert (asked.size.num_train, asked.size.num_val) == (6, 2)
    jobs = Planner(asked).jobs()
    assert len(jobs) == 2 * len(NUCLEI.cells)
    for job in jobs:
        for step in job.steps:
            options = step.task.words[step.task.words.index("--cfg-options") :]
            assert f"root={asked.scenes}" in options
            assert f"split_file={asked.split(job.seed)}" in options
            if step.stage != "labels":
                assert f"max_iters={5 if step.stage == 'teacher' else 4}" in options
    teachers = {job.steps[0].task.name for job in jobs if job.cell.student}
    assert len(teachers) == 2  # one structural teacher for each seed


def test_several_classes_are_refused(cells, tmp_path):
    file = tmp_path / "two.json"
    content = json.loads((cells.image_root / "instances.json").read_text())
    content["categories"].append({"id": 8, "name": "cytoplasm"})
    file.write_text(json.dumps(content))
    with pytest.raises(SystemExit, match="one class"):
        nuclei.main([str(file), "--image-root", str(cells.image_root)])
