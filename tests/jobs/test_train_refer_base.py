"""The job that trains the starts of the referring networks, run for two steps."""

import hashlib
import json

import pytest

from jobs.embedded import train_refer_base
from pipeline.models.weights import load_network, read_weights


@pytest.mark.slow
@pytest.mark.parametrize("network", ["lavt", "rela"])
def test_the_job_writes_weights_that_the_scenes_network_loads(tmp_path, monkeypatch, capsys, network):
    sizes = {"scenes": 4, "held-out": 2, "word-steps": 0, "small-steps": 1, "full-steps": 1, "images": 2}
    sizes |= {"report-every": 1, "measure-every": 2}
    options = [text for name, value in sizes.items() for text in (f"--{name}", str(value))]
    monkeypatch.setattr("sys.argv", ["train_refer_base", network, "--out", str(tmp_path), *options])
    train_refer_base.main()
    name = f"refer_{network}_base"
    assert sorted(path.name for path in tmp_path.iterdir()) == [f"{name}.safetensors", f"{name}_log.json"]
    weights = tmp_path / f"{name}.safetensors"
    model = train_refer_base.build_model(network, seed=1)
    load_network(model, read_weights(weights), where=weights)
    log = json.loads((tmp_path / f"{name}_log.json").read_text())
    assert log["sha256"] == hashlib.sha256(weights.read_bytes()).hexdigest()
    assert [row["step"] for row in log["log"]] == [1, 2]
    assert 0 <= log["log"][1]["held_out_oiou"] <= 1
    assert json.loads(capsys.readouterr().out.splitlines()[0])["eta_s"] >= 0
    assert weights.stat().st_size < 8e6
