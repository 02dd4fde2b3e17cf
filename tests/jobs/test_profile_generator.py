import json
import sys
from importlib.resources import files

import numpy as np
import pytest
from PIL import Image

from jobs.bench.generators import scene
from jobs.measurements import generator_profile as profile_generator
from jobs.measurements import prompt_budget
from jobs.measurements.generator_profile import STAGES, profile
from jobs.settings import SamSettings
from pipeline.data.coco import load_images
from pipeline.errors import InputError
from pipeline.sam.generator_settings import GeneratorSettings
from pipeline.sam.sam2_backend import build_backend

SETTINGS = GeneratorSettings(points_per_side=4, pred_iou_threshold=0.4, stability_score_threshold=0.5)


@pytest.fixture(scope="module")
def backend():
    return build_backend("scenes-nano")


def test_every_stage_of_both_ways_takes_time(backend):
    row = profile(backend, scene((96, 96)), SETTINGS, repeats=1)
    assert row["image"] == "96 x 96"
    for way in ("ours", "stock"):
        assert list(row[way]) == list(STAGES)
        assert all(seconds > 0 for seconds in row[way].values()), row[way]


def test_the_picture_is_drawn(tmp_path, monkeypatch, backend):
    row = {"image": "10 x 10", "ours": dict.fromkeys(STAGES, 0.1), "stock": dict.fromkeys(STAGES, 0.3)}
    monkeypatch.setattr(profile_generator, "profile", lambda *args, **kwargs: row)
    arguments = ["--out", str(tmp_path / "stages.json"), "--picture", str(tmp_path / "deep/stages.png")]
    monkeypatch.setattr(sys, "argv", ["profile_generator", *arguments])
    profile_generator.main()
    assert Image.open(tmp_path / "deep/stages.png").width > 500
    assert json.loads((tmp_path / "stages.json").read_text())["sizes"] == [row] * 3


def test_the_prompt_budget_counts_clicks_and_recall():
    counting = prompt_budget.counting(SamSettings("scenes-nano"))
    few = prompt_budget.measure(counting, SETTINGS, prompt_budget.scenes(2, seed=3))
    assert few["clicks"] == 16
    assert 0 <= few["recall at 0.75"] <= few["recall at 0.5"] <= 100
    assert few["seconds"] > 0
    assert few["proposals"] > 0
    again = prompt_budget.measure(counting, SETTINGS, prompt_budget.scenes(2, seed=3))
    assert again["recall at 0.5"] == few["recall at 0.5"]


def _scenes_as_coco(folder, num=3):
    """A COCO file of scenes with all their objects, and of an image without one."""
    (folder / "images").mkdir(parents=True)
    images, annotations = [], []
    for number, (pixels, codes) in enumerate(prompt_budget.scenes(num, seed=5), start=1):
        Image.fromarray(pixels).save(folder / f"images/{number}.png")
        height, width = pixels.shape[:2]
        images.append({"id": number, "file_name": f"{number}.png", "height": height, "width": width})
        annotations += [
            {"id": len(annotations) + k, "image_id": number, "category_id": 1, "iscrowd": 0, "segmentation": dict(code)}
            for k, code in enumerate(codes, start=1)
        ]
    Image.fromarray(np.zeros((96, 96, 3), np.uint8)).save(folder / "images/none.png")
    images.append({"id": 99, "file_name": "none.png", "height": 96, "width": 96})
    content = {"images": images, "annotations": annotations, "categories": [{"id": 1, "name": "thing"}]}
    (folder / "train.json").write_text(json.dumps(content))


def _of_own(folder, *options):
    own = [f"images={folder}/train.json", f"image_root={folder}/images", "split=None"]
    words = ["--config", str(prompt_budget.SCENES), "--out", str(folder / "deep/curve.json"), "--images", "2"]
    return [*words, "--seeds", "2", *(word for each in own for word in ("--cfg-options", each)), *options]


