"""pseudo-label as a whole: first run, second run, stopped run, broken images, refusals, and what the rows mean."""

import json
import shutil
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from data_schemas.pseudo_labels import OUTCOMES, PSEUDO_LABEL_SCHEMA
from jobs import evaluate, pseudo_label
from jobs.labels.instances import PseudoLabelStage
from jobs.labels.settings import refiner_of
from jobs.networks import open_config
from pipeline.data.coco import load_coco
from pipeline.errors import (
    CheckpointError,
    ConfigError,
    EnvironmentProblemError,
    InputError,
    StoreMismatchError,
    TooManyQuarantinedError,
)
from pipeline.masks import rle
from pipeline.models.weights import ASSETS
from pipeline.stores.verify import verify
from tests.jobs import toy_networks as toys

POINTS = toys.CONFIGS / "student" / "scenes_points.py"
FILTER = ["model.pseudo_labels.score_threshold=0.2"]


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return tmp_path_factory.mktemp("pseudo_label")


@pytest.fixture(scope="module")
def options(root):
    return [*toys.write_data(root / "scenes", num_train=5, num_val=1), *FILTER]


@pytest.fixture(scope="module")
def student(root, options):
    return toys.write_student(root / "student.pth", options[:-1], toys.class_list(root / "scenes"))


@pytest.fixture(scope="module")
def train(root):
    return load_coco(root / "scenes" / "annotations" / "train.json", root / "scenes" / "images")


@pytest.fixture(scope="module")
def unlabelled(root):
    return json.loads((root / "scenes" / "split.json").read_text())["unlabelled"]


@pytest.fixture(scope="module")
def library(root, train):
    return toys.write_library(root / "library", train)


@pytest.fixture(scope="module")
def finished(root, options, student):
    """One whole run with one image a shard, no refiner."""
    folder = root / "finished"
    label(student, folder, [*options, "pseudo_label.images_per_shard=1"])
    return folder


def label(checkpoint, folder, options, *, config=toys.STUDENT, **more):
    pseudo_label.run(config, checkpoint, cfg_options=options, work_dir=folder, **more)


def rows_of(folder):
    return [row for file in sorted((folder / "pseudo_labels").iterdir()) for row in pq.read_table(file).to_pylist()]


def read(folder, name):
    return json.loads((folder / name).read_text())


def data_files(folder):
    paths = [p for p in folder.rglob("*") if p.suffix in (".parquet", ".json") and not p.name.startswith(".")]
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in paths if p.name != "summary.json"}


# --- what comes out ---


def test_rows_results_and_summary_agree(finished, unlabelled):
    rows, results, summary = rows_of(finished), read(finished, "results.json"), read(finished, "summary.json")
    assert [field.name for field in PSEUDO_LABEL_SCHEMA] == list(rows[0])
    assert {row["image_id"] for row in rows} <= {*unlabelled}
    assert summary["images"] == {"planned": len(unlabelled), "labelled": len(unlabelled), "set_aside": 0, "reasons": {}}
    assert summary["rows"] == len(rows) > 20
    kept = [row for row in rows if row["refined_area"]]
    assert sorted((r["image_id"], r["segmentation"]["counts"], r["category_id"]) for r in results) == sorted(
        (row["image_id"], row["refined_rle"], row["category_id"]) for row in kept
    )
    assert summary["pseudo_labels"] == len(results)
    assert summary["mean_per_image"] == len(results) / len(unlabelled)
    outcomes = [row["outcome"] for row in rows]
    assert summary["outcomes"] == {name: outcomes.count(name) for name in OUTCOMES}
    for row in rows:
        for which in ("network", "refined"):
            code = rle.Rle(size=[row["height"], row["width"]], counts=row[f"{which}_rle"])
            assert rle.decode(code).sum() == row[f"{which}_area"]
    assert all(row["score"] > 0.2 for row in rows)
    assert verify(finished) == []


