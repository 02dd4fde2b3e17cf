"""Sentences through the commands: burn-in, mutual learning, evaluation, pseudo-labels, one picture, one statistic."""

import json
import shutil

import cv2
import numpy as np
import pytest
import torch
from mmengine.registry import MODELS, init_default_scope

from jobs import correction_stats, evaluate, export, predict, pseudo_label, split, train_student, train_teacher
from jobs.evaluate_refer import given_answers
from jobs.labels.answers import Answer, read_answers
from jobs.labels.sentences import network_digest
from jobs.networks import open_config
from pipeline.data.coco import load_coco
from pipeline.data.referring.dataset import ReferDataset
from pipeline.data.referring.sets import load_refer_set
from pipeline.data.splits import load_split
from pipeline.errors import AnnotationError, ConfigError, InputError, StoreMismatchError
from pipeline.masks import rle
from tests.jobs import toy_networks as toys

TEACHER = toys.CONFIGS / "teacher/refer_scenes_lavt.py"
STUDENT = toys.CONFIGS / "student/refer_scenes_cpi_u.py"
RELA = toys.CONFIGS / "teacher/refer_scenes_rela.py"
SMALL = ["init_checkpoint=None", "side=64", "max_iters=2", "log_interval=1", "batch_size=2", "device=cpu"]


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return tmp_path_factory.mktemp("refer")


@pytest.fixture(scope="module")
def data(root):
    toys.write_data(root / "scenes", num_train=4, num_val=1)
    return [f"data_root={root / 'scenes'}"]


@pytest.fixture(scope="module")
def train(root, data):
    return load_coco(root / "scenes/annotations/train.json", root / "scenes/images")


@pytest.fixture(scope="module")
def library(root, train):
    return toys.write_library(root / "library", train)


@pytest.fixture(scope="module")
def teacher(root, data):
    train_teacher.run(TEACHER, cfg_options=[*data, *SMALL], work_dir=root / "teacher")
    return root / "teacher"


@pytest.fixture(scope="module")
def student(root, data, library, teacher):
    options = [*data, f"store={library}", f"teacher_checkpoint={teacher}", "init_checkpoint={teacher_checkpoint}"]
    train_student.run(STUDENT, cfg_options=[*SMALL, *options], work_dir=root / "student")
    return root / "student"


@pytest.fixture(scope="module")
def labels(root, data, library, teacher):
    options = [*data, f"store={library}", "side=64", "device=cpu"]
    pseudo_label.run(STUDENT, teacher / "iter_2.pth", cfg_options=options, work_dir=root / "labels")
    return root / "labels"


def weights(folder):
    return torch.load(folder / "iter_2.pth", weights_only=False)["state_dict"]


def test_a_burn_in_ends_with_the_figures_of_all_sentences(teacher):
    figures = json.loads((teacher / "done.json").read_text())["validation"]
    assert {"oIoU", "mIoU", "Pr@0.5", "Pr@0.9"} <= set(figures)
    assert all(0 <= value <= 1 for value in figures.values())


def test_both_networks_start_from_the_burn_in_and_the_teacher_follows(teacher, student):
    burnt, learnt = weights(teacher), weights(student)
    name = "network.text_encoder.bert.embeddings.word_embeddings.weight"
    start = burnt[name]
    own, average = learnt[f"student.{name}"], learnt[f"teacher.{name}"]
    assert not torch.equal(own, start)
    # After two steps with decay 0.99 the average has gone a small part of the way.
    assert 0 < (average - start).norm() < 0.1 * (own - start).norm()
    assert json.loads((student / "done.json").read_text())["iterations"] == 2


def test_evaluate_gives_the_figures_of_the_training(root, data, teacher, capsys):
    config = teacher / "resolved_config.py"
    report = evaluate.run(config, teacher / "iter_2.pth", work_dir=root / "evaluation")
    trained = json.loads((teacher / "done.json").read_text())["validation"]
    assert report["refer"]["oIoU"] == pytest.approx(trained["oIoU"])
    assert report["refer"]["num_sentences"] > 3
    assert report["inputs"]["split"] == "val"
    assert "oIoU" in capsys.readouterr().out
    assert evaluate.run(config, teacher / "iter_2.pth", work_dir=root / "evaluation") == {
        **report,
        "provenance": json.loads((root / "evaluation/evaluation.json").read_text())["provenance"],
    }
    assert {"oIoU_smallest5", "oIoU_smallest10_view"} <= set(report["refer"])
    with pytest.raises(InputError, match="another limit"):
        evaluate.run(config, teacher / "iter_2.pth", work_dir=root / "evaluation", limit=2)