def test_a_recall_curve_of_several_sams_on_ones_own_labelled_images(tmp_path):
    _scenes_as_coco(tmp_path)
    copy = tmp_path / "copy.safetensors"
    copy.write_bytes((files("pipeline") / "assets/scenes_nano.safetensors").read_bytes())
    prompt_budget.main(
        _of_own(tmp_path, "--grid", "4", "--grid", "8:4", "--sam", "scenes-nano", "--sam", f"{copy}=scenes-nano")
    )
    result = json.loads((tmp_path / "deep/curve.json").read_text())
    assert result["images"] == f"{tmp_path}/train.json"
    assert (result["images of each seed"], result["seeds"]) == (2, 2)
    rows = result["mean and deviation over seeds"]
    grids = [(row["sam"], row["points_per_side"], row["coarse_points_per_side"]) for row in rows]
    assert grids == [(sam, *grid) for sam in ("scenes-nano", "copy.safetensors") for grid in ((4, None), (8, 4))]
    assert rows[0]["clicks"] == [16, 0]
    assert 16 < rows[1]["clicks"][0] <= 16 + 64
    assert rows[1]["recall at 0.5"][0] > 0
    for mine, theirs in zip(rows[:2], rows[2:], strict=True):  # the same weights by another name
        assert mine["recall at 0.5"] == theirs["recall at 0.5"]
        assert mine["proposals"] == theirs["proposals"]


def test_images_without_objects_have_no_part_in_the_recall(tmp_path):
    _scenes_as_coco(tmp_path)
    draw = prompt_budget.labelled_images(load_images(tmp_path / "train.json", tmp_path / "images"))
    assert sum(1 for _ in draw(50, 0)) == 3
    first = [image.sum() for image, _ in draw(3, 0)]
    assert first == [image.sum() for image, _ in draw(3, 0)]
    assert all(masks for _, masks in draw(3, 0))


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--grid", "16:"], "CLICKS or CLICKS:COARSE"),
        (["--grid", "many"], "many"),
        (["--grid", "4:8"], "coarse_points_per_side"),
        (["--sam", "sam9"], "unknown SAM"),
        (["--cfg-options", "images=nowhere.json"], "nowhere.json"),
    ],
)
def test_what_cannot_be_measured_is_named_before_anything_is_written(tmp_path, options, said):
    _scenes_as_coco(tmp_path, num=1)
    with pytest.raises(SystemExit, match=said):
        prompt_budget.main(_of_own(tmp_path, "--grid", "2", *options))
    assert not (tmp_path / "deep").exists()


def test_recall_needs_objects(tmp_path):
    Image.fromarray(np.zeros((9, 9, 3), np.uint8)).save(tmp_path / "a.png")
    options = ["--config", str(prompt_budget.SCENES), "--out", str(tmp_path / "a.json")]
    own = [f"images={tmp_path}", f"image_root={tmp_path}", "split=None"]
    with pytest.raises(SystemExit, match="recall needs objects"):
        prompt_budget.main([*options, *(word for each in own for word in ("--cfg-options", each))])


def test_images_of_ones_own_are_profiled_folder_by_folder(tmp_path, monkeypatch, backend):
    rng = np.random.default_rng(0)
    for folder, sizes in (("cells", [(40, 50), (60, 50), (40, 40)]), ("street/images", [(20, 100)])):
        (tmp_path / folder).mkdir(parents=True)
        for number, size_hw in enumerate(sizes):
            Image.fromarray(rng.integers(0, 256, (*size_hw, 3), np.uint8)).save(tmp_path / folder / f"{number}.png")
    seen = []

    def measured(_backend, image, _settings, *, repeats):
        seen.append(image.shape[:2])
        seconds = dict.fromkeys(STAGES, float(len(seen) * repeats))
        return {"image": "", "ours": seconds, "stock": {name: 3 * value for name, value in seconds.items()}}

    monkeypatch.setattr(profile_generator, "profile", measured)
    out = tmp_path / "stages.json"
    folders = [str(tmp_path / "cells"), str(tmp_path / "street/images")]
    options = ["--out", str(out), "--picture", str(tmp_path / "a.png"), "--images", *folders]
    monkeypatch.setattr(sys, "argv", ["profile_generator", *options, "--limit", "2", "--repeats", "1"])
    profile_generator.main()
    assert seen == [(40, 50), (60, 50), (20, 100)]
    cells, street = json.loads(out.read_text())["sizes"]
    assert cells["image"] == "2 images of cells, 0.00 megapixels each on average"
    assert street["image"].startswith("1 images of street")
    assert cells["ours"]["encode image"] == 1.5
    assert cells["stock"]["encode image"] == 4.5
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="image"):
        profile_generator.first_images(tmp_path / "empty", 2)
