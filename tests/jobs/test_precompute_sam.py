"""The command as a whole: first run, second run, killed run, bad input; on FakeSam, and once on a real SAM 2."""

import ast
import json
import re
import shlex
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

from jobs import cli
from jobs.cluster.ray_runner import WorkerSettings
from jobs.precompute import plan as precompute_plan
from jobs.precompute.cost_model import Row, StageSeconds, load_table
from jobs.precompute_sam import load_inputs, precompute, run
from jobs.settings import PrecomputeSettings, SamSettings, SimilaritySettings
from jobs.store_checks import image_keys, refuse_other_images
from pipeline.data.instance_dataset import InstanceDataset
from pipeline.data.splits import draw_split, save_split
from pipeline.errors import (
    ConfigError,
    EnvironmentProblemError,
    InputError,
    PipelineError,
    StoreMismatchError,
    TooManyQuarantinedError,
)
from pipeline.sam import sam2_backend
from pipeline.sam.generator_settings import GeneratorSettings
from pipeline.stores.proposal_store import ProposalStore
from pipeline.stores.similarity_store import SimilarityStore
from pipeline.stores.verify import verify
from tests.fakes import FakeSam
from tests.jobs.toys import fake_sam, store_files, write_coco, write_images

ROOT = Path(__file__).parents[2]


@pytest.fixture
def settings(tmp_path):
    return PrecomputeSettings(
        images=str(write_coco(tmp_path / "data", 7, labelled=5)),
        store=str(tmp_path / "store"),
        sam=SamSettings("fake"),
        similarity=SimilaritySettings(num_inside=4, num_uniform=4, rows_per_chunk=4),
        proposals=GeneratorSettings(points_per_side=4),
        images_per_shard=2,
    )


def test_both_kinds_are_made_for_the_right_images(settings, capsys):
    precompute(settings, make_backend=fake_sam)
    assert ProposalStore.open(settings.store).image_ids() == list(range(10, 17))
    assert SimilarityStore.open(settings.store).image_ids() == list(range(10, 15))
    out = capsys.readouterr().out
    assert "similarity: skipped 0, redo 0, new 3 shards" in out
    assert "proposals: skipped 0, redo 0, new 4 shards" in out
    assert verify(settings.store) == []


def test_a_finished_run_is_a_no_op(settings, capsys):
    precompute(settings, make_backend=fake_sam)
    before, times = store_files(Path(settings.store)), mtimes(settings.store)
    capsys.readouterr()
    precompute(settings, make_backend=lambda _: Blind())
    assert "proposals: skipped 4, redo 0, new 0" in capsys.readouterr().out
    assert (store_files(Path(settings.store)), mtimes(settings.store)) == (before, times)


class Blind(FakeSam):
    def embed(self, images):
        raise AssertionError("nothing was to be computed")


def mtimes(store):
    files = [p for p in Path(store).rglob("*") if p.is_file() and not p.name.startswith(".")]
    return {p: p.stat().st_mtime_ns for p in files}


def test_only_what_is_missing_is_done_again(settings, capsys):
    precompute(settings, make_backend=fake_sam)
    whole = store_files(Path(settings.store))
    parquet = sorted(Path(settings.store, "proposals").glob("*.parquet"))
    parquet[0].unlink()
    record = Path(settings.store, "records", parquet[1].stem + ".json")
    record.unlink()
    parquet[1].unlink()
    capsys.readouterr()
    precompute(settings, make_backend=fake_sam)
    assert "proposals: skipped 2, redo 1, new 1" in capsys.readouterr().out
    assert store_files(Path(settings.store)) == whole


def test_correcting_an_annotation_leaves_the_proposals_and_refuses_the_targets(settings, tmp_path):
    precompute(settings, make_backend=fake_sam)
    path = Path(settings.images)
    path.write_text(path.read_text().replace("[[4, 4, 12, 4", "[[4, 4, 11, 4"))
    precompute(replace(settings, targets=("proposals",)), make_backend=lambda _: Blind())
    with pytest.raises(StoreMismatchError, match="dataset_fingerprint") as caught:
        precompute(settings, make_backend=fake_sam)
    assert caught.value.exit_code == 3