def test_other_questions_are_another_evaluation(root, teacher, capsys):
    config, checkpoint, folder = teacher / "resolved_config.py", teacher / "iter_2.pth", root / "of_two"
    report = evaluate.run(config, checkpoint, work_dir=folder, limit=2)
    assert report["refer"]["num_cut"] == 0
    # Which objects are the smallest is a matter of the whole split.
    assert not any("smallest" in name for name in report["refer"])
    for option, told in (
        ("val_dataloader.dataset.text=sent", "another sentences"),
        ("model.network.text_encoder.max_tokens=4", "another model"),
    ):
        with pytest.raises(InputError, match=told):
            evaluate.run(config, checkpoint, work_dir=folder, limit=2, cfg_options=[option])
    for option in ("val_annotations=other.json", "val_part=labelled"):
        with pytest.raises(ConfigError, match="a detector's validation set"):
            evaluate.run(config, checkpoint, work_dir=folder, limit=2, cfg_options=[option], overwrite=True)
    short = ["model.network.text_encoder.max_tokens=4"]
    report = evaluate.run(config, checkpoint, work_dir=folder, limit=2, cfg_options=short, overwrite=True)
    assert report["refer"]["num_cut"] > 0
    assert "were cut" in capsys.readouterr().out


def test_evaluate_asks_the_network_that_the_training_validated(root, student):
    report = evaluate.run(student / "resolved_config.py", student / "iter_2.pth", work_dir=root / "of_student")
    trained = json.loads((student / "done.json").read_text())["validation"]
    assert report["refer"]["oIoU"] == pytest.approx(trained["oIoU"])
    assert report["inputs"]["network"] == "teacher"


def test_pseudo_labels_answer_every_unlabelled_sentence_once(root, data, train, labels):
    scenes = root / "scenes"
    unlabelled = set(load_split(scenes / "split.json", train).unlabelled)
    whole = load_refer_set(
        expressions_file=scenes / "expressions/train.json",
        annotation_file=scenes / "annotations/train.json",
        image_root=scenes / "images",
        split="train",
    )
    asked = {s.sentence_id: o for o in whole.objects for s in o.sentences if o.image_id in unlabelled}
    results = json.loads((labels / "results.json").read_text())
    assert sorted(entry["sentence_id"] for entry in results) == sorted(asked)
    assert all(asked[entry["sentence_id"]].ref_id == entry["ref_id"] for entry in results)
    stored = {a.rle["counts"] for entries in train.annotations.values() for a in entries}
    for entry in results:
        # A single accepted proposal is an object of the library as it is; unions and teacher's masks are not.
        assert entry["outcome"] in ("matched", "kept", "empty")
        assert (entry["segmentation"]["counts"] in stored) <= (entry["outcome"] == "matched")
    summary = json.loads((labels / "summary.json").read_text())
    assert summary["rows"] == len(results)
    assert summary["quality"]["corrections"]["total"] == len(results)
    assert 0 <= summary["quality"]["after"]["oIoU"] <= 1
    read = read_answers(labels / "results.json", whole)
    assert read.keys() == asked.keys()
    assert read[results[0]["sentence_id"]] == Answer(results[0]["segmentation"])  # LAVT cannot say "nothing"


def test_the_images_may_lie_elsewhere(root, data, library, teacher, tmp_path):
    options = [*data, f"store={library}", "side=64", "device=cpu", f"pseudo_label.image_root={tmp_path / 'none'}"]
    with pytest.raises(InputError, match="image folder not found"):
        pseudo_label.run(STUDENT, teacher / "iter_2.pth", cfg_options=options, work_dir=tmp_path / "labels")


def test_another_sentence_is_another_run(root, data, library, teacher, labels):
    options = [*data, f"store={library}", "side=64", "device=cpu", "pseudo_label.part=labelled"]
    with pytest.raises(StoreMismatchError, match=r"settings\.questions"):
        pseudo_label.run(STUDENT, teacher / "iter_2.pth", cfg_options=options, work_dir=labels)


