"""evaluate: the figures of a network and of a results file, the same as training's own, and plain refusals."""

import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from jobs import cli
from jobs.evaluate import run, see, whole_truth
from jobs.networks import (
    build_transforms,
    class_names,
    detect_and_label,
    filter_of,
    label,
    load_network,
    open_config,
    pack,
)
from pipeline.data.coco import load_coco
from pipeline.errors import (
    CheckpointError,
    ConfigError,
    EnvironmentProblemError,
    InputError,
    TooManyQuarantinedError,
)
from pipeline.images import read_image
from pipeline.models.pseudo_labels import PseudoLabelFilter
from tests.jobs import toy_networks as toys


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return tmp_path_factory.mktemp("evaluate")


@pytest.fixture(scope="module")
def options(root):
    return toys.write_data(root / "scenes", num_train=2, num_val=3)


@pytest.fixture(scope="module")
def student(root, options):
    return toys.write_student(root / "student.pth", options, toys.class_list(root / "scenes"))


@pytest.fixture(scope="module")
def truth(root):
    return load_coco(root / "scenes" / "annotations" / "val.json", root / "scenes" / "images")


def perfect(truth):
    return [
        {"image_id": a.image_id, "category_id": a.category_id, "segmentation": dict(a.rle), "score": 0.9}
        for entries in truth.annotations.values()
        for a in entries
    ]


def write_results(path, entries):
    path.write_text(json.dumps(entries))
    return path


# --- the network ---


def test_detections_are_those_of_the_training_s_own_validation(root, options, student, monkeypatch):
    from mmengine.runner import Runner

    from pipeline.models import training_hooks

    given = []
    real = training_hooks.mask_ap
    monkeypatch.setattr(training_hooks, "mask_ap", lambda coco, found: given.append(found) or real(coco, found))
    config = open_config(toys.TEACHER, options)
    config.work_dir = str(root / "runner")
    config.visualizer = None
    runner = Runner.from_cfg(config)
    runner.model.load_state_dict(toys.weights_of(student, "student"))
    figures = runner.val()
    own = open_config(toys.STUDENT, options)
    model = load_network(own, student, which="student")
    assert see(model, own, whole_truth(own)).detections == given[0]
    assert len(given[0]) > 20
    report = run(toys.STUDENT, student, cfg_options=options, work_dir=root / "compared")
    assert report["mask_ap"]["ap"] == figures["coco/mask_AP"]


def test_pseudo_labels_are_those_of_a_student_s_step(options, student, truth):
    """The student holds its two networks behind another preprocessor; its labels must be these."""
    from mmdet.registry import MODELS

    from pipeline.models.weights import read_checkpoint

    config = open_config(toys.STUDENT, options)
    whole = MODELS.build(config.model)
    whole.load_state_dict(read_checkpoint(student)["state_dict"])
    packed = [pack(build_transforms(config), read_image(truth.path_of(i)), image_id=i.image_id) for i in truth.images]
    batch = {key: {"unsup": [sample[key] for sample in packed]} for key in packed[0]}
    ready = whole.data_preprocessor(batch, True)
    whole.filter = PseudoLabelFilter(0.3)
    queries = whole.eval().teacher_queries(ready["inputs"]["unsup"], ready["data_samples"]["unsup"])
    mine = label(load_network(config, student, which="teacher"), packed, PseudoLabelFilter(0.3))
    assert [m.labels.tolist() for m in mine] == [q.labels.tolist() for q in queries]
    assert sum(len(m) for m in mine) > 10
    for masks, query in zip(mine, queries, strict=True):
        np.testing.assert_array_equal(masks.scores, query.scores.numpy())
        # 192 pixels need no padding, so the canonical frame is the canvas.
        whole_size = F.interpolate(query.logits[None], (192, 192), mode="bilinear")[0].sigmoid().numpy()
        np.testing.assert_allclose(masks.probabilities, whole_size, atol=1e-5)


def test_which_network_is_asked_and_any_config_of_it_will_do(options, student):
    asked = {
        (name, which): load_network(open_config(config, options), student, which=which)
        for name, config in (("student config", toys.STUDENT), ("teacher config", toys.TEACHER))
        for which in ("student", "teacher")
    }
    for (_, which), model in asked.items():
        wanted = toys.weights_of(student, which)
        assert all(torch.equal(value, wanted[name]) for name, value in model.state_dict().items())
        assert not model.training
    different = [asked["student config", which].panoptic_head.cls_embed.weight for which in ("student", "teacher")]
    assert not torch.equal(*different)


