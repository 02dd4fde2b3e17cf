import json
import sys

import numpy as np
import pytest
from PIL import Image

from jobs.bench.generators import scene
from jobs.measurements import generator_profile as profile_generator
from jobs.measurements import prompt_budget as measure_prompt_budget
from jobs.measurements.generator_profile import STAGES, profile
from jobs.measurements.prompt_budget import Counting
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


def test_the_prompt_budget_counts_clicks_and_recall(backend):
    counting = Counting(backend.model, name="scenes-nano", sha256=backend.sha256)
    few = measure_prompt_budget.measure(counting, SETTINGS, num_scenes=2, seed=3)
    assert few["clicks"] == 16
    assert 0 <= few["recall at 0.75"] <= few["recall at 0.5"] <= 100
    assert few["seconds"] > 0
    assert few["proposals"] > 0
    again = measure_prompt_budget.measure(counting, SETTINGS, num_scenes=2, seed=3)
    assert again["recall at 0.5"] == few["recall at 0.5"]


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