def test_other_settings_of_the_text_are_another_run(data, library, teacher, labels, capsys):
    options = [*data, f"store={library}", "side=64", "device=cpu"]
    pseudo_label.run(STUDENT, teacher / "iter_2.pth", cfg_options=options, work_dir=labels)
    assert "already finished" in capsys.readouterr().out
    for setting in ("max_tokens=4", "keep_separator=False"):
        other = [*options, f"model.segmentor.network.text_encoder.{setting}"]
        with pytest.raises(StoreMismatchError, match=r"settings\.model"):
            pseudo_label.run(STUDENT, teacher / "iter_2.pth", cfg_options=other, work_dir=labels)


def test_where_a_backbone_started_does_not_make_another_run():
    config = toys.CONFIGS / "student/refcoco_cpi_u.py"
    digests = [network_digest(open_config(config, [f"swin_checkpoint={name}.pth"])) for name in ("a", "b")]
    assert digests[0] == digests[1] != network_digest(open_config(config, ["bert=tiny-bert"]))


def test_answers_from_a_file_are_evaluated_as_a_network_s(root, data, teacher, labels):
    scenes = root / "scenes"
    files = {
        "expressions_file": scenes / "expressions/train.json",
        "annotation_file": scenes / "annotations/train.json",
    }
    options = [f"val_dataloader.dataset.{name}={path}" for name, path in files.items()]
    options += [f"val_evaluator.files.{name}={path}" for name, path in files.items()]
    options += ["val_split=train", *data]
    with pytest.raises(InputError, match="sentences without an answer"):  # those of the labelled images
        evaluate.run(TEACHER, labels / "results.json", cfg_options=options, work_dir=root / "of_results")
    entries = json.loads((labels / "results.json").read_text())
    sentences = json.loads((scenes / "expressions/train.json").read_text())
    truth = load_coco(scenes / "annotations/train.json", scenes / "images")
    codes = {a.annotation_id: dict(a.rle) for every in truth.annotations.values() for a in every}
    perfect = [{"sentence_id": s["sentence_id"], "segmentation": codes[s["annotation_id"]]} for s in sentences]
    (root / "perfect.json").write_text(json.dumps(perfect))
    report = evaluate.run(TEACHER, root / "perfect.json", cfg_options=options, work_dir=root / "of_perfect")
    assert report["refer"]["oIoU"] == report["refer"]["Pr@0.9"] == 1
    (root / "twice.json").write_text(json.dumps([*perfect, *entries]))
    with pytest.raises(AnnotationError, match="two answers to a sentence"):
        evaluate.run(TEACHER, root / "twice.json", cfg_options=options, work_dir=root / "of_twice")


def test_answers_are_unpacked_one_by_one_without_their_images(root, labels, monkeypatch):
    scenes = root / "scenes"
    files = {"expressions_file": scenes / "expressions/train.json", "image_root": scenes / "images"}
    files |= {"annotation_file": scenes / "annotations/train.json", "split_file": scenes / "split.json"}
    options = {"split": "train", "part": "unlabelled", "epoch": "expression", "sentence": "all"}
    data = ReferDataset(pipeline=[], **options, **{name: str(path) for name, path in files.items()})
    unpacked = []
    decode = rle.decode
    monkeypatch.setattr(rle, "decode", lambda code: unpacked.append(code) or decode(code))
    monkeypatch.setattr("pipeline.data.referring.dataset.image_record", None)  # no image is read
    samples = given_answers(labels / "results.json", data, len(data))
    for number in range(1, 4):
        sample = next(samples)
        assert set(sample) == {"ref_id", "sentence_id", "pred_mask"}
        assert len(unpacked) == number
    assert len(data) > 3


