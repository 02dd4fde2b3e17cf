"""What is refused before a training on sentences starts, and before --overwrite deletes anything for it."""

import json
from pathlib import Path

import pytest

from jobs import split, train_teacher
from jobs.training.checks import check_inputs, check_settings
from jobs.training.refer_checks import (
    check_sentence_settings,
    refuse_missing_weights,
    without_overwritten_weights,
)
from jobs.training.runs import check, read_training_config
from pipeline.errors import CheckpointError, ConfigError, InputError
from tests.jobs import toy_networks as toys
from tests.toy_refer import ref, write_refs

TEACHER = toys.CONFIGS / "teacher/refer_scenes_lavt.py"
SMALL = ["init_checkpoint=None", "side=64", "device=cpu"]


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    root = tmp_path_factory.mktemp("scenes")
    toys.write_data(root / "scenes", num_train=4, num_val=1)
    return [f"data_root={root / 'scenes'}"]


@pytest.mark.parametrize(
    ("option", "error", "told"),
    [
        ("val_split=testA", ConfigError, "unknown split"),
        ("val_evaluator.files.annotation_file=none.json", InputError, "none.json"),
        ("model.network.text_encoder.name=no/such/bert", ConfigError, "unknown BERT"),
        ("model.network.text_encoder.max_tokens=2", ConfigError, "no such number of tokens"),
        ("init_checkpoint=none.pth", CheckpointError, "no such checkpoint"),
        ("side=100", ConfigError, "multiple of 32"),
        ("side=32", ConfigError, "a multiple of 32, 64 or more"),
        ("panel_interval=5", ConfigError, "no image panels of sentences"),
    ],
)
def test_a_run_is_not_deleted_for_one_that_cannot_start(data, tmp_path, option, error, told):
    (tmp_path / "resolved_config.py").write_text("max_iters = 7\n")
    (tmp_path / "iter_7.pth").write_bytes(b"a day's work")
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    with pytest.raises(error, match=told):
        train_teacher.run(TEACHER, cfg_options=[*data, *SMALL, option], work_dir=tmp_path, overwrite=True)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def with_nothing_meant(data, folder):
    """Overrides: of the validation's sentences the first means nothing, as gRefCOCO writes it."""
    scenes = Path(data[0].removeprefix("data_root="))
    entries = json.loads((scenes / "expressions/val.json").read_text())
    refs = [
        {
            "ref_id": number,
            "image_id": entry["image_id"],
            "ann_id": [entry["annotation_id"] if number else -1],
            "split": "val",
            "sentences": [{"sent_id": number, "sent": entry["sentence"]}],
        }
        for number, entry in enumerate(entries)
    ]
    file = folder / "grefs.json"
    file.write_text(json.dumps(refs))
    return [f"val_{part}.expressions_file={file}" for part in ("dataloader.dataset", "evaluator.files")]


def test_sentences_that_mean_nothing_are_refused_before_the_training(data, tmp_path):
    options = [*data, *SMALL, *with_nothing_meant(data, tmp_path)]
    with pytest.raises(ConfigError, match=r"(?s)expressions that mean nothing.*val_evaluator\.generalised=True"):
        check(read_training_config(TEACHER, options), where=TEACHER)
    check(read_training_config(TEACHER, [*options, "val_evaluator.generalised=True"]), where=TEACHER)


@pytest.mark.parametrize("name", ["teacher/grefcoco_rela", "student/grefcoco_rela_cpi_u"])
def test_the_configs_of_grefcoco_take_sentences_that_mean_nothing(tmp_path, name):
    refs = [ref(1, 12, [-1], "nobody"), ref(2, 11, [1, 2], "both men"), ref(3, 13, [-1], "a kite", split="val")]
    root = write_refs(tmp_path, refs, name="grefs(unc).json").root
    files = {"annotations": root / "instances.json", "image_root": root / "images"}
    expressions = root / "grefs(unc).json"
    split.run(files["annotations"], image_root=root / "images", expressions=expressions, out=root, percent=50)
    files |= {"expressions": expressions, "split_file": root / "split.json", "bert": "tiny-bert"}
    no_library = ["model.refiner.name=none"] if "student" in name else []
    config = read_training_config(toys.CONFIGS / f"{name}.py", [*(f"{k}={v}" for k, v in files.items()), *no_library])
    assert config.val_evaluator.files.expressions_file.endswith("grefs(unc).json")
    check_settings(config, where=name)
    check_inputs(config)


def test_sentences_that_will_be_cut_are_counted_and_told(data, capsys):
    config = read_training_config(TEACHER, [*data, *SMALL])
    check(config, where=TEACHER)
    assert capsys.readouterr().out == ""
    config = read_training_config(TEACHER, [*data, *SMALL, "model.network.text_encoder.max_tokens=5"])
    check(config, where=TEACHER)
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(":")[0] for line in lines] == ["labelled", "validation"]
    root = data[0].removeprefix("data_root=")
    sentences = json.loads(Path(root, "expressions/val.json").read_text())
    # A word of the scenes is a word piece or more, and two marks stand around them.
    assert int(lines[1].split()[1]) >= sum(len(s["sentence"].split()) > 3 for s in sentences) > 0
    assert f"of {len(sentences)} sentences have more than 5 word pieces" in lines[1]


def test_a_backbone_s_weights_must_be_there(tmp_path):
    published = read_training_config(toys.CONFIGS / "teacher/refcoco_lavt.py", [f"swin_checkpoint={tmp_path}/swin.pth"])
    with pytest.raises(CheckpointError, match="pretrained weights of the backbone are not there"):
        refuse_missing_weights(published)
    (tmp_path / "swin.pth").write_bytes(b"")
    refuse_missing_weights(published)
    refuse_missing_weights(read_training_config(TEACHER, SMALL))


def test_a_start_of_the_whole_network_needs_no_file_for_its_backbone():
    config = read_training_config(toys.CONFIGS / "teacher/refcoco_lavt.py", [])
    without_overwritten_weights(config)
    assert config.model.network.backbone.weights == config.swin_checkpoint
    student = read_training_config(toys.CONFIGS / "student/refcoco_cpi_u.py", [])
    assert student.model.segmentor.network.backbone.weights == student.swin_checkpoint
    without_overwritten_weights(student)
    assert student.model.segmentor.network.backbone.weights is None
    without_overwritten_weights(read_training_config(toys.CONFIGS / "student/scenes_points.py", []))


def test_a_detector_has_panels_and_any_size():
    config = read_training_config(toys.CONFIGS / "teacher/scenes_supervised.py", ["panel_interval=5"])
    check_sentence_settings(config, [{"size": 100}], where="here")