def test_another_sam_or_other_settings_are_refused_and_named(settings):
    precompute(settings, make_backend=fake_sam)
    with pytest.raises(StoreMismatchError, match="sam_sha256"):
        precompute(settings, make_backend=lambda _: FakeSam(sha256="e" * 64))
    other = replace(settings, proposals=GeneratorSettings(points_per_side=5))
    with pytest.raises(StoreMismatchError, match=r"settings\.points_per_side = 5"):
        precompute(other, make_backend=fake_sam)
    precompute(other, make_backend=fake_sam, overwrite=True)
    # How many prompts go through the decoder together decides nothing that is stored.
    batched = replace(other, proposals=GeneratorSettings(points_per_side=5, points_per_batch=3))
    precompute(batched, make_backend=lambda _: Blind())


def test_dry_run_says_what_it_takes_and_writes_nothing(settings, capsys):
    precompute(settings, make_backend=fake_sam, dry_run=True)
    out = capsys.readouterr().out
    assert "similarity: 3 shards to compute" in out
    assert "proposals: 4 shards to compute" in out
    assert " free" in out
    assert "nobody measured fake on cpu in fp32 here yet" in out
    assert not Path(settings.store).exists()


def test_overwrite_removes_nothing_where_the_run_would_be_refused(settings, tmp_path):
    precompute(settings, make_backend=fake_sam)
    before = store_files(Path(settings.store))
    (tmp_path / "elsewhere").mkdir()
    wrong = replace(settings, image_root=str(tmp_path / "elsewhere"))
    with pytest.raises(TooManyQuarantinedError):
        precompute(wrong, make_backend=fake_sam, overwrite=True)
    assert store_files(Path(settings.store)) == before


def test_a_dry_run_finds_a_wrong_image_folder_and_tells_its_plan_all_the_same(settings, tmp_path, capsys):
    (tmp_path / "elsewhere").mkdir()
    wrong = replace(settings, image_root=str(tmp_path / "elsewhere"))
    with pytest.raises(TooManyQuarantinedError, match="7 of 7 images are broken"):
        precompute(wrong, make_backend=fake_sam, dry_run=True)
    assert "proposals: 4 shards to compute" in capsys.readouterr().out
    # A store that is complete needs no image any more.
    precompute(settings, make_backend=fake_sam)
    precompute(wrong, make_backend=fake_sam, dry_run=True)


@pytest.mark.parametrize("dry_run", [False, True])
def test_overwrite_of_one_kind_is_refused_where_the_other_stays_with_another_sam(settings, dry_run):
    precompute(settings, make_backend=fake_sam)
    before = store_files(Path(settings.store))
    one = replace(settings, targets=("proposals",))
    with pytest.raises(StoreMismatchError, match="sam_sha256"):
        precompute(one, make_backend=other_sam, overwrite=True, dry_run=dry_run)
    assert store_files(Path(settings.store)) == before
    precompute(settings, make_backend=other_sam, overwrite=True, dry_run=dry_run)  # both go: nothing is in the way


def other_sam(_settings):
    return FakeSam(sha256="e" * 64)


@pytest.mark.parametrize(
    ("address", "workers", "words"),
    [("127.0.0.1:1", WorkerSettings(), "Ray is not there"), ("start", WorkerSettings(gpus=99), "no room")],
)
def test_overwrite_removes_nothing_where_no_worker_can_start(settings, address, workers, words):
    precompute(settings, make_backend=fake_sam)
    before = store_files(Path(settings.store))
    with pytest.raises(EnvironmentProblemError, match=words):
        precompute(replace(settings, workers=workers), make_backend=fake_sam, overwrite=True, ray_address=address)
    assert store_files(Path(settings.store)) == before


def test_a_broken_table_of_measurements_stops_nothing(settings, tmp_path, capsys, monkeypatch):
    (tmp_path / "table.json").write_text("[")
    monkeypatch.setattr(precompute_plan, "load_table", lambda: load_table(tmp_path / "table.json"))
    precompute(settings, make_backend=fake_sam, dry_run=True)
    precompute(settings, make_backend=fake_sam)
    out = capsys.readouterr().out
    assert out.count("no estimate: the table of measured stages cannot be read") == 2
    assert "proposals: 7 images" in out


