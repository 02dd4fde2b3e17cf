import hashlib
import os
import pickle
import re
import sys
import types
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from pipeline.errors import CheckpointError, ConfigError
from pipeline.sam import checkpoints
from pipeline.sam.checkpoints import (
    HUB_CHECKPOINTS,
    fetch_checkpoint,
    load_into,
    load_weights,
    sha256_of,
    verify_sha256,
)


class Payload:
    """Unpickling this creates a directory: harmless, but proof that code ran."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return os.mkdir, (self.path,)


class Tiny(nn.Module):
    def __init__(self, adds_no_mem_embed=False):
        super().__init__()
        self.body = nn.Linear(2, 3)
        self.no_mem_embed = nn.Parameter(torch.zeros(1, 1, 4))
        self.maskmem_tpos_enc = nn.Parameter(torch.zeros(0, 1))
        self.directly_add_no_mem_embed = adds_no_mem_embed


def body_weights():
    return {"body.weight": torch.arange(6.0).view(3, 2), "body.bias": torch.ones(3)}


def test_sha256_of_a_file_larger_than_one_piece(tmp_path):
    content = os.urandom((1 << 20) + 17)
    path = tmp_path / "a.pt"
    path.write_bytes(content)
    assert sha256_of(path) == hashlib.sha256(content).hexdigest()


def test_a_wrong_digest_is_refused_and_a_right_one_returned(tmp_path):
    path = tmp_path / "a.pt"
    path.write_bytes(b"abc")
    right = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"  # FIPS 180 test vector
    assert verify_sha256(path, right) == verify_sha256(path, right.upper()) == verify_sha256(path, None) == right
    with pytest.raises(CheckpointError, match=right) as caught:
        verify_sha256(path, "0" * 64)
    assert f"--cfg-options sam.sha256={sha256_of(path)}" in str(caught.value)
    with pytest.raises(ConfigError, match="64 hexadecimal"):
        verify_sha256(path, "not a digest")


def test_the_published_table_is_complete_and_consistent_with_the_package():
    assert len(HUB_CHECKPOINTS) == 8
    assert len({entry.sha256 for entry in HUB_CHECKPOINTS.values()}) == 8
    # The engine keeps its own table of repositories, configs and file names.
    from sam2.build_sam import HF_MODEL_ID_TO_FILENAMES

    assert {entry.repository: (entry.config, entry.file_name) for entry in HUB_CHECKPOINTS.values()} == (
        HF_MODEL_ID_TO_FILENAMES
    )
    for name, entry in HUB_CHECKPOINTS.items():
        assert re.fullmatch("[0-9a-f]{64}", entry.sha256), name
        assert entry.file_name == f"{name}.pt"


@pytest.mark.parametrize("wrapped", [False, True], ids=["bare", "under model"])
def test_torch_files_are_read_bare_or_wrapped(tmp_path, wrapped):
    path = tmp_path / "a.pt"
    torch.save({"model": body_weights()} if wrapped else body_weights(), path)
    loaded = load_weights(path)
    assert loaded.keys() == body_weights().keys()
    assert torch.equal(loaded["body.weight"], body_weights()["body.weight"])


def test_safetensors_are_read_and_half_precision_is_widened(tmp_path):
    path = tmp_path / "a.safetensors"
    save_file({name: value.half() for name, value in body_weights().items()}, path)
    model = Tiny()
    load_into(model, load_weights(path), where=path)
    assert model.body.weight.dtype == torch.float32
    assert torch.equal(model.body.weight, body_weights()["body.weight"])


@pytest.mark.parametrize("suffix", [".pt", ".pth", ".bin"])
@pytest.mark.parametrize("legacy", [False, True], ids=["torch file", "bare pickle"])
def test_a_malicious_pickle_does_not_run(tmp_path, suffix, legacy):
    trace = tmp_path / "it ran"
    path = tmp_path / f"evil{suffix}"
    content = {"model": {**body_weights(), "payload": Payload(trace)}}
    if legacy:
        path.write_bytes(pickle.dumps(content))
    else:
        torch.save(content, path)
    with pytest.raises(CheckpointError, match="safely"):
        load_weights(path)
    assert not trace.exists()
    # The same file does run through the loader that we do not use: the test can fail.
    pickle.loads(pickle.dumps(content))
    assert trace.exists()


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
@pytest.mark.parametrize(
    "content", [b"", b"<html>404</html>", b"\x80\x04", b"PK\x03\x04broken", b"\xff" * 8 + b"{}"], ids=repr
)
def test_files_that_are_no_checkpoints(tmp_path, suffix, content):
    path = tmp_path / f"a{suffix}"
    path.write_bytes(content)
    with pytest.raises(CheckpointError) as caught:
        load_weights(path)
    assert caught.value.where == path


@pytest.mark.parametrize("content", [[1, 2], {"model": 3}, {}, {"epoch": 1}, {"a": {"b": torch.ones(1)}}], ids=repr)
def test_torch_files_without_a_state_dict(tmp_path, content):
    path = tmp_path / "a.pt"
    torch.save(content, path)
    with pytest.raises(CheckpointError, match="no state dict"):
        load_weights(path)


def test_missing_files_and_directories(tmp_path):
    for path in (tmp_path / "none.pt", tmp_path):
        with pytest.raises(CheckpointError):
            load_weights(path)
        with pytest.raises(CheckpointError):
            sha256_of(path)


def test_parameters_for_video_may_be_absent_and_no_others():
    load_into(Tiny(), body_weights(), where="x")
    with pytest.raises(CheckpointError, match=r"missing 1 \(body.bias\)"):
        load_into(Tiny(), {"body.weight": torch.zeros(3, 2)}, where="x")
    with pytest.raises(CheckpointError, match=r"unknown 1 \(head.weight\)"):
        load_into(Tiny(), {**body_weights(), "head.weight": torch.zeros(1)}, where="x")
    with pytest.raises(CheckpointError, match=r"other shape 1 \(body.bias\)"):
        load_into(Tiny(), {**body_weights(), "body.bias": torch.zeros(4)}, where="x")


def test_no_mem_embed_must_be_there_where_images_use_it():
    with pytest.raises(CheckpointError, match="no_mem_embed"):
        load_into(Tiny(adds_no_mem_embed=True), body_weights(), where="x")


def stand_in_hub(monkeypatch, download):
    module = types.ModuleType("huggingface_hub")
    module.hf_hub_download = download
    monkeypatch.setitem(sys.modules, "huggingface_hub", module)


def test_download_asks_for_the_published_file(monkeypatch, tmp_path):
    asked = []

    def download(repository, file_name):
        asked.append((repository, file_name))
        return str(tmp_path / file_name)

    stand_in_hub(monkeypatch, download)
    assert fetch_checkpoint("sam2.1_hiera_base_plus") == tmp_path / "sam2.1_hiera_base_plus.pt"
    assert asked == [("facebook/sam2.1-hiera-base-plus", "sam2.1_hiera_base_plus.pt")]


def test_without_network_the_message_says_where_to_put_the_file(monkeypatch):
    def download(repository, file_name):
        raise ConnectionError("name resolution failed")

    stand_in_hub(monkeypatch, download)
    with pytest.raises(CheckpointError) as caught:
        fetch_checkpoint("sam2_hiera_large")
    assert "checkpoints/sam2_hiera_large.pt" in caught.value.fix
    assert "name resolution failed" in str(caught.value)


def test_unknown_names_are_refused_with_the_known_ones():
    with pytest.raises(ConfigError, match="sam2_hiera_large"):
        fetch_checkpoint("sam3_huge")


def test_no_host_name_in_the_module():
    text = Path(checkpoints.__file__).read_text()
    assert not re.search(r"https?:|\.co\b|\.com\b", text)
