"""The store's loss against that of a SAM in the step: equal on whole images, and what cannot be compared is told."""

import json
from pathlib import Path

import pytest

from jobs import precompute_sam
from jobs.measurements import live_sam as compare_live_sam
from jobs.measurements.live_sam import VIEWS, Comparison, compare
from jobs.settings import load_settings
from jobs.training.runs import read_training_config
from pipeline.distill.live_sam import LiveSamSettings
from pipeline.errors import ConfigError, StoreMismatchError
from pipeline.sam.sam2_backend import build_backend
from tests.toy_scenes import small_scenes

CONFIGS = Path(__file__).parents[2] / "configs"
NANO = LiveSamSettings("scenes-nano", device="cpu")


@pytest.fixture(scope="module")
def options(tmp_path_factory):
    """A few small scenes with the embedded SAM's targets."""
    root = tmp_path_factory.mktemp("data")
    scenes = small_scenes(root / "scenes", num_train=6)
    settings = load_settings(
        {
            "images": str(scenes.annotations("train")),
            "image_root": str(scenes.image_root),
            "split": str(scenes.root / "split.json"),
            "store": str(root / "store"),
            "sam": {"name": "scenes-nano"},
            "targets": ["similarity"],
        },
        where="here",
    )
    precompute_sam.precompute(settings)
    data = "train_dataloader.dataset.dataset.pipeline"
    small = [f"{data}.0.scale=(64,64)", f"{data}.1.crop_size=(48,48)", "device=cpu"]
    return [f"data_root={scenes.root}", f"store={root / 'store'}", *small]


def test_both_losses_are_one_on_whole_images_and_near_on_views(options, tmp_path, capsys):
    out = tmp_path / "out.json"
    words = [word for option in options for word in ("--cfg-options", option)]
    compare_live_sam.main([str(CONFIGS / "teacher/scenes_structural.py"), "--views", "4", "--out", str(out), *words])
    found = json.loads(out.read_text())
    assert all(kind in capsys.readouterr().out for kind in VIEWS[:1])
    whole, mirrored, training = (found[kind] for kind in VIEWS)
    assert whole["views"] == mirrored["views"] == 4
    assert whole["loss_difference"] < 1e-3 * whole["loss_store"]
    assert whole["gradient_cosine"] > 0.9999
    for other in (mirrored, training):
        assert 10 * whole["loss_difference"] < other["loss_difference"] < 0.5 * other["loss_store"]
        assert 0.3 < other["gradient_cosine"] < 0.9999
        assert 0 < other["redraw_cosine"] < 0.9999


def test_the_same_views_are_compared_again(options):
    config = CONFIGS / "teacher/scenes_structural.py"
    first, again = (compare(config, options, NANO, count=2) for _ in range(2))
    assert first == again


def test_a_store_of_another_sam_is_refused(options, monkeypatch):
    config = read_training_config(CONFIGS / "teacher/scenes_structural.py", options)
    backend = build_backend("scenes-nano")
    backend.sha256 = "0" * 64
    monkeypatch.setattr("pipeline.distill.live_sam.build_backend", lambda *_args, **_kwargs: backend)
    with pytest.raises(StoreMismatchError, match="made by another SAM"):
        Comparison(config, NANO)


def test_a_config_without_a_store_has_nothing_to_compare(options):
    for name in ("teacher/scenes_supervised", "student/scenes_points"):
        config = read_training_config(CONFIGS / f"{name}.py", options[:1])
        with pytest.raises(ConfigError, match="precomputed targets are to be compared"):
            Comparison(config, NANO)
