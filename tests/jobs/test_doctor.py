"""doctor: says what is there, fails where something needed is missing, and names damaged files of a store."""

import hashlib
import json
from dataclasses import replace
from pathlib import Path

import pytest

from jobs import doctor
from jobs.precompute_sam import precompute
from jobs.settings import PrecomputeSettings, SamSettings
from pipeline.errors import EnvironmentProblemError, InputError, StoreDamagedError
from pipeline.sam.generator_settings import GeneratorSettings
from pipeline.stores.verify import verify
from tests.fakes import FakeSam
from tests.jobs.toys import store_files, write_coco


@pytest.fixture
def assets(tmp_path):
    folder = tmp_path / "assets"
    folder.mkdir()
    for name in doctor.EMBEDDED:
        (folder / f"{name}.safetensors").write_bytes(name.encode())
        log = {"sha256": hashlib.sha256(name.encode()).hexdigest()}
        (folder / f"{name}_log.json").write_text(json.dumps(log))
    return folder


@pytest.fixture
def settings(tmp_path):
    made = PrecomputeSettings(
        images=str(write_coco(tmp_path / "data", 4)),
        store=str(tmp_path / "store"),
        sam=SamSettings("fake"),
        targets=("proposals",),
        proposals=GeneratorSettings(points_per_side=3),
        images_per_shard=2,
    )
    precompute(made, make_backend=lambda _: FakeSam())
    return made


def test_a_sound_machine_is_all_said_and_no_error(assets, capsys):
    doctor.run(assets=assets)
    out = capsys.readouterr().out
    assert all(f"{name} " in out for name in doctor.PACKAGES)
    assert "CPU cores" in out
    assert "compiled operators" in out
    assert "scenes_nano.safetensors" in out
    assert "--ray-address start" in out
    assert {line.split()[0] for line in out.splitlines()} <= {"ok", "note"}


def test_missing_and_changed_weights_are_bad(assets, capsys):
    (assets / "scenes_nano.safetensors").unlink()
    (assets / "scenes_base.safetensors").write_bytes(b"other")
    with pytest.raises(EnvironmentProblemError, match="2 things") as caught:
        doctor.run(assets=assets)
    assert caught.value.exit_code == 6
    assert "scenes_nano.safetensors are missing" in caught.value.got
    assert "its log states" in caught.value.got


def test_a_missing_package_is_bad(assets, monkeypatch):
    monkeypatch.setattr(doctor, "PACKAGES", (*doctor.PACKAGES, "no-such-package-xyz"))
    with pytest.raises(EnvironmentProblemError, match="no-such-package-xyz is not installed"):
        doctor.run(assets=assets)


def test_a_sound_store_passes(assets, settings, capsys):
    doctor.run(settings.store, assets=assets)
    assert "every file is as it was written" in capsys.readouterr().out


def test_a_flipped_bit_is_found_named_and_repaired_by_redoing_one_shard(assets, settings, capsys):
    whole = store_files(Path(settings.store))
    victim = sorted(Path(settings.store, "proposals").glob("*.parquet"))[0]
    data = bytearray(victim.read_bytes())
    data[len(data) // 3] ^= 4
    victim.write_bytes(bytes(data))
    with pytest.raises(StoreDamagedError, match=victim.name) as caught:
        doctor.run(settings.store, assets=assets)
    assert caught.value.exit_code == 5
    assert "--repair" in caught.value.fix
    doctor.run(settings.store, repair=True, assets=assets)
    capsys.readouterr()
    precompute(settings, make_backend=lambda _: FakeSam())
    assert "skipped 1, redo 1, new 0" in capsys.readouterr().out
    assert verify(settings.store) == []
    assert store_files(Path(settings.store)) == whole


def test_no_store_is_an_input_error(assets, settings):
    with pytest.raises(InputError, match="no store"):
        doctor.run(replace(settings, store="/nowhere/store").store, assets=assets)