def test_sentences_of_broken_images_are_not_asked_and_the_images_named(root, teacher, tmp_path, capsys):
    shutil.copytree(root / "scenes", tmp_path / "scenes")
    broken = min((tmp_path / "scenes/images/train").iterdir())
    broken.write_bytes(b"no image")
    scenes = tmp_path / "scenes"
    files = {
        "expressions_file": scenes / "expressions/train.json",
        "annotation_file": scenes / "annotations/train.json",
    }
    options = [
        f"val_{where}.{name}={path}"
        for name, path in files.items()
        for where in ("dataloader.dataset", "evaluator.files")
    ]
    options += ["val_split=train", f"data_root={scenes}", "side=64", "max_broken_share=0.5"]
    checkpoint = teacher / "iter_2.pth"
    report = evaluate.run(TEACHER, checkpoint, cfg_options=options, work_dir=tmp_path / "some")
    assert [entry["file_name"] for entry in report["broken"]] == [f"train/{broken.name}"]
    assert 0 < report["refer"]["num_sentences"] < len(json.loads(files["expressions_file"].read_text()))
    assert f"broken: train/{broken.name}" in capsys.readouterr().out


def test_corrections_of_a_run_are_those_that_it_counted(root, labels, library):
    scenes = root / "scenes"
    report = correction_stats.run(
        labels,  # its network.json
        store=str(library),
        annotations=scenes / "annotations/train.json",
        image_root=scenes / "images",
        expressions=scenes / "expressions/train.json",
        strategies=["cpi_u"],
        out=root / "corrections.json",
    )
    counted = json.loads((labels / "summary.json").read_text())["quality"]["corrections"]
    (found,) = report["strategies"].values()
    assert {name: found[name] for name in counted if name.startswith("num_")} == {
        name: value for name, value in counted.items() if name.startswith("num_")
    }


def test_a_picture_for_a_person(root, data, student, tmp_path, capsys):
    image = next((root / "scenes/images/val").iterdir())
    config, checkpoint = student / "resolved_config.py", student / "iter_2.pth"
    predict.run(config, checkpoint, image, sentence="the leftmost ring", out=tmp_path / "seen.png")
    picture = cv2.imread(str(tmp_path / "seen.png"))
    assert picture.shape[0] >= 640
    assert "the leftmost ring" in capsys.readouterr().out
    with pytest.raises(InputError, match="in the way"):
        predict.run(config, checkpoint, image, sentence="the leftmost ring", out=tmp_path / "seen.png")
    predict.run(config, checkpoint, image, sentence="a ring " * 20, out=tmp_path / "long.png")
    assert "the sentence is cut: the network reads 20 word pieces" in capsys.readouterr().out
    for sentence in (None, "  "):
        with pytest.raises(ConfigError, match="wants a sentence"):
            predict.run(config, checkpoint, image, sentence=sentence, out=tmp_path / "other.png")
    with pytest.raises(ConfigError, match="not a picture"):
        predict.run(config, checkpoint, image, sentence="a ring", out=tmp_path / "other.txt")


def test_what_rela_says_is_nothing_is_nothing_everywhere(root, data, train, tmp_path, capsys):
    options = [*data, "init_checkpoint=None", "side=64", "device=cpu"]
    config = open_config(RELA, options)
    init_default_scope("mmdet")
    torch.manual_seed(0)
    model = MODELS.build(config.model)
    with torch.no_grad():
        model.network.region_decoder.no_target_head[-1].bias.copy_(torch.tensor([-20.0, 20.0]))
    checkpoint, folder = tmp_path / "rela.pth", tmp_path / "labels"
    torch.save({"state_dict": model.state_dict(), "meta": {}}, checkpoint)
    pseudo_label.run(RELA, checkpoint, cfg_options=[*options, "pseudo_label.part=all"], work_dir=folder)
    entries = json.loads((folder / "results.json").read_text())
    assert all(entry["no_target"] > 0.99 for entry in entries)
    assert any(rle.area(entry["segmentation"]) for entry in entries)  # the masks stay what they are
    scenes = root / "scenes"
    files = {
        "expressions_file": scenes / "expressions/train.json",
        "annotation_file": scenes / "annotations/train.json",
    }
    options += [f"val_{part}.{k}={v}" for k, v in files.items() for part in ("dataloader.dataset", "evaluator.files")]
    options += ["val_split=train", "val_evaluator.generalised=True"]
    told = [
        evaluate.run(RELA, answers, cfg_options=options, work_dir=tmp_path / f"evaluation_{number}")["refer"]
        for number, answers in enumerate((checkpoint, folder / "results.json"))
    ]
    assert told[1] == {name: told[0][name] for name in told[1]}
    assert told[1]["T-acc"] == told[1]["oIoU"] == 0
    image = next((scenes / "images/val").iterdir())
    capsys.readouterr()
    assert predict.run(RELA, checkpoint, image, sentence="a ring", cfg_options=options, out=tmp_path / "a.png") == []
    assert "nothing is meant by: a ring" in capsys.readouterr().out
    (tmp_path / "wrong.json").write_text(json.dumps([{**entries[0], "no_target": 2}, *entries[1:]]))
    with pytest.raises(AnnotationError, match="no_target is no probability"):
        evaluate.run(RELA, tmp_path / "wrong.json", cfg_options=options, work_dir=tmp_path / "wrong")