def measured(**changes):
    row = Row(
        sam="fake",
        device="cpu",
        precision="fp32",
        threads=1,
        images=10,
        megapixels=24 * 32 / 1e6,
        clicks=16,
        candidates=9.0,
        proposals=2.0,
        bytes_per_proposal=100.0,
        stages=StageSeconds(1.0, 2.0, 4.0, 8.0, 16.0, 32.0),
        similarity_per_point=0.5,
        peak_memory_bytes=3 * 10**9,
        provenance={"machine": "a box"},
    )
    return replace(row, **changes)


def test_dry_run_tells_hours_disk_and_memory_from_what_was_measured(settings, capsys, monkeypatch):
    """7 images of the measured size and settings: 63 s each; 5 with targets of 8 rows: 1 + 2 + 4 s each."""
    monkeypatch.setattr(precompute_plan, "load_table", lambda: [measured(sam="other"), measured()])
    precompute(settings, make_backend=fake_sam, dry_run=True)
    out = capsys.readouterr().out
    assert "proposals: 4 shards to compute (skipped 0, redo 0, new 4), 7 images, about 7 min on one worker" in out
    assert "5 images, about 35 s on one worker" in out
    assert "time: about 8 min with 1 at a time, memory: about 3.0 GB" in out
    assert "a box" in out
    # Workers are for Ray: without it, one shard comes after the other.
    many = replace(settings, workers=WorkerSettings(count=4))
    precompute(many, make_backend=fake_sam, dry_run=True)
    assert "time: about 8 min with 1 at a time" in capsys.readouterr().out
    precompute(many, make_backend=fake_sam, dry_run=True, ray_address="start")
    assert "time: about 119 s with 4 at a time" in capsys.readouterr().out
    precompute(settings, make_backend=fake_sam, dry_run=True, ray_address="start")
    assert "with one worker, less with as many as the cluster has room for" in capsys.readouterr().out
    precompute(settings, make_backend=fake_sam)
    assert "(estimated: 8 min)" in capsys.readouterr().out
    precompute(settings, make_backend=fake_sam)
    assert "time:" not in capsys.readouterr().out


def test_a_dry_run_needs_neither_the_gpu_nor_the_checkpoint(tmp_path, capsys, monkeypatch):
    """As on a cluster's login node; which GPU the nodes have is said with --gpu."""
    monkeypatch.setattr(sam2_backend, "fetch_checkpoint", lambda _: pytest.fail("downloaded"))
    rows = [measured(sam="sam2.1_hiera_tiny", device="NVIDIA H100 80GB HBM3", precision="bf16"), measured()]
    monkeypatch.setattr(precompute_plan, "load_table", lambda: rows)
    config = tmp_path / "config.py"
    config.write_text(
        f"""images = "{write_coco(tmp_path / "data", 3)}"
store = "{tmp_path}/store"
sam = dict(name="sam2.1_hiera_tiny", device="cuda:7", precision="bf16")
"""
    )
    run(config, dry_run=True)
    out = capsys.readouterr().out
    assert "nobody measured sam2.1_hiera_tiny on cuda in bf16" in out
    assert "measured so far: sam2.1_hiera_tiny on NVIDIA H100 80GB HBM3 in bf16, fake on cpu in fp32" in out
    run(config, dry_run=True, gpu="h100")
    out = capsys.readouterr().out
    assert "3 images, about" in out
    assert "measured on NVIDIA H100 80GB HBM3, on 10 images" in out
    run(config, dry_run=True, gpu="A100")
    assert "nobody measured sam2.1_hiera_tiny on A100 in bf16" in capsys.readouterr().out
    with pytest.raises(ConfigError, match="for an estimate only") as caught:
        run(config, gpu="h100")
    assert caught.value.fix == "add --dry-run"
    with pytest.raises(ConfigError, match="bf16 is for CUDA"):
        run(config, cfg_options=["sam.device=cpu"], dry_run=True)


