"""docs/method.md: every config it names is there, and every switch changes a training."""

import inspect
import re
from dataclasses import fields
from functools import cache
from pathlib import Path

import pytest

from jobs.config_files import dotted_keys, load_config
from jobs.settings import known_keys, load_settings
from jobs.training.checks import KNOWN_KEYS, check_settings
from jobs.training.runs import read_training_config
from pipeline.data.referring.dataset import ReferDataSettings
from pipeline.data.referring.transforms import RandomBlur
from pipeline.data.transforms import LoadSimilarityTargets
from pipeline.errors import ConfigError
from pipeline.models.referring.metric import ReferMetric

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "docs/method.md").read_text()
CONFIGS = (
    "student/cityscapes_r50_points",
    "student/coco_r50_points",
    "student/coco_r50_cpi_u",
    "teacher/coco_r50",
    "teacher/cityscapes_r50_supervised",
    "teacher/refer_scenes_lavt",
    "teacher/refer_scenes_rela",
    "student/refer_scenes_cpi_u",
    "teacher/refcoco_lavt",
)
"""Where a switch is looked for, in this order."""
EFFECTIVE = (
    *("model", "train_dataloader", "val_dataloader", "val_evaluator", "optim_wrapper", "param_scheduler"),
    *("train_cfg", "custom_hooks", "default_hooks", "randomness", "init_checkpoint", "init_skip"),
    "teacher_checkpoint",
)
"""What a training is built from; all else only helps to write it."""
IN_A_COPY = {
    "ReferMetric": ReferMetric,
    "ReferDataset": ReferDataSettings,
    "RandomBlur": RandomBlur,
    "LoadSimilarityTargets": LoadSimilarityTargets,
}


def cells_of_switches(text):
    """The last cell of every row of a table whose last column is called switch."""
    is_switch = False
    for line in text.splitlines():
        cells = [cell.strip() for cell in line.strip().strip("|").split("|")]
        if not line.startswith("|"):
            is_switch = False
        elif cells[-1] == "switch":
            is_switch = True
        elif is_switch and not set(cells[-1]) <= {"-"}:
            yield cells[-1]


NAMED = sorted({token for cell in cells_of_switches(TEXT) for token in re.findall(r"`([^`]+)`", cell)})
SWITCHES = [token for token in NAMED if re.fullmatch(r"[\w.]+=.+", token)]
CALLS = [token for token in NAMED if re.fullmatch(r"\w+\(\w+=.+\)", token)]
COMMANDS = [token for token in NAMED if token.startswith(("--", "s4m-pipeline "))]
FILES = sorted(set(re.findall(r"`(configs/[^`]+)`", TEXT)))


@cache
def keys_of(name):
    return {*dotted_keys(load_config(ROOT / f"configs/{name}.py")._cfg_dict), *KNOWN_KEYS}


@cache
def effective(name, *options):
    """What a config comes to, as text."""
    config = read_training_config(ROOT / f"configs/{name}.py", list(options))
    check_settings(config, where=name)
    values = dict(dict.items(config._cfg_dict))
    return {key: repr(values.get(key)) for key in EFFECTIVE}


def changes(name, switch):
    """Whether a switch is taken by a training config, and is not lost on the way."""
    if switch.partition("=")[0] not in keys_of(name):
        return False
    try:
        return effective(name, switch) != effective(name)
    except ConfigError:
        return False


def changes_store(switch):
    path = ROOT / "configs/sam/coco.py"
    if switch.partition("=")[0] not in known_keys():
        return False
    changed = load_config(path, [switch], also_known=known_keys())
    return load_settings(changed.to_dict(), where=path) != load_settings(load_config(path).to_dict(), where=path)


def test_the_table_is_read():
    assert len(SWITCHES) > 60
    assert len(FILES) > 18
    assert sorted([*SWITCHES, *CALLS, *COMMANDS, *(token for token in NAMED if token in FILES)]) == NAMED


@pytest.mark.parametrize("switch", SWITCHES)
def test_a_switch_changes_what_is_trained(switch):
    assert any(changes(name, switch) for name in CONFIGS) or changes_store(switch)


@pytest.mark.parametrize(
    "switch",
    [
        "model.refiner.samplng=softmax",  # mistyped
        "ema_decay=0.9996",  # what it is
        "labelled_stream.repeat_threshold=10.0",  # of a copy
        "channels=9",
        "similarity.feature=encoder",
    ],
)
def test_what_changes_nothing_would_be_seen(switch):
    assert not any(changes(name, switch) for name in CONFIGS[:4])
    assert not changes_store(switch)


@pytest.mark.parametrize("file", FILES)
def test_a_config_is_there(file):
    assert (ROOT / file).is_file()


@pytest.mark.parametrize("call", CALLS)
def test_a_setting_of_a_class_is_there(call):
    name, setting = re.match(r"(\w+)\((\w+)=", call).groups()
    kind = IN_A_COPY[name]
    known = [field.name for field in fields(kind)] if name == "ReferDataset" else inspect.signature(kind).parameters
    assert setting in known


@pytest.mark.parametrize("command", COMMANDS)
def test_an_option_is_one_of_the_command_line(command):
    source = (ROOT / "jobs/cli.py").read_text() + (ROOT / "jobs/cli_options.py").read_text()
    word = command.removeprefix("s4m-pipeline ").removeprefix("--").split()[0]
    assert re.search(rf'"{word}"|\b{word}: ', source)