def test_one_pass_gives_detections_and_labels_and_the_filter_only_touches_labels(options, student, truth):
    config = open_config(toys.STUDENT, options)
    model = load_network(config, student)
    packed = [pack(build_transforms(config), read_image(truth.path_of(i)), image_id=i.image_id) for i in truth.images]
    found, all_labels = detect_and_label(model, packed, PseudoLabelFilter(0.0, 0.0))
    same, none = detect_and_label(model, packed, PseudoLabelFilter(1.0))
    assert [len(m) for m in none] == [0, 0, 0]
    assert [len(m) for m in all_labels] != [0, 0, 0]
    for one, other in zip(found, same, strict=True):
        assert torch.equal(one["pred_instances"]["masks"], other["pred_instances"]["masks"])


class BrightAreas:
    """Three queries: bright pixels, all pixels, none; at stride 4 of the padded canvas."""

    def __init__(self):
        from mmdet.models.data_preprocessors import DetDataPreprocessor

        self.data_preprocessor = DetDataPreprocessor(mean=[100.0] * 3, std=[1.0] * 3, pad_size_divisor=32)

    def extract_feat(self, inputs):
        self.canvas = tuple(inputs.shape[-2:])
        return F.avg_pool2d(inputs.mean(1), 4)

    def panoptic_head(self, features, samples):
        masks = torch.stack([features / 10, torch.full_like(features, 9.0), torch.full_like(features, -9.0)], 1)
        classes = torch.tensor([[9.0, 0, 0], [0, 9.0, 0], [0, 0, 9.0]]).expand(len(samples), 3, 3)
        return [classes], [masks]


def test_padding_belongs_to_no_mask(options):
    image = np.zeros((50, 70, 3), np.uint8)
    image[8:40, 20:64] = 200
    network = BrightAreas()
    packed = pack(build_transforms(open_config(toys.TEACHER, options)), image, image_id=7)
    masks = label(network, [packed], PseudoLabelFilter(0.5))[0]
    assert network.canvas == (64, 96)
    assert masks.labels.tolist() == [0, 1]  # the third one is "no object"
    expected = image[..., 0] == 200
    expected[[8, 8, 39, 39], [20, 63, 20, 63]] = False  # corners: 5/8 * 5/8 of the bilinear weight is less than half
    np.testing.assert_array_equal(masks.masks[0], expected)
    np.testing.assert_array_equal(masks.masks[1], np.ones((50, 70), bool))


def test_labels_follow_the_class_names_of_the_checkpoint(root, options, truth):
    names = toys.class_list(root / "scenes")
    turned = (*names[3:], *names[:3])
    one = toys.write_student(root / "one.pth", options, names)
    other = toys.write_student(root / "turned.pth", options, turned)
    config = open_config(toys.STUDENT, options)
    found = {}
    for path in (one, other):
        model = load_network(config, path)
        found[path] = see(model, config, whole_truth(config, names=class_names(model))).detections
    id_of = {category.name: category.category_id for category in truth.categories}
    expected = {id_of[name]: id_of[new] for name, new in zip(names, turned, strict=True)}
    assert [expected[d["category_id"]] for d in found[one]] == [d["category_id"] for d in found[other]]


# --- a results file ---


def test_perfect_results_are_perfect_and_a_wrong_class_costs_its_share(root, options, truth, tmp_path, capsys):
    entries = perfect(truth)
    report = run(toys.STUDENT, write_results(tmp_path / "r.json", entries), cfg_options=options)
    # The objects overlap nothing else by half, so every one of them finds itself.
    assert (report["mask_ap"]["ap"], report["mask_ap"]["ar100"]) == (1.0, 1.0)
    quality = report["pseudo_labels"]
    assert [quality[k] for k in ("class_accuracy", "matched_share", "found_share")] == [1.0] * 3
    assert quality["segmentation_quality"] == pytest.approx(1.0)
    assert "pseudo-labels  1.0000  1.0000  1.0000  1.0000" in capsys.readouterr().out

    chosen = entries[0]["category_id"]
    wrong = [e | {"category_id": chosen % 8 + 1} if e["category_id"] == chosen else e for e in entries]
    report = run(
        toys.STUDENT,
        write_results(tmp_path / "w.json", wrong),
        cfg_options=options,
        work_dir=tmp_path / "wrong",
    )
    count = sum(e["category_id"] == chosen for e in entries)
    assert report["pseudo_labels"]["class_accuracy"] == 1 - count / len(entries)
    name = next(c.name for c in truth.categories if c.category_id == chosen)
    assert report["mask_ap"]["per_class"][name] == 0.0