@pytest.mark.parametrize(
    ("limit", "expected"),
    [(1, [10]), (3, [10, 11, 15]), (6, [10, 11, 12, 13, 15, 16]), (7, [*range(10, 17)]), (99, [*range(10, 17)])],
)
def test_limit_takes_the_first_of_both_sorts(settings, limit, expected):
    coco, labelled = load_inputs(settings, limit=limit)
    assert sorted(coco.by_id) == expected
    assert sorted(labelled.by_id) == [image_id for image_id in expected if image_id < 15]


def test_a_split_decides_who_gets_targets(settings, tmp_path):
    drawn = draw_split(load_inputs(settings)[0], percent=30, seed=1)
    save_split(drawn, tmp_path / "split.json")
    precompute(replace(settings, split=str(tmp_path / "split.json")), make_backend=fake_sam)
    assert SimilarityStore.open(settings.store).image_ids() == list(drawn.labelled)
    assert len(drawn.labelled) == 2
    assert len(ProposalStore.open(settings.store).image_ids()) == 7


def test_labelled_images_without_an_object_get_no_targets_and_a_teacher_wants_none(settings, tmp_path):
    path = Path(settings.images)
    content = json.loads(path.read_text())
    bare, crowd, *rest = sorted({entry["image_id"] for entry in content["annotations"]})
    content["annotations"] = [entry for entry in content["annotations"] if entry["image_id"] != bare]
    for entry in content["annotations"]:
        entry["iscrowd"] = int(entry["image_id"] == crowd)
    path.write_text(json.dumps(content))
    drawn = draw_split(load_inputs(settings)[0], percent=30, seed=1)
    others = {*drawn.labelled, *drawn.unlabelled} - {bare, crowd, *rest}
    drawn = replace(drawn, labelled=(bare, crowd, *rest), unlabelled=tuple(sorted(others)))
    save_split(drawn, tmp_path / "split.json")
    for split in (None, str(tmp_path / "split.json")):
        _, labelled = load_inputs(replace(settings, split=split))
        assert sorted(labelled.by_id) == rest
    # A store of all images with an object serves every share of labels.
    precompute(settings, make_backend=fake_sam)
    taught = InstanceDataset(
        annotation_file=str(path),
        image_root=settings.image_root or str(path.parent),
        split_file=str(tmp_path / "split.json"),
        part="labelled",
        pipeline=[],
    ).coco
    refuse_other_images(settings.store, "similarity", image_keys(taught.images))


def test_a_split_of_other_images_is_refused(settings, tmp_path):
    others = load_inputs(replace(settings, images=str(write_coco(tmp_path / "others", 9))))[0]
    save_split(draw_split(others, percent=30, seed=1), tmp_path / "split.json")
    with pytest.raises(InputError, match="made for other images"):
        precompute(replace(settings, split=str(tmp_path / "split.json")), make_backend=fake_sam)


def test_a_plain_folder_has_proposals_but_no_targets(settings, tmp_path):
    write_images(tmp_path / "plain", 3)
    folder = replace(settings, images=str(tmp_path / "plain"))
    with pytest.raises(ConfigError, match="labelled images"):
        precompute(folder, make_backend=fake_sam)
    assert not Path(settings.store).exists()
    precompute(replace(folder, targets=("proposals",)), make_backend=fake_sam)
    assert ProposalStore.open(settings.store).image_ids() == [1, 2, 3]


def test_broken_files_of_a_folder_are_counted_and_keep_their_number(settings, tmp_path, capsys):
    write_images(tmp_path / "plain", 3)
    (tmp_path / "plain/00.png").write_bytes(b"<html>")
    folder = replace(settings, images=str(tmp_path / "plain"), targets=("proposals",), max_broken_share=0.5)
    precompute(folder, make_backend=fake_sam)
    assert ProposalStore.open(settings.store).image_ids() == [2, 3]
    assert "left out: 1 image files" in capsys.readouterr().out


def test_missing_images_are_found_before_anything_is_written(settings, tmp_path):
    for name in ("00.png", "03.png"):
        (tmp_path / "data" / name).unlink()
    with pytest.raises(TooManyQuarantinedError, match="2 of 7 images are broken") as caught:
        precompute(settings, make_backend=fake_sam)
    assert caught.value.exit_code == 4
    assert "03.png" in str(caught.value)
    assert not Path(settings.store).exists()