def test_without_a_refiner_nothing_changes(finished):
    rows, quality = rows_of(finished), read(finished, "summary.json")["quality"]
    assert all(row["network_rle"] == row["refined_rle"] for row in rows)
    assert {row["outcome"] for row in rows} <= {"kept", "empty"}
    assert quality["before"] == quality["after"]


def test_a_library_refiner_only_gives_masks_of_the_library(root, options, student, train, library, tmp_path):
    chosen = [*options, f"store={library}", "model.refiner.name=iom", "model.refiner.iou_threshold=0.02"]
    label(student, tmp_path / "iom", chosen)
    rows, summary = rows_of(tmp_path / "iom"), read(tmp_path / "iom", "summary.json")
    stored = {i: {a.rle["counts"] for a in entries} for i, entries in train.annotations.items()}
    by_outcome = {name: [row for row in rows if row["outcome"] == name] for name in ("matched", "kept", "empty")}
    assert by_outcome["matched"]
    assert all(row["refined_rle"] in stored[row["image_id"]] for row in by_outcome["matched"])
    assert all(row["refined_rle"] == row["network_rle"] for row in by_outcome["kept"] + by_outcome["empty"])
    # The library is the ground truth: what matched is right in every pixel.
    assert summary["quality"]["after"]["num_matched"] > summary["quality"]["before"]["num_matched"]
    assert summary["identity"]["sam_name"] == "oracle"


def test_dropped_masks_are_rows_without_a_pixel_and_no_results(root, options, student, library, tmp_path):
    chosen = [*options, f"store={library}", "model.refiner.name=iom", "model.refiner.iou_threshold=0.02"]
    label(student, tmp_path / "run", [*chosen, "model.refiner.unmatched=drop"])
    rows, summary = rows_of(tmp_path / "run"), read(tmp_path / "run", "summary.json")
    dropped = [row for row in rows if row["outcome"] == "dropped"]
    assert dropped
    assert all(row["refined_area"] == 0 < row["network_area"] for row in dropped)
    assert summary["outcomes"]["dropped"] == len(dropped)
    assert summary["outcomes"]["kept"] == 0
    assert summary["pseudo_labels"] == summary["outcomes"]["matched"] == len(read(tmp_path / "run", "results.json"))


def test_its_results_are_what_evaluate_reads(root, finished, options, tmp_path):
    annotations = root / "scenes" / "annotations" / "train.json"
    chosen = [*options, f"val_annotations={annotations}", "val_part=unlabelled"]
    report = evaluate.run(toys.STUDENT, finished / "results.json", cfg_options=chosen, work_dir=tmp_path)
    assert report["pseudo_labels"] == read(finished, "summary.json")["quality"]["after"]


def test_which_network_labels(root, options, student, finished, tmp_path):
    label(student, tmp_path / "student", options, network="student")
    assert rows_of(tmp_path / "student") != rows_of(finished)
    assert read(finished, "summary.json")["identity"]["settings"]["network"] == "teacher"


@pytest.mark.skipif(not (ASSETS / "scenes_nano.safetensors").is_file(), reason="the embedded SAM is not there")
def test_point_prompts_do_not_depend_on_the_shards(root, options, student, tmp_path):
    results = []
    for size in (1, 3):
        folder = tmp_path / str(size)
        few = [*options, "model.pseudo_labels.score_threshold=0.9", f"pseudo_label.images_per_shard={size}"]
        label(student, folder, few, config=POINTS, limit=3)
        results.append((folder / "results.json").read_bytes())
        assert read(folder, "summary.json")["outcomes"]["matched"] > 0
        assert read(folder, "summary.json")["identity"]["sam_name"] == "scenes-nano"
    assert results[0] == results[1]


# --- again, stopped, and in parts ---