def test_a_network_of_sentences_is_not_exported(student, tmp_path):
    with pytest.raises(ConfigError, match="cannot be exported"):
        export.run(student / "resolved_config.py", student / "iter_2.pth", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_detector_s_picture(root, data, tmp_path, capsys):
    options = [f"data_root={root / 'scenes'}", *toys.TINY]
    checkpoint = toys.write_student(tmp_path / "student.pth", options, toys.class_list(root / "scenes"))
    image = next((root / "scenes/images/val").iterdir())
    found = predict.run(toys.TEACHER, checkpoint, image, cfg_options=options, min_score=0.0, out=tmp_path / "seen.png")
    assert found
    assert [each.score for each in found] == sorted((each.score for each in found), reverse=True)
    assert {each.name for each in found} <= set(toys.class_list(root / "scenes"))
    assert len(capsys.readouterr().out.splitlines()) == len(found) + 1
    nothing = predict.run(toys.TEACHER, checkpoint, image, cfg_options=options, min_score=1.0, out=tmp_path / "no.png")
    assert nothing == []
    with pytest.raises(ConfigError, match="wants no sentence"):
        predict.run(toys.TEACHER, checkpoint, image, sentence="a ring", cfg_options=options, out=tmp_path / "x.png")
    with pytest.raises(InputError, match=r"an image file is wanted[\s\S]*got:      a folder\n"):
        predict.run(toys.TEACHER, checkpoint, image.parent, cfg_options=options)
    with pytest.raises(ConfigError, match=r"not a picture[\s\S]*next:     --out .*/x\.png"):
        predict.run(toys.TEACHER, checkpoint, image, cfg_options=options, out=tmp_path / "x.xyz")


def test_a_split_of_sentences(root, data, train, tmp_path, capsys):
    files = {"expressions": root / "scenes/expressions/train.json", "image_root": root / "scenes/images"}
    annotations = root / "scenes/annotations/train.json"
    split.run(annotations, out=tmp_path / "half", percent=50, draw="published", **files)
    said = capsys.readouterr().out
    assert said.startswith("2 labelled, 2 unlabelled images; ")
    costs = {line.split("|")[1].strip(): line.split("|")[2].strip() for line in said.splitlines()[3:]}
    assert costs == {"50 %": "2", "all": "4"}
    content = json.loads((tmp_path / "half/split.json").read_text())
    assert len(content["labelled"]) == 2
    assert sorted(content["labelled"] + content["unlabelled"]) == sorted(train.by_id)
    assert not (tmp_path / "half/labelled.json").exists()
    with pytest.raises(InputError, match="another split is there already"):
        split.run(annotations, out=tmp_path / "half", percent=25, draw="published", **files)
    with pytest.raises(InputError, match="the published draw is of sentences"):
        split.run(annotations, out=tmp_path / "other", percent=50, draw="published", image_root=files["image_root"])
    with pytest.raises(InputError, match="divided by a draw"):
        split.run(annotations, out=tmp_path / "other", **files)


def test_masks_are_drawn_where_they_are():
    pixels = np.zeros((100, 200, 3), np.uint8)
    mask = np.zeros((100, 200), bool)
    mask[40:60, 100:150] = True
    canvas = predict.overlay(pixels, [predict.Found("a", 0.5, mask)])
    assert canvas.shape == (400, 800, 3)
    assert canvas[200, 500].sum() > 0
    assert canvas[350, 100].sum() == 0