def test_bad_images_within_the_share_are_rows_with_a_reason_and_can_be_tried_again(settings, tmp_path, capsys):
    bad = tmp_path / "data/03.png"
    whole = bad.read_bytes()
    bad.write_bytes(whole[:-40])  # its header is sound
    precompute(replace(settings, max_broken_share=0.2), make_backend=fake_sam)
    assert list(ProposalStore.open(settings.store).quarantined()) == [13]
    out = capsys.readouterr().out
    assert re.search(r"1 x read: .*: 03\.png\n", out)
    assert "retry_quarantined=True" in out
    with pytest.raises(TooManyQuarantinedError, match="1 of 5 images") as caught:
        precompute(settings, make_backend=lambda _: Blind())
    assert re.search(r"1 x read: .*: 03\.png\n", str(caught.value))
    assert "retry_quarantined=True" in str(caught.value)
    bad.write_bytes(whole)
    precompute(replace(settings, retry_quarantined=True), make_backend=fake_sam)
    assert ProposalStore.open(settings.store).quarantined() == {}
    fresh = replace(settings, store=str(tmp_path / "fresh"))
    precompute(fresh, make_backend=fake_sam)
    assert store_files(Path(settings.store)) == store_files(tmp_path / "fresh")


def test_no_images_file_is_said_plainly(settings):
    with pytest.raises(InputError, match="images not found"):
        precompute(replace(settings, images="/nowhere/instances.json"), make_backend=fake_sam)


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("images", "demo/scenes/annotations/train.json", "s4m-pipeline demo"),
        ("images", "/nowhere/instances.json", "the head of the configuration"),
        ("split", "demo/scenes/split.json", "s4m-pipeline demo"),
        ("split", "/nowhere/split/split.json", "--image-root pictures --percent P --out /nowhere/split)"),
    ],
)
@pytest.mark.parametrize("dry_run", [False, True])
def test_a_missing_input_is_told_with_what_makes_it(settings, tmp_path, monkeypatch, name, value, words, dry_run):
    monkeypatch.chdir(tmp_path)
    wrong = replace(settings, **{"image_root": "pictures", name: value})
    with pytest.raises(InputError, match=f"{name} not found") as caught:
        precompute(wrong, make_backend=fake_sam, dry_run=dry_run)
    assert words in caught.value.fix


@pytest.mark.parametrize(
    ("option", "code", "words"),
    [
        ("images=EMPTY", 3, "empty data set"),
        ("images=SURROGATE", 3, "half a character"),
        ("store=ftp://127.0.0.1:1/x", 6, "ConnectionRefusedError"),
        ("store=nothing://x", 3, "no file system is known"),
        ("sam.name=nothing", 3, "correct sam.name"),
        ("sam.device=tpu", 3, "correct sam.device"),
    ],
)
def test_every_refusal_says_what_to_do_next(tmp_path, option, code, words):
    whole = write_coco(tmp_path / "data", 2)
    values = json.loads(whole.read_text())
    (tmp_path / "data/EMPTY").write_text(json.dumps({**values, "images": [], "annotations": []}))
    values["images"][0]["file_name"] = "a\ud800.png"
    (tmp_path / "data/SURROGATE").write_text(json.dumps(values))
    config = tmp_path / "config.py"
    config.write_text(f'images = "{whole}"\nstore = "{tmp_path}/store"\nsam = dict(name="scenes-nano")\n')
    key, _, value = option.partition("=")
    value = str(tmp_path / "data" / value) if value.isupper() else value
    with pytest.raises(PipelineError) as caught:
        run(config, cfg_options=[f"{key}={value}"])
    assert caught.value.exit_code == code
    assert words in str(caught.value)
    assert "next:" in str(caught.value)


@pytest.mark.parametrize(
    ("option", "words"), [("annotations=a.json", "images=FILE"), ("percent=5", "split=DIR/split.json")]
)
def test_keys_of_trainings_are_told_what_they_are_called_here(option, words):
    with pytest.raises(ConfigError, match="does not exist") as caught:
        run(ROOT / "configs/sam/coco.py", cfg_options=[option], dry_run=True)
    assert words in caught.value.got