def test_a_finished_run_is_a_no_op(finished, options, student, monkeypatch, capsys):
    monkeypatch.setattr(pseudo_label, "PseudoLabelStage", None)
    before = {p: p.stat().st_mtime_ns for p in finished.rglob("*") if p.is_file() and not p.name.startswith(".")}
    label(student, finished, [*options, "pseudo_label.images_per_shard=1"])
    after = {p: p.stat().st_mtime_ns for p in finished.rglob("*") if p.is_file() and not p.name.startswith(".")}
    assert after == before
    out = capsys.readouterr().out
    assert "new 0" in out
    assert "already finished" in out


def test_a_stopped_run_goes_on_and_ends_as_if_never_stopped(
    finished, options, student, unlabelled, tmp_path, monkeypatch, capsys
):
    chosen, seen, real = [*options, "pseudo_label.images_per_shard=1"], [], PseudoLabelStage.label

    def stop_at_the_third(stage, key, image):
        seen.append(key.image_id)
        if len(seen) == 3:
            raise KeyboardInterrupt
        return real(stage, key, image)

    monkeypatch.setattr(PseudoLabelStage, "label", stop_at_the_third)
    with pytest.raises(KeyboardInterrupt):
        label(student, tmp_path / "run", chosen)
    assert not (tmp_path / "run" / "summary.json").exists()
    assert not (tmp_path / "run" / "results.json").exists()
    first = seen[:2]
    label(student, tmp_path / "run", chosen)
    assert seen[3:] == [i for i in sorted(unlabelled) if i not in first]
    assert "skipped 2" in capsys.readouterr().out
    assert data_files(tmp_path / "run") == data_files(finished)


def test_lost_results_are_made_again_from_the_shards(finished, options, student, tmp_path, monkeypatch):
    shutil.copytree(finished, tmp_path / "run")
    monkeypatch.setattr(PseudoLabelStage, "label", None)
    for name in ("results.json", "summary.json"):
        (tmp_path / "run" / name).unlink()
        label(student, tmp_path / "run", [*options, "pseudo_label.images_per_shard=1"])
        assert data_files(tmp_path / "run") == data_files(finished)


def test_dry_run_writes_nothing(options, student, tmp_path, capsys):
    label(student, tmp_path / "run", [*options, "pseudo_label.images_per_shard=3"], dry_run=True)
    assert "2 shards to label" in capsys.readouterr().out
    assert not (tmp_path / "run").exists()


def test_what_decides_no_label_makes_no_other_run_of_it(finished, options, student, tmp_path, capsys):
    shutil.copytree(finished, tmp_path / "run")
    chosen = [*options, "pseudo_label.images_per_shard=1", "model.pseudo_labels.unsure_threshold=0.1"]
    label(student, tmp_path / "run", chosen)
    assert "already finished" in capsys.readouterr().out


def test_overwrite_starts_again(finished, options, student, tmp_path):
    shutil.copytree(finished, tmp_path / "run")
    other = [*options, "pseudo_label.images_per_shard=1", "model.pseudo_labels.score_threshold=0.99"]
    with pytest.raises(StoreMismatchError, match="filter"):
        label(student, tmp_path / "run", other)
    assert data_files(tmp_path / "run") == data_files(finished)
    label(student, tmp_path / "run", other, overwrite=True)
    assert all(row["score"] > 0.99 for row in rows_of(tmp_path / "run"))


def test_overwrite_removes_nothing_where_the_run_would_be_refused(
    finished, root, options, student, library, train, tmp_path
):
    run = tmp_path / "run"
    shutil.copytree(finished, run)
    before = data_files(run)
    with pytest.raises(EnvironmentProblemError, match="Ray is not there"):
        label(student, run, options, overwrite=True, ray_address="127.0.0.1:1")
    shutil.copytree(root / "scenes", tmp_path / "scenes", ignore=shutil.ignore_patterns("*.png", "*.jpg"))
    empty = [f"data_root={tmp_path / 'scenes'}", *toys.TINY, *FILTER]
    for dry_run in (True, False):
        with pytest.raises(TooManyQuarantinedError):
            label(student, run, empty, overwrite=True, dry_run=dry_run)
    assert data_files(run) == before
    shutil.copytree(library, tmp_path / "library")  # of another SAM than the labels
    for dry_run in (True, False):
        with pytest.raises(StoreMismatchError, match="sam_sha256"):
            label(student, tmp_path / "library", options, overwrite=True, dry_run=dry_run)


