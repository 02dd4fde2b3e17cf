"""A few real steps of every switch of the distillation, from the targets to the checkpoint."""

import json
from pathlib import Path

import pytest
import torch

from jobs import precompute_sam
from jobs.networks import load_network, open_config
from jobs.training.runs import prepare, train
from pipeline.models.weights import read_checkpoint
from pipeline.stores.similarity_store import SimilarityStore
from tests.toy_scenes import small_scenes

CONFIGS = Path(__file__).parents[2] / "configs"
SIZE = 64


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def scenes(tmp_path_factory):
    return small_scenes(tmp_path_factory.mktemp("data") / "scenes", size=SIZE)


@pytest.fixture(scope="module")
def stores(scenes, tmp_path_factory):
    """Targets of both features, as the shipped configs make them."""
    root = tmp_path_factory.mktemp("stores")
    for name, config in (("decoder", "sam/scenes"), ("encoder", "ablation/sd_encoder_sam")):
        options = {
            "images": scenes.annotations("train"),
            "image_root": scenes.image_root,
            "split": scenes.root / "split.json",
            "store": root / name,
            "targets": "[similarity]",
        }
        precompute_sam.run(CONFIGS / f"{config}.py", cfg_options=[f"{key}={value}" for key, value in options.items()])
    return root


def options_of(scenes, *, streams=("",), **changes):
    options = {"data_root": scenes.root, "device": "cpu", "max_iters": 3, "batch_size": 2, "log_interval": 1}
    options |= {"checkpoint_interval": 2}
    for stream in streams:
        data = f"train_dataloader.dataset.{stream}dataset.pipeline"
        options |= {f"{data}.0.scale": f"({SIZE},{SIZE})", f"{data}.1.crop_size": f"({SIZE},{SIZE})"}
    return [f"{key}={value}" for key, value in {**options, **changes}.items()]


def run(name, options, folder, *, resume=False):
    run = prepare(CONFIGS / f"{name}.py", cfg_options=options, work_dir=folder, resume=resume, overwrite=False)
    assert run is not None
    train(run)
    return folder


def logged(folder, name):
    lines = [line for file in sorted(folder.glob("*/vis_data/scalars.json")) for line in file.read_text().splitlines()]
    return [step[name] for step in map(json.loads, lines) if name in step]


@pytest.fixture(scope="module")
def matching(scenes, tmp_path_factory):
    torch.set_num_threads(1)
    return run("ablation/sd_decoder_feature", options_of(scenes), tmp_path_factory.mktemp("runs") / "teacher")


def test_both_stores_hold_the_same_points_and_other_rows(stores):
    decoder, encoder = (SimilarityStore.open(stores / name) for name in ("decoder", "encoder"))
    assert "features" not in decoder.identity.settings
    assert encoder.identity.settings["features"] == "encoder"
    image_id = decoder.image_ids()[0]
    first, second = decoder.read(image_id), encoder.read(image_id)
    assert (first.points_xy == second.points_xy).all()
    assert abs(first.similarity - second.similarity).mean() > 0.02


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "loss"),
    [
        ("sd_live_teacher", "loss_structural"),
        ("sd_encoder_structural", "loss_structural"),
        ("sd_encoder_feature", "loss_feature"),
    ],
)
def test_teachers_with_a_sam_in_the_step_train(scenes, tmp_path, name, loss):
    losses = logged(run(f"ablation/{name}", options_of(scenes), tmp_path / "run"), loss)
    assert len(losses) == 3
    assert all(0 < value < 5 for value in losses)


def test_a_teacher_learns_the_encoders_rows_from_their_store(scenes, stores, tmp_path):
    options = options_of(scenes, structural_store=stores / "encoder")
    losses = logged(run("ablation/sd_encoder_teacher", options, tmp_path / "run"), "loss_structural")
    assert len(losses) == 3
    assert all(0 < value < 1 for value in losses)


class Killed(Exception):
    """Stands for a signal."""


@pytest.mark.slow
def test_feature_matching_resumes_with_its_projection(scenes, matching, tmp_path, monkeypatch):
    from pipeline.models.training_hooks import StepSeedHook

    before = StepSeedHook.before_train_iter

    def dies(self, runner, batch_idx, data_batch=None):
        if runner.iter == 2:
            raise Killed
        before(self, runner, batch_idx, data_batch)

    folder = tmp_path / "run"
    with monkeypatch.context() as patch:
        patch.setattr(StepSeedHook, "before_train_iter", dies)
        with pytest.raises(Killed):
            run("ablation/sd_decoder_feature", options_of(scenes), folder)
    torch.manual_seed(99)
    run("ablation/sd_decoder_feature", options_of(scenes), folder, resume=True)
    resumed, whole = (read_checkpoint(path / "iter_3.pth")["state_dict"] for path in (folder, matching))
    assert "feature_projection.weight" in whole
    assert resumed.keys() == whole.keys()
    assert all(torch.equal(resumed[name], value) for name, value in whole.items())
    assert len(logged(matching, "loss_feature")) == 3


@pytest.mark.slow
def test_a_student_distils_too_and_takes_a_teacher_that_matched_features(scenes, stores, matching, tmp_path):
    options = options_of(
        scenes,
        streams=("labelled.", "unlabelled."),
        store=stores / "decoder",
        teacher_checkpoint=matching,
        burn_in=1,
        **{"model.pseudo_labels.score_threshold": 0.0, "model.pseudo_labels.min_soft_area": 0.0},
    )
    folder = run("ablation/sd_student", options, tmp_path / "run")
    losses = logged(folder, "sup/loss_structural")
    assert len(losses) == 3
    assert all(0 < value < 1 for value in losses)
    assert logged(folder, "unsup/loss_structural") == []
    names = read_checkpoint(folder / "iter_3.pth")["state_dict"]
    assert not any("projection" in name for name in names)


@pytest.mark.slow
def test_evaluation_of_such_a_teacher_asks_no_sam(scenes, matching, monkeypatch):
    from pipeline.distill import live_sam

    def refuse(*_args, **_kwargs):
        raise AssertionError("a SAM was loaded")

    monkeypatch.setattr(live_sam, "build_backend", refuse)
    config = open_config(CONFIGS / "ablation/sd_decoder_feature.py", options_of(scenes))
    model = load_network(config, matching / "iter_3.pth")
    assert model.feature_projection.weight.shape == (96, 64)
    assert model.live_sam is not None