def test_the_commands_that_the_nuclei_config_says_run(tmp_path, monkeypatch):
    write_coco(tmp_path / "IMAGES", 4).rename(tmp_path / "train.json")
    text = ast.get_docstring(ast.parse((ROOT / "configs/sam/nuclei.py").read_text())).replace("\\\n", " ")
    text = text.replace("DIR", str(tmp_path)).replace("IMAGES", str(tmp_path / "IMAGES"))
    commands = [shlex.split(line) for line in text.splitlines() if "s4m-pipeline" in line]
    assert [words[1] for words in commands] == ["split", "precompute-sam"]
    monkeypatch.chdir(ROOT)
    for words in commands:
        with pytest.raises(SystemExit) as caught:
            cli.main([*words[1:], *(["--dry-run"] if words[1] == "precompute-sam" else [])])
        assert caught.value.code in (0, None)


@pytest.mark.slow
@pytest.mark.timeout(900)  # four minutes on two busy cores: Ray, two workers, each with a child that imports torch
def test_a_started_ray_writes_the_same_store_to_the_byte(settings, tmp_path):
    precompute(settings, make_backend=fake_sam)
    clustered = replace(settings, store=str(tmp_path / "clustered"), workers=WorkerSettings(count=2))
    precompute(clustered, make_backend=fake_sam, ray_address="start")
    assert store_files(tmp_path / "clustered") == store_files(Path(settings.store))


def write_command(folder: Path) -> Path:
    """A configuration for the real command: SAM 2 classes with random weights, nine images."""
    import torch
    from safetensors.torch import save_file

    from pipeline.sam.sam2_backend import build_model

    torch.manual_seed(0)
    save_file(build_model(ROOT / "pipeline/assets/scenes_nano.yaml").state_dict(), folder / "random.safetensors")
    write_coco(folder / "data", 9, labelled=3)
    config = folder / "config.py"
    config.write_text(
        f"""images = "{folder}/data/instances.json"
store = "{folder}/store"
sam = dict(name="{folder}/random.safetensors", config="scenes-nano")
similarity = dict(num_inside=4, num_uniform=4, rows_per_chunk=4)
proposals = dict(points_per_side=6, pred_iou_threshold=0.0, stability_score_threshold=0.0)
images_per_shard = 1
"""
    )
    return config


def command(config: Path, store: Path) -> list[str | Path]:
    return [sys.executable, "-m", "jobs.cli", "precompute-sam", config, "--work-dir", store]


def test_killed_halfway_and_run_again_only_missing_shards_are_done_and_the_bytes_are_equal(tmp_path):
    config = write_command(tmp_path)
    subprocess.run(command(config, tmp_path / "whole"), cwd=ROOT, check=True, capture_output=True)
    whole = store_files(tmp_path / "whole")
    process = subprocess.Popen(command(config, tmp_path / "cut"), cwd=ROOT, stdout=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 120
    while len(list(tmp_path.glob("cut/records/*.json"))) < 6:  # 3 of similarity, then into the proposals
        assert time.monotonic() < deadline
        assert process.poll() is None, "it ended before it could be killed"
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.wait()
    finished = {p.name: p.stat().st_mtime_ns for p in tmp_path.glob("cut/records/*.json")}
    assert 6 <= len(finished) < 12
    again = subprocess.run(command(config, tmp_path / "cut"), cwd=ROOT, check=True, capture_output=True, text=True)
    told = re.search(r"proposals: skipped (\d+), redo (\d+), new (\d+)", again.stdout)
    skipped, redo, new = map(int, told.groups())
    assert "similarity: skipped 3, redo 0, new 0" in again.stdout
    assert (skipped, skipped + redo + new) == (len(finished) - 3, 9)
    assert redo <= 1  # at most the shard in flight
    left = {name: p.stat().st_mtime_ns for name in finished for p in [tmp_path / "cut/records" / name]}
    assert left == finished  # finished shards were not touched
    assert store_files(tmp_path / "cut") == whole