@pytest.mark.slow
def test_on_ray_the_labels_are_the_same(finished, options, student, tmp_path):
    chosen = [*options, "pseudo_label.images_per_shard=1", "pseudo_label.workers.count=1"]
    label(student, tmp_path / "run", chosen, ray_address="start")
    assert data_files(tmp_path / "run") == data_files(finished)


# --- broken images ---


def test_a_broken_image_is_recorded_and_counted(root, student, unlabelled, train, tmp_path, capsys):
    shutil.copytree(root / "scenes", tmp_path / "scenes")
    chosen = [f"data_root={tmp_path / 'scenes'}", *toys.TINY, *FILTER]
    victim = train.by_id[unlabelled[1]]
    path = tmp_path / "scenes" / "images" / victim.file_name
    path.write_bytes(path.read_bytes()[:2000])  # the header is whole, the pixels are not
    with pytest.raises(TooManyQuarantinedError, match=f"1 of {len(unlabelled)} images") as caught:
        label(student, tmp_path / "run", chosen)
    assert caught.value.exit_code == 4
    assert victim.file_name in caught.value.got
    summary = read(tmp_path / "run", "summary.json")
    assert summary["images"]["set_aside"] == 1
    assert [reason.split(":")[0] for reason in summary["images"]["reasons"]] == ["read"]
    assert {row["image_id"] for row in rows_of(tmp_path / "run")} <= {*unlabelled} - {victim.image_id}
    good = sum(len(train.annotations[i]) for i in unlabelled if i != victim.image_id)
    assert summary["quality"]["after"]["num_ground_truth"] == good
    capsys.readouterr()
    label(student, tmp_path / "run", [*chosen, "pseudo_label.max_broken_share=0.5"])
    out = capsys.readouterr().out
    assert f": {victim.file_name}\n" in out
    assert "pseudo_label.retry_quarantined=True" in out

    shutil.copy(root / "scenes" / "images" / victim.file_name, path)
    for retry, shards in ((False, 0), (True, 1)):
        again = [*chosen, "pseudo_label.max_broken_share=0.5", f"pseudo_label.retry_quarantined={retry}"]
        label(student, tmp_path / "run", again, dry_run=True)
        assert f": {shards} shards to label" in capsys.readouterr().out
    label(student, tmp_path / "run", [*chosen, "pseudo_label.retry_quarantined=True"])
    assert read(tmp_path / "run", "summary.json")["images"]["set_aside"] == 0


# --- other images ---


def test_a_folder_of_images_is_labelled_with_the_data_set_s_categories(root, options, student, tmp_path):
    content = json.loads((root / "scenes" / "annotations" / "train.json").read_text())
    for category in content["categories"]:
        category["id"] += 40
    for annotation in content["annotations"]:
        annotation["category_id"] += 40
    renumbered = tmp_path / "train.json"
    renumbered.write_text(json.dumps(content))
    folder = root / "scenes" / "images" / "val"
    stream = "train_dataloader.dataset.labelled.dataset.annotation_file"
    label(student, tmp_path / "run", [*options, f"pseudo_label.images={folder}", f"{stream}={renumbered}"])
    summary = read(tmp_path / "run", "summary.json")
    assert summary["quality"] is None
    assert [c["id"] for c in summary["categories"]] == [41, 42, 43, 44, 45, 46, 47, 48]
    assert {row["image_id"] for row in rows_of(tmp_path / "run")} == {1}
    assert {row["category_id"] for row in rows_of(tmp_path / "run")} <= {*range(41, 49)}


def test_without_names_in_the_checkpoint_the_training_file_tells(root, options, student, finished, tmp_path):
    nameless = toys.write_student(tmp_path / "nameless.pth", options[:-1], None)
    label(nameless, tmp_path / "run", [*options, "pseudo_label.images_per_shard=1"])
    assert rows_of_by_id(tmp_path / "run") == rows_of_by_id(finished)


