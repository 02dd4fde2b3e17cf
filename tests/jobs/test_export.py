"""An export needs nothing of this project and says what the network said here."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from jobs import export
from jobs.evaluate import whole_truth
from jobs.export import CONFIG, WEIGHTS, refuse_difference
from jobs.networks import build_transforms, detect_and_label, filter_of, load_network, open_config, pack
from jobs.plain_config import plain_config
from pipeline.errors import CheckpointError, ConfigError, EnvironmentProblemError, InputError, PipelineError
from pipeline.images import read_image
from tests.jobs.toy_networks import (
    STUDENT,
    TEACHER,
    class_list,
    fresh_network,
    plain_network,
    write_data,
    write_student,
)

OUTSIDE = """
import contextlib, io, json, sys
import pipeline.models.mmcv_ops  # this machine's mmcv has no compiled operators
import torch
from mmdet.apis import inference_detector, init_detector
torch.set_num_threads(1)
config, weights, image, out = sys.argv[1:]
model = init_detector(config, weights, device="cpu")
found = inference_detector(model, image).pred_instances
torch.save({name: getattr(found, name) for name in ("scores", "labels", "masks")}, out)
ours = [name for name in sys.modules if name.split(".")[0] in ("pipeline", "jobs", "configs", "data_schemas")]
print(json.dumps({"classes": model.dataset_meta["classes"], "ours": sorted(ours)}))
"""


@pytest.fixture(scope="module")
def options(tmp_path_factory):
    return write_data(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def classes(options):
    return class_list(Path(options[0].removeprefix("data_root=")))


@pytest.fixture(scope="module")
def student(tmp_path_factory, options, classes):
    return write_student(tmp_path_factory.mktemp("run") / "iter_1.pth", options, classes)


@pytest.fixture(scope="module")
def exported(student, options, tmp_path_factory):
    out = tmp_path_factory.mktemp("exported")
    for which in ("student", "teacher"):
        export.run(STUDENT, student, out / which, cfg_options=options, network=which)
    return out


@pytest.mark.parametrize("which", ["student", pytest.param("teacher", marks=pytest.mark.slow)])
def test_stock_mmdet_finds_what_evaluate_finds(which, exported, student, options, classes, tmp_path):
    config = open_config(STUDENT, options)
    entry = whole_truth(config, names=classes).images[0]
    file = Path(options[0].removeprefix("data_root="), "images", entry.file_name)
    packed = pack(build_transforms(config), read_image(file), image_id=1)
    expected = detect_and_label(load_network(config, student, which=which), [packed], filter_of(config))[0][0]

    folder, out = exported / which, tmp_path / "found.pth"
    words = [sys.executable, "-c", OUTSIDE, folder / CONFIG, folder / WEIGHTS, file, out]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    told, found = json.loads(done.stdout.splitlines()[-1]), torch.load(out, weights_only=True)
    assert told["classes"] == list(classes)
    assert set(told["ours"]) <= {"pipeline", "pipeline.errors", "pipeline.models", "pipeline.models.mmcv_ops"}
    assert len(found["scores"]) > 0
    torch.testing.assert_close(found["scores"], expected["pred_instances"]["scores"], atol=1e-5, rtol=0)
    assert torch.equal(found["labels"], expected["pred_instances"]["labels"])
    assert torch.equal(found["masks"], expected["pred_instances"]["masks"])
    assert found["masks"].any()


def test_the_two_networks_of_a_student_are_told_apart(exported):
    first, second = (
        torch.load(exported / n / WEIGHTS, weights_only=True)["state_dict"] for n in ("student", "teacher")
    )
    assert first.keys() == second.keys()
    assert any(not torch.equal(first[name], second[name]) for name in first)


def test_the_config_names_nothing_of_this_project(exported):
    text = (exported / "student" / CONFIG).read_text()
    code = text.split("\n", 1)[1]
    assert not any(word in code for word in ("pipeline.", "structural", "Distilled", "Weighted", "refiner"))
    assert "type='Mask2Former'" in code


def test_a_teachers_checkpoint_is_exported_too(options, classes, tmp_path):
    state = fresh_network(options, 3).state_dict()
    torch.save({"state_dict": state, "meta": {"dataset_meta": {"classes": classes}}}, tmp_path / "iter_1.pth")
    export.run(TEACHER, tmp_path / "iter_1.pth", tmp_path / "out", cfg_options=options)
    written = torch.load(tmp_path / "out" / WEIGHTS, weights_only=True)
    assert written["meta"]["dataset_meta"]["classes"] == classes
    assert all(torch.equal(value, state[name]) for name, value in written["state_dict"].items())


def test_what_only_a_loss_uses_is_left_out(options, classes, tmp_path):
    state = fresh_network(options, 3).state_dict()
    wanted = set(state)
    state["feature_projection.weight"], state["feature_projection.bias"] = torch.rand(96, 64), torch.rand(96)
    torch.save({"state_dict": state, "meta": {"dataset_meta": {"classes": classes}}}, tmp_path / "iter_1.pth")
    config = TEACHER.parents[1] / "ablation/sd_decoder_feature.py"
    export.run(config, tmp_path / "iter_1.pth", tmp_path / "out", cfg_options=options)
    assert set(torch.load(tmp_path / "out" / WEIGHTS, weights_only=True)["state_dict"]) == wanted


def test_a_folder_with_other_things_is_left_alone(student, options, tmp_path):
    (tmp_path / "thesis.txt").touch()
    for overwrite in (False, True):
        with pytest.raises(InputError, match=r"not empty[\s\S]*thesis"):
            export.run(STUDENT, student, tmp_path, cfg_options=options, overwrite=overwrite)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


def test_an_earlier_export_is_replaced_only_on_demand(student, options, tmp_path):
    (tmp_path / CONFIG).write_text("old")
    with pytest.raises(InputError, match="--overwrite"):
        export.run(STUDENT, student, tmp_path, cfg_options=options)
    export.run(STUDENT, student, tmp_path, cfg_options=options, overwrite=True)
    assert {path.name for path in tmp_path.iterdir()} == {CONFIG, WEIGHTS}
    assert (tmp_path / CONFIG).read_text() != "old"


def test_the_network_is_the_validated_one_unless_named(student, options, exported, tmp_path, monkeypatch):
    export.run(STUDENT, student, tmp_path, cfg_options=options)
    assert (tmp_path / WEIGHTS).read_bytes() == (exported / "student" / WEIGHTS).read_bytes()
    assert (tmp_path / WEIGHTS).read_bytes() != (exported / "teacher" / WEIGHTS).read_bytes()
    monkeypatch.setattr(export, "validated", lambda _config: "teacher")
    export.run(STUDENT, student, tmp_path, cfg_options=options, overwrite=True)
    assert (tmp_path / WEIGHTS).read_bytes() == (exported / "teacher" / WEIGHTS).read_bytes()


def test_a_full_disk_names_the_file(tmp_path, monkeypatch):
    save = torch.save
    monkeypatch.setattr(torch, "save", lambda content, _path: save(content, "/dev/full"))
    with pytest.raises(EnvironmentProblemError, match="disk is full") as caught:
        export._write({}, {"a": torch.rand(100_000)}, ["a"], tmp_path, "a.pth")
    assert caught.value.where == tmp_path / WEIGHTS


def test_no_names_no_results_files_no_other_networks(student, options, classes, tmp_path):
    def refused(message, checkpoint, *more, config=STUDENT, kind=CheckpointError):
        with pytest.raises(kind, match=message):
            export.run(config, checkpoint, tmp_path / "out", cfg_options=[*options, *more])
        assert not (tmp_path / "out").exists()

    refused("does not name its classes", write_student(tmp_path / "bare.pth", options, None))
    refused("results file", tmp_path / "results.json")
    refused("another network", student, "model.detector.panoptic_head.num_queries=30")


def test_parts_that_mmdet_has_not_are_all_named(options, classes):
    foreign = ["model.backbone.type=elsewhere.Backbone", "model.panoptic_head.loss_cls.type=mine.Loss"]
    with pytest.raises(ConfigError, match=r"stock mmdet has not[\s\S]*elsewhere.Backbone, mine.Loss"):
        plain_config(open_config(TEACHER, [*options, *foreign]), classes, where=TEACHER)


def test_networks_that_differ_are_noticed(student, options):
    first, second = (plain_network(student, [*options], which) for which in ("student", "teacher"))
    with pytest.raises(PipelineError, match="does not say"):
        refuse_difference(first, second)


def test_images_are_read_as_the_exported_config_says(exported, tmp_path):
    """Red is red on both sides: mmdet reads BGR."""
    from mmengine.config import Config

    config = Config.fromfile(exported / "student" / CONFIG)
    assert config.model.data_preprocessor.bgr_to_rgb is True
    Image.fromarray(np.full((4, 4, 3), (255, 0, 0), np.uint8)).save(tmp_path / "red.png")
    assert read_image(tmp_path / "red.png")[0, 0].tolist() == [255, 0, 0]


def test_the_papers_student_keeps_its_resize_and_fetches_no_weights():
    plain = plain_config(open_config(STUDENT.parent / "coco_r50_points.py", []), ["a"] * 80, where=STUDENT)
    steps = plain["test_dataloader"]["dataset"]["pipeline"]
    assert [step["type"] for step in steps] == ["LoadImageFromFile", "Resize", "PackDetInputs"]
    assert tuple(steps[1]["scale"]) == (1333, 800)
    assert steps[1]["keep_ratio"] is True
    assert plain["model"]["type"] == "Mask2Former"
    assert plain["model"]["backbone"]["init_cfg"] is None
    assert "data_preprocessor" in plain["model"]
