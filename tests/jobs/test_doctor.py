"""doctor: says what is there, fails where something needed is missing, and names damaged files of a store."""

import hashlib
import json
import re
from dataclasses import replace
from pathlib import Path

import pytest

from data_schemas.manifest import SCHEMA_VERSIONS, ImageKey, StoreIdentity
from jobs import doctor
from jobs.precompute_sam import precompute
from jobs.settings import PrecomputeSettings, SamSettings
from pipeline.errors import EnvironmentProblemError, InputError, StoreDamagedError
from pipeline.sam.generator_settings import GeneratorSettings
from pipeline.stores.verify import verify
from pipeline.stores.writer import StoreWriter
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


def test_a_store_that_is_not_finished_is_said_to_be_so_and_is_no_error(assets, settings, capsys):
    doctor.run(settings.store, assets=assets)
    assert "ok    proposals: 2 of 2 shards, 4 of 4 images, 0 set aside\n" in capsys.readouterr().out
    for left, record in ((1, 0), (0, 0)):
        sorted(Path(settings.store, "records").iterdir())[record].unlink()
        doctor.run(settings.store, repair=True, assets=assets)  # the index tells of a shard that has no record
        capsys.readouterr()
        doctor.run(settings.store, assets=assets)
        out = capsys.readouterr().out
        assert "every file is as it was written" in out
        assert f"note  proposals: {left} of 2 shards, {2 * left} of 4 images, 0 set aside; not finished: " in out
        assert "run the same s4m-pipeline precompute-sam again" in out


def test_images_that_were_set_aside_are_named(assets, settings, tmp_path, capsys):
    bad = tmp_path / "data/02.png"
    bad.write_bytes(bad.read_bytes()[:-40])  # its header is sound
    other = replace(settings, store=str(tmp_path / "other"), max_broken_share=0.5)
    precompute(other, make_backend=lambda _: FakeSam())
    doctor.run(other.store, assets=assets)
    assert re.search(r"^note  set aside: 1 x read: .*: 02\.png$", capsys.readouterr().out, re.M)


@pytest.mark.parametrize(
    ("changes", "command"),
    [({"sam_name": "import:a.json"}, "import-proposals"), ({"kind": "pseudo_labels"}, "pseudo-label")],
)
def test_the_command_that_made_a_store_is_the_one_to_run_again(assets, tmp_path, capsys, changes, command):
    kind = changes.get("kind", "proposals")
    identity = StoreIdentity(
        **{"kind": kind, "sam_name": "none", **changes}, **SOURCE, schema_version=SCHEMA_VERSIONS[kind]
    )
    with StoreWriter.create_or_open(tmp_path, identity, [ImageKey(1, "a.png", 2, 2)], images_per_shard=1):
        pass
    doctor.run(str(tmp_path), assets=assets)
    assert f"run the same s4m-pipeline {command} again" in capsys.readouterr().out
    next(tmp_path.glob("plan/*.parquet")).write_bytes(b"")
    with pytest.raises(StoreDamagedError) as caught:
        doctor.run(str(tmp_path), assets=assets)
    assert f"--repair, then the same s4m-pipeline {command} again" in caught.value.fix
    doctor.run(str(tmp_path), repair=True, assets=assets)
    assert f"files removed; run the same s4m-pipeline {command} again" in capsys.readouterr().out


SOURCE = {"dataset_fingerprint": "d" * 64, "sam_sha256": ""}


def test_no_store_is_an_input_error(assets, settings):
    with pytest.raises(InputError, match="no store"):
        doctor.run(replace(settings, store="/nowhere/store").store, assets=assets)
