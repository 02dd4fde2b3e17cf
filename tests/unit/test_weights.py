"""Checkpoints: nothing runs when one is read, damage is named, and the right network is taken."""

import os
import pickle
import zipfile

import numpy as np
import pytest
import torch
from mmengine.logging import HistoryBuffer, MessageHub
from safetensors.torch import save_file
from torch import nn

from pipeline.errors import CheckpointError
from pipeline.models.weights import load_network, read_checkpoint, read_weights


class Attack:
    """Unpickled in full, it would write a file."""

    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return os.system, (f"touch {self.marker}",)


class GetattrAttack:
    """Reaches through an allowed class for something that is not."""

    def __init__(self, name):
        self.name = name

    def __reduce__(self):
        return getattr, (HistoryBuffer, self.name)


def save(path, **extra):
    torch.save({"state_dict": {"weight": torch.arange(3.0)}, **extra}, path)
    return path


def test_a_checkpoint_that_would_run_code_is_refused_and_does_not_run(tmp_path):
    marker = tmp_path / "ran"
    path = save(tmp_path / "a.pth", meta=Attack(marker))
    with pytest.raises(CheckpointError, match="cannot be loaded safely"):
        read_checkpoint(path)
    assert not marker.exists()
    torch.load(path, weights_only=False)
    assert marker.exists()  # the attack is a real one


def test_the_old_format_is_no_way_around(tmp_path):
    marker = tmp_path / "ran"
    path = tmp_path / "a.pth"
    path.write_bytes(pickle.dumps({"state_dict": Attack(marker)}))
    with pytest.raises(CheckpointError):
        read_checkpoint(path)
    assert not marker.exists()


@pytest.mark.parametrize("name", ["__init__", "__class__", "__subclasses__", "__dict__", "data"])
def test_getattr_gives_log_statistics_only(tmp_path, name):
    with pytest.raises(CheckpointError, match="cannot be loaded safely"):
        read_checkpoint(save(tmp_path / "a.pth", meta=GetattrAttack(name)))


def test_log_buffers_of_mmengine_come_back(tmp_path):
    hub = MessageHub("test_weights")
    for value in (1.0, 2.0, 4.0):
        hub.update_scalar("train/loss", value)
    hub.update_info("iter", 3)
    path = save(tmp_path / "a.pth", message_hub=hub.state_dict(), meta={"numpy": np.float64(1.5), "text": "x"})
    read = read_checkpoint(path)
    buffer = read["message_hub"]["log_scalars"]["train/loss"]
    assert isinstance(buffer, HistoryBuffer)
    assert (buffer.current(), buffer.mean(2), buffer.statistics("max")) == (4.0, 3.0, 4.0)
    assert read["meta"] == {"numpy": 1.5, "text": "x"}


@pytest.mark.parametrize("share", [0.0, 0.3, 0.99])
def test_a_truncated_file_is_no_checkpoint(tmp_path, share):
    whole = save(tmp_path / "a.pth", noise=torch.rand(1000)).read_bytes()
    path = tmp_path / "cut.pth"
    path.write_bytes(whole[: int(share * len(whole))])
    with pytest.raises(CheckpointError, match=r"cut\.pth"):
        read_checkpoint(path)


def test_a_truncated_safetensors_file_is_no_checkpoint(tmp_path):
    save_file({"weight": torch.rand(100)}, tmp_path / "a.safetensors")
    path = tmp_path / "cut.safetensors"
    path.write_bytes((tmp_path / "a.safetensors").read_bytes()[:200])
    with pytest.raises(CheckpointError, match="not a checkpoint"):
        read_checkpoint(path)


@pytest.mark.parametrize("content", [torch.rand(3), [torch.rand(3)], {"state_dict": 5}, {}, {"state_dict": {"a": 1}}])
def test_other_content_is_no_checkpoint(tmp_path, content):
    torch.save(content, tmp_path / "a.pth")
    with pytest.raises(CheckpointError, match="not a checkpoint"):
        read_checkpoint(tmp_path / "a.pth")


def test_a_zip_of_something_else_is_no_checkpoint(tmp_path):
    with zipfile.ZipFile(tmp_path / "a.pth", "w") as archive:
        archive.writestr("readme.txt", "hello")
    with pytest.raises(CheckpointError, match=r"a\.pth"):
        read_checkpoint(tmp_path / "a.pth")


def test_a_missing_file_names_the_embedded_ones(tmp_path):
    with pytest.raises(CheckpointError, match="scenes-base"):
        read_checkpoint(tmp_path / "none.pth")


def test_a_plain_state_dict_is_a_checkpoint(tmp_path):
    torch.save({"weight": torch.arange(3.0)}, tmp_path / "a.pth")
    save_file({"weight": torch.arange(3.0)}, tmp_path / "a.safetensors")
    for name in ("a.pth", "a.safetensors"):
        assert torch.equal(read_weights(tmp_path / name)["weight"], torch.arange(3.0))


@pytest.fixture
def two_networks(tmp_path):
    state = {"student.weight": torch.ones(2), "teacher.weight": torch.zeros(2), "teacher.bias": torch.ones(1)}
    torch.save({"state_dict": state}, tmp_path / "student.pth")
    return tmp_path / "student.pth"


def test_the_prefix_chooses_the_network(two_networks):
    assert {n: v.tolist() for n, v in read_weights(two_networks, prefix="student").items()} == {"weight": [1, 1]}
    assert sorted(read_weights(two_networks, prefix="teacher")) == ["bias", "weight"]


@pytest.mark.parametrize("prefix", [None, "nobody"])
def test_two_networks_need_a_choice(two_networks, prefix):
    with pytest.raises(CheckpointError, match="which network"):
        read_weights(two_networks, prefix=prefix)


def test_with_one_network_the_prefix_does_not_matter(tmp_path):
    assert list(read_weights(save(tmp_path / "a.pth"), prefix="teacher")) == ["weight"]


class Network(nn.Sequential):
    def __init__(self):
        super().__init__(nn.Linear(2, 3), nn.BatchNorm1d(3))


def test_loading_is_strict_and_changes_nothing_on_failure():
    model, other = Network(), Network()
    good = {name: torch.full_like(value, 7) for name, value in other.state_dict().items()}
    before = {name: value.clone() for name, value in model.state_dict().items()}
    wrong = [
        ({**good, "surplus": torch.zeros(1)}, "unknown 1 such as surplus"),
        ({n: v for n, v in good.items() if n != "0.bias"}, r"missing 1 such as 0\.bias"),
        ({**good, "0.weight": torch.zeros(3, 4)}, r"other shape 1 such as 0\.weight"),
    ]
    for weights, message in wrong:
        with pytest.raises(CheckpointError, match=message):
            load_network(model, weights, where="here")
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    load_network(model, good, where="here")
    assert all((value == 7).all() for value in model.state_dict().values())


def test_what_may_lack_keeps_its_start():
    model = Network()
    start = model[0].bias.detach().clone()
    weights = {n: torch.full_like(v, 7) for n, v in model.state_dict().items() if n != "0.bias"}
    load_network(model, weights, where="here", may_lack=r"^0\.bias")
    assert torch.equal(model[0].bias, start)
    assert (model[0].weight == 7).all()


def test_half_precision_weights_take_the_networks_type():
    model = Network()
    load_network(model, {n: v.to(torch.float16) for n, v in model.state_dict().items()}, where="here")
    assert model[0].weight.dtype == torch.float32
    assert model[1].num_batches_tracked.dtype == torch.int64