def test_limit_takes_the_first_images_and_leaves_other_results_out(options, truth, tmp_path):
    results = write_results(tmp_path / "r.json", perfect(truth))
    report = run(toys.STUDENT, results, cfg_options=options, limit=2)
    first = sorted(truth.by_id)[:2]
    assert report["mask_ap"]["num_images"] == 2
    assert report["mask_ap"]["num_detections"] == sum(len(truth.annotations[i]) for i in first)
    assert report["mask_ap"]["ap"] == 1.0


def test_a_part_of_a_split_may_be_the_set(root, options, tmp_path):
    train = root / "scenes" / "annotations" / "train.json"
    coco = load_coco(train, root / "scenes" / "images")
    split = json.loads((root / "scenes" / "split.json").read_text())
    entries = [e for e in perfect(coco) if e["image_id"] in split["unlabelled"]]
    chosen = [*options, f"val_annotations={train}", "val_part=unlabelled"]
    report = run(toys.STUDENT, write_results(tmp_path / "r.json", entries), cfg_options=chosen)
    assert report["mask_ap"]["num_images"] == len(split["unlabelled"])
    assert report["mask_ap"]["ap"] == 1.0
    with pytest.raises(ConfigError, match="which images"):
        run(toys.STUDENT, tmp_path / "r.json", cfg_options=[*chosen, "val_part=some"], overwrite=True)


# --- what is written ---


def test_the_file_says_what_it_is_of_and_is_never_replaced_silently(root, options, student, tmp_path, capsys):
    quick = {"cfg_options": options, "work_dir": tmp_path}
    run(toys.STUDENT, student, **quick)
    file = tmp_path / "evaluation.json"
    written, before = json.loads(file.read_text()), file.stat().st_mtime_ns
    assert set(written["inputs"]) >= {"checkpoint_sha256", "network", "dataset_fingerprint", "pseudo_label_filter"}
    assert {"torch", "onedl-mmdetection"} <= set(written["provenance"]["versions"])
    capsys.readouterr()
    run(toys.STUDENT, student, **quick)
    assert "already evaluated" in capsys.readouterr().out
    with pytest.raises(InputError, match="another network is there"):
        run(toys.STUDENT, student, network="teacher", **quick)
    assert file.stat().st_mtime_ns == before
    run(toys.STUDENT, student, network="teacher", overwrite=True, **quick)
    assert json.loads(file.read_text())["inputs"]["network"] == "teacher"
    file.write_text("{}")
    with pytest.raises(InputError, match="no evaluation"):
        run(toys.STUDENT, student, **quick)


def test_a_broken_image_is_named_counted_and_left_out(root, student, tmp_path):
    shutil.copytree(root / "scenes", tmp_path / "scenes")
    options = [f"data_root={tmp_path / 'scenes'}", *toys.TINY]
    victim = sorted((tmp_path / "scenes" / "images" / "val").iterdir())[1]
    victim.write_bytes(victim.read_bytes()[:2000])
    with pytest.raises(TooManyQuarantinedError, match="1 of 3 images could not be read") as caught:
        run(toys.STUDENT, student, cfg_options=options, work_dir=tmp_path)
    assert victim.name in str(caught.value)
    written = json.loads((tmp_path / "evaluation.json").read_text())
    assert [entry["file_name"] for entry in written["broken"]] == [f"val/{victim.name}"]
    assert written["mask_ap"]["num_images"] == 2
    allowed = [*options, "max_broken_share=0.5"]
    assert run(toys.STUDENT, student, cfg_options=allowed, work_dir=tmp_path)["mask_ap"]["num_images"] == 2


# --- bad input ---


def bad_file(tmp_path, name, content=b"not what it says"):
    (tmp_path / name).write_bytes(content)
    return tmp_path / name