def rows_of_by_id(folder):
    return sorted(rows_of(folder), key=lambda row: (row["image_id"], row["instance_id"]))


# --- bad input ---


def test_another_checkpoint_in_the_same_place_is_refused(finished, root, options, tmp_path):
    other = toys.write_student(tmp_path / "other.pth", options[:-1], toys.class_list(root / "scenes")[::-1])
    before = data_files(finished)
    with pytest.raises(StoreMismatchError, match="checkpoint_sha256"):
        label(other, finished, [*options, "pseudo_label.images_per_shard=1"])
    assert data_files(finished) == before


def test_a_library_of_other_images_is_refused(root, options, student, library, tmp_path):
    val = root / "scenes" / "annotations" / "val.json"
    content = json.loads(val.read_text())
    for image in content["images"]:
        image["id"] = 1  # an id that the library has, for another image
    for annotation in content["annotations"]:
        annotation["image_id"] = 1
    (tmp_path / "val.json").write_text(json.dumps(content))
    images = [f"pseudo_label.images={tmp_path / 'val.json'}", f"pseudo_label.image_root={root / 'scenes' / 'images'}"]
    with pytest.raises(StoreMismatchError, match="not of these images"):
        label(student, tmp_path / "run", [*options, *images, f"store={library}", "model.refiner.name=cpi"])
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("more", "kind", "message"),
    [
        (["model.refiner.name=cpu_u"], ConfigError, "nearest: cpi_u"),
        (["model.refiner.nam=none"], ConfigError, "unknown setting of refiner none"),
        (["model.refiner.name=points"], ConfigError, "points needs sam"),
        (["model.refiner.name=cpi", "store=no/such/store"], InputError, "store"),
        (["pseudo_label.imges=x"], ConfigError, r"nearest: pseudo_label\.images"),
        (["pseudo_label.images_per_shard=0"], ConfigError, "out of range"),
        (["pseudo_label.images=no/such"], InputError, "images not found"),
        (["pseudo_label.part=all", "pseudo_label.images_per_shard=x"], ConfigError, "images_per_shard"),
        (["split_file=no.json"], InputError, "split file not found"),
        (["model.pseudo_labels.score_threshold=7"], ConfigError, "not a probability"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_bad_settings_are_told_and_nothing_is_written(more, kind, message, options, student, tmp_path):
    with pytest.raises(kind, match=message):
        label(student, tmp_path / "run", [*options, *more])
    assert not (tmp_path / "run").exists()


def test_no_checkpoint_and_no_images(options, student, tmp_path):
    with pytest.raises(CheckpointError, match="no such checkpoint"):
        label(tmp_path / "no.pth", tmp_path / "run", options)
    text = "model = dict(type='x')\n"
    (tmp_path / "bare.py").write_text(text)
    with pytest.raises(ConfigError, match="cannot be built"):
        label(student, tmp_path / "run", [], config=tmp_path / "bare.py")
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="empty data set"):
        label(student, tmp_path / "run", [*options, f"pseudo_label.images={tmp_path / 'empty'}"])
    assert not (tmp_path / "run").exists()


def test_another_refiner_leaves_the_settings_of_the_config_s_own_behind():
    def chosen(*given):
        return refiner_of(open_config(POINTS, given), POINTS, given)

    own = {"name": "points", "sam": "scenes-nano", "num_points": 3}
    assert chosen() == own
    assert chosen("model.refiner.num_points=5") == own | {"num_points": 5}
    other = chosen("model.refiner.name=iom", "model.refiner.iou_threshold=0.3")
    assert other == {"name": "iom", "sam": "scenes-nano", "iou_threshold": 0.3, "store": "demo/store"}
    named = chosen("model.refiner.name=cpi", "model.refiner.store=elsewhere", "store=here")
    assert named["store"] == "elsewhere"
    assert Path(POINTS).is_file()
