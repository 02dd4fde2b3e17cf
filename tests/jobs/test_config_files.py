"""Configurations: overrides reach every depth, and a key that is not there is named with its nearest."""

import ast
import errno
import os
import re
from functools import partial
from pathlib import Path

import pytest
from mmengine.config import Config

from jobs.config_files import PlainConfig, dotted_keys, load_config, parse_options, write_resolved
from jobs.training.placeholders import expand
from pipeline.data.coco import write_json
from pipeline.errors import ConfigError, EnvironmentProblemError

ROOT = Path(__file__).parents[2]

BASE = "size = 3\nmodel = dict(depth=18, norm=dict(eps=1e-5), channels=[1, 2, 3], pair=(4, 5))\n"


@pytest.mark.parametrize("write", [partial(write_resolved, Config({"a": 1})), partial(write_json, {})])
def test_a_disk_that_is_full_leaves_nothing_and_names_the_file(tmp_path, monkeypatch, write):
    def full(*_args, **_more):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))  # as a file object's write says it, without a name

    monkeypatch.setattr(Path, "write_text", full)
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(EnvironmentProblemError, match="disk is full") as caught:
        write(tmp_path / "file")
    assert caught.value.where == tmp_path / "file"
    assert list(tmp_path.iterdir()) == []


@pytest.fixture
def config_path(tmp_path):
    (tmp_path / "base.py").write_text(BASE)
    path = tmp_path / "config.py"
    path.write_text(
        '"""A config."""\nfrom mmengine.config import read_base\n'
        "with read_base():\n    from .base import *\n"
        "from mmengine.hooks import LoggerHook\nmodel.update(dict(kind=dict(type=LoggerHook)))\n"
    )
    return path


def test_overrides_reach_dicts_lists_and_tuples(config_path):
    texts = ["size=4", "model.norm.eps=0.5", "model.channels.1=9", "model.pair.0=7", "model.depth=None"]
    config = load_config(config_path, texts)
    assert (config.size, config.model.norm.eps, config.model.channels) == (4, 0.5, [1, 9, 3])
    assert (config.model.pair, config.model.depth) == ([7, 5], None)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a=1", 1),
        ("a=1e-3", 0.001),
        ("a=True", True),
        ("a=None", None),
        ("a=text", "text"),
        ("a=[1,2]", [1, 2]),
        ("a=[(1,2),(3,4)]", [(1, 2), (3, 4)]),
        ("a=x=y", "x=y"),
        ("a.b.0=-2", -2),
    ],
)
def test_values_follow_mmengines_grammar(text, expected):
    assert list(parse_options([text]).values()) == [expected]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("images=odd dir/anno.json", "odd dir/anno.json"),
        ("store=a,b/x", "a,b/x"),
        ("store=2024", "2024"),
        ("model.refiner.store=(1)", "(1)"),
        ("split_file=[a", "[a"),
        ("data_root='odd dir'", "odd dir"),
        ("split=None", None),
        ("store='None'", None),
        ("sam.name=my weights/sam.pt", "my weights/sam.pt"),
        ("a=1e-3 m", "1e-3 m"),
        ("a=one, two", "one, two"),
        ("a= 3", 3),
        ("a=[1, 2]", [1, 2]),
        ("a=(1, (2, x))", (1, (2, "x"))),
        ("a='[1, 2]'", [1, 2]),
        ("a=1,2", [1, 2]),
    ],
)
def test_a_path_stays_as_it_is_and_so_do_blanks_in_a_text(text, expected):
    assert list(parse_options([text]).values()) == [expected]


def test_a_path_that_looks_like_something_else_fills_its_placeholders():
    options = ["data_root=odd dir, 2", "store=2024", "teacher_checkpoint=a b/1,2"]
    config = load_config(ROOT / "configs/student/scenes_points.py", options)
    expand(config)
    assert config.train_dataloader.dataset.labelled.dataset.annotation_file == "odd dir, 2/annotations/train.json"
    assert (config.store, config.init_checkpoint) == ("2024", "a b/1,2")


def test_repeated_options_add_up_and_the_last_wins():
    assert parse_options(["a=1", "b=2", "a=3"]) == {"a": 3, "b": 2}


@pytest.mark.parametrize("text", ["a", "=1", "", "a=[1,2", "a=(1,[2)"])
def test_what_is_no_key_value_is_refused(text):
    with pytest.raises(ConfigError, match="cannot be understood"):
        parse_options([text])