@pytest.mark.parametrize(
    ("name", "kind", "message"),
    [
        ("no.pth", CheckpointError, "no such checkpoint"),
        ("text.pth", CheckpointError, "checkpoint"),
        ("text.safetensors", CheckpointError, "not a checkpoint"),
        ("text.json", InputError, "not JSON"),
        ("dict.json", InputError, "not a COCO results list"),
        ("no.json", InputError, "results file not found"),
    ],
)
def test_what_is_no_checkpoint_and_no_results_list(name, kind, message, options, tmp_path):
    path = tmp_path / name
    if not name.startswith("no."):
        bad_file(tmp_path, name, b'{"images": []}' if name.startswith("dict") else b"not what it says")
    with pytest.raises(kind, match=message):
        run(toys.STUDENT, path, cfg_options=options, work_dir=tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_of_a_run_directory_the_newest_checkpoint_is_named(options, student, tmp_path):
    with pytest.raises(CheckpointError, match=r"a folder without a checkpoint[\s\S]*train it first"):
        run(toys.STUDENT, tmp_path, cfg_options=options)
    shutil.copy(student, tmp_path / "iter_20.pth")
    (tmp_path / "iter_30.pth").write_bytes(b"cut short")
    with pytest.raises(CheckpointError, match=rf"next:     give the newest checkpoint in it: {tmp_path}/iter_20\.pth"):
        run(toys.STUDENT, tmp_path, cfg_options=options)
    with pytest.raises(CheckpointError, match=r"iter_20\.pth"):
        run(toys.CONFIGS / "teacher/refer_scenes_lavt.py", tmp_path)


def test_the_wrong_config_for_a_checkpoint(root, options, student, tmp_path):
    with pytest.raises(CheckpointError, match="of another network"):
        run(
            toys.STUDENT,
            student,
            cfg_options=[
                *options,
                "detector.panoptic_head.num_queries=7",
                "model.detector.panoptic_head.num_queries=7",
            ],
        )
    names = toys.class_list(root / "scenes")
    few = toys.write_student(tmp_path / "few.pth", options, names[:5])
    with pytest.raises(ConfigError, match="class names do not fit"):
        run(toys.STUDENT, few, cfg_options=options)
    foreign = toys.write_student(tmp_path / "foreign.pth", options, (*names[:7], "hart"))
    with pytest.raises(ConfigError, match=r"hart.*heart"):
        run(toys.STUDENT, foreign, cfg_options=options)
    (tmp_path / "empty.py").write_text("a = 1\n")
    with pytest.raises(ConfigError, match="describes no network"):
        run(tmp_path / "empty.py", student)


def test_settings_that_do_not_exist_and_a_gpu_that_does_not(options, student, tmp_path):
    with pytest.raises(ConfigError, match="nearest: val_annotations"):
        run(toys.STUDENT, student, cfg_options=["val_anotations=x"])
    with pytest.raises(ConfigError, match="score_threshold"):
        run(toys.STUDENT, student, cfg_options=[*options, "model.pseudo_labels.score_treshold=0.5"])
    if not torch.cuda.is_available():
        with pytest.raises(EnvironmentProblemError, match="no GPU"):
            run(toys.STUDENT, student, cfg_options=[*options, "device=cuda"])


def test_a_set_without_objects_is_refused(root, options, student, tmp_path):
    content = json.loads((root / "scenes" / "annotations" / "val.json").read_text()) | {"annotations": []}
    (tmp_path / "bare.json").write_text(json.dumps(content))
    with pytest.raises(InputError, match="nothing to measure on"):
        run(toys.STUDENT, student, cfg_options=[*options, f"val_annotations={tmp_path / 'bare.json'}"])


def test_from_the_command_line(options, truth, tmp_path, capsys):
    results = write_results(tmp_path / "r.json", perfect(truth))
    words = [word for option in options for word in ("--cfg-options", option)]
    with pytest.raises(SystemExit) as done:
        cli.main(["evaluate", str(toys.STUDENT), str(results), *words])
    assert done.value.code in (0, None)
    assert "1.0000" in capsys.readouterr().out
    with pytest.raises(SystemExit) as missing:
        cli.main(["evaluate", str(toys.STUDENT), str(tmp_path / "no.pth"), *words])
    assert missing.value.code == 3
    assert capsys.readouterr().err.startswith("error: no such checkpoint\n  where:")


def test_filter_defaults_are_the_paper_s():
    config = SimpleNamespace(model={})
    assert filter_of(config) == PseudoLabelFilter(0.7, 5.0)
    assert Path(toys.STUDENT).is_file()