def test_a_section_is_left_out_or_changed_key_by_key():
    student = ROOT / "configs/student/scenes_points.py"
    with pytest.raises(
        ConfigError, match=r"a section cannot be replaced[\s\S]*model.refiner.NAME=value[\s\S]*num_points"
    ):
        load_config(student, ["model.refiner=dict(name='none')"])
    assert load_config(student, ["model.arp=None"]).model.arp is None
    assert load_config(student, ["model.refiner.num_points=5"]).model.refiner.num_points == 5


def test_unknown_keys_are_refused_together_with_the_nearest(config_path):
    texts = ["model.dept=50", "sise=1", "model.channels.3=1", "model.norm.eps.x=1", "qqqq=1"]
    with pytest.raises(ConfigError) as caught:
        load_config(config_path, texts)
    got = caught.value.got.split("; ")
    assert got[:2] == ["model.dept (nearest: model.depth)", "sise (nearest: size)"]
    assert [entry.split(" ")[0] for entry in got[2:]] == ["model.channels.3", "model.norm.eps.x", "qqqq"]
    assert caught.value.exit_code == 3


def test_keys_known_from_elsewhere_may_be_added(config_path):
    config = load_config(config_path, ["sam.device=cuda"], also_known=["sam", "sam.device"])
    assert config.sam == {"device": "cuda"}


def test_dotted_keys_of_every_depth():
    assert dotted_keys({"a": {"b": [1, {"c": 2}]}}) == ["a", "a.b", "a.b.0", "a.b.1", "a.b.1.c"]


@pytest.mark.parametrize("text", ["size = ", "import nowhere_at_all_xyz\nx = nowhere_at_all_xyz.y\nz = 1 / 0", "1/0"])
def test_a_file_that_is_no_configuration_is_named(tmp_path, text):
    path = tmp_path / "bad.py"
    path.write_text(text)
    with pytest.raises(ConfigError, match="cannot be read") as caught:
        load_config(path)
    assert caught.value.where == path


def test_a_missing_file_shows_its_neighbours(config_path):
    with pytest.raises(ConfigError, match="no such configuration") as caught:
        load_config(config_path.with_name("confg.py"))
    assert "config.py" in caught.value.expected


def test_what_was_meant_is_written_and_loads_again(config_path, tmp_path):
    config = load_config(config_path, ["model.depth=50"])
    out = tmp_path / "out" / "resolved.py"
    write_resolved(config, out)
    ast.parse(out.read_text())
    again = load_config(out)
    assert again.model.depth == 50
    assert again.model.kind.type == "mmengine.hooks.LoggerHook"
    assert [p.name for p in out.parent.iterdir()] == ["resolved.py"]


TRAINED = sorted(path for kind in ("teacher", "student") for path in (ROOT / "configs" / kind).glob("*.py"))
DETECTORS = [path for path in TRAINED if not path.stem.startswith(("refer_", "refcoco", "grefcoco"))]


@pytest.mark.parametrize("path", DETECTORS, ids=lambda path: path.stem)
def test_no_more_detections_are_asked_for_than_queries_and_classes_give(path):
    """mmdet takes the best of queries x classes and fails, at the end of a training, where there are fewer."""
    config = load_config(path, [])
    expand(config)
    model = config.model.get("detector", config.model)
    head = model.panoptic_head
    assert model.test_cfg.max_per_image <= head.num_queries * head.num_things_classes


def test_every_config_says_the_command_that_runs_it():
    root = ROOT / "configs"
    runnable = [p for p in root.rglob("*.py") if p.parent.name != "_base_" and p.name != "__init__.py"]
    assert len(runnable) >= 2
    for path in runnable:
        told = ast.get_docstring(ast.parse(path.read_text())) or ""
        assert re.search(rf"s4m-pipeline [\w-]+ {path.relative_to(root.parent)}", told), path


@pytest.mark.parametrize("name", ["student/scenes_points", "teacher/coco_r50", "sam/scenes"])
def test_a_laid_out_config_is_the_same_config(name, tmp_path):
    config = load_config(ROOT / f"configs/{name}.py")
    text = PlainConfig.of(config).pretty_text
    assert max(map(len, text.splitlines())) <= 150
    (tmp_path / "again.py").write_text(text)
    assert load_config(tmp_path / "again.py").to_dict() == config.to_dict()
