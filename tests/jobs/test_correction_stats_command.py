"""``correction-stats`` on toy scenes: a teacher that sees half of every object, proposals that are the objects."""

import json
from pathlib import Path

import numpy as np
import pytest

from data_schemas.manifest import SCHEMA_VERSIONS, ImageKey, StoreIdentity
from data_schemas.proposals import Proposal
from data_schemas.pseudo_labels import PseudoLabel
from jobs.correction_stats import parse_strategies, run
from jobs.labels.sentences import quality
from pipeline.data.coco import load_coco
from pipeline.data.referring.dataset import ReferDataset
from pipeline.errors import AnnotationError, ConfigError, InputError
from pipeline.masks import rle
from pipeline.stores.proposal_store import commit_proposals
from pipeline.stores.pseudo_label_store import commit_pseudo_labels
from pipeline.stores.writer import StoreWriter
from tests.toy_scenes import small_scenes

NUM_IMAGES = 4


def upper_half(code):
    """Of the object's pixels, the first half row by row."""
    mask = rle.decode(code)
    places = np.flatnonzero(mask)
    half = np.zeros(mask.size, bool)
    half[places[: (len(places) + 1) // 2]] = True
    return rle.encode(half.reshape(mask.shape))


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    root = tmp_path_factory.mktemp("world")
    files = small_scenes(root / "scenes", num_train=NUM_IMAGES, num_val=1)
    coco = load_coco(files.annotations("train"), files.image_root)
    images = [ImageKey(i.image_id, i.file_name, i.height, i.width) for i in coco.images]
    identity = StoreIdentity("proposals", SCHEMA_VERSIONS["proposals"], "0" * 64, "toy", "0" * 64)
    with StoreWriter.create_or_open(root / "store", identity, images, images_per_shard=8) as writer:
        for task in writer.missing().tasks:
            commit_proposals(task, {key.image_id: proposals_of(coco, key) for key in task.plan.images})
    results = [
        {"image_id": i, "category_id": a.category_id, "score": 0.9, "segmentation": upper_half(a.rle)}
        for i, entries in coco.annotations.items()
        for a in entries
    ]
    (root / "results.json").write_text(json.dumps(results))
    return root, files, coco


def proposals_of(coco, key):
    codes = [a.rle for a in coco.annotations[key.image_id]]
    return [
        Proposal(c["counts"], key.height, key.width, rle.area(c), rle.bbox_xywh(c), 0.9, 0.9, (0.0, 0.0)) for c in codes
    ]


def count(world, out, labels="results.json", **options):
    root, files, _ = world
    inputs = {"annotations": files.annotations("train"), "image_root": files.image_root}
    return run(root / labels, store=str(root / "store"), out=Path(out), **{**inputs, **options})


def test_what_becomes_of_unmatched_masks_is_not_counted():
    with pytest.raises(ConfigError, match=r"not counted[\s\S]*cpi_u:unmatched=drop"):
        parse_strategies(["cpi_u:unmatched=drop"])


def test_a_detectors_results_by_several_strategies(world, tmp_path, capsys):
    strategies = ["none", "cpi_u", "cpi_u:under_threshold=1.0", "iom:iou_threshold=0.4,match_resolution=64"]
    report = count(world, tmp_path / "a.json", strategies=strategies)
    rows, num = report["strategies"], world[2].num_annotations
    assert list(rows) == strategies
    assert all(row["total"] == num for row in rows.values())
    assert (rows["none"]["num_uncorrected"], rows["cpi_u"]["num_positive"]) == (num, num)
    assert rows["cpi_u"]["mean_iou_before"] == pytest.approx(0.5, abs=0.02)
    assert rows["cpi_u"]["mean_iou_after"] == 1
    assert rows["cpi_u:under_threshold=1.0"]["num_uncorrected"] == num  # thresholds are strict
    assert rows["iom:iou_threshold=0.4,match_resolution=64"]["mean_iou_after"] == 1
    assert report["oracle"] == {"total": num, "mean_iou_best_proposal": 1, "mean_iou_best_union": 1}
    assert json.loads((tmp_path / "a.json").read_text())["strategies"] == rows
    printed = capsys.readouterr().out.splitlines()
    assert printed[0].startswith(f"{NUM_IMAGES} images, {num} pseudo-labels about an object, 0 about none")
    by_name = {line.split()[0]: line.split()[1:5] for line in printed[2:-1]}
    assert by_name["cpi_u"] == ["1.0000", "0.0000", "0.0000", "0.0000"]
    assert by_name["cpi_u:under_threshold=1.0"] == ["0.0000", "0.0000", "0.0000", "1.0000"]


def test_progress_is_of_the_images_that_have_labels(world, tmp_path, capsys):
    first = world[2].images[0].image_id
    some = [entry for entry in json.loads((world[0] / "results.json").read_text()) if entry["image_id"] == first]
    (tmp_path / "some.json").write_text(json.dumps(some))
    count(world, tmp_path / "d.json", labels=tmp_path / "some.json", strategies=["none"])
    assert "correction-stats: 1 of 1 images" in capsys.readouterr().err


def test_a_run_of_pseudo_label_gives_the_same_and_broken_masks_are_told_apart(world, tmp_path):
    root, _, coco = world
    folder = tmp_path / "run"
    images = [ImageKey(i.image_id, i.file_name, i.height, i.width) for i in coco.images]
    identity = StoreIdentity("pseudo_labels", SCHEMA_VERSIONS["pseudo_labels"], "0" * 64, "toy", "0" * 64)
    with StoreWriter.create_or_open(folder, identity, images, images_per_shard=8) as writer:
        for task in writer.missing().tasks:
            commit_pseudo_labels(task, {key.image_id: labels_of(coco, key) for key in task.plan.images})
    inputs = {"annotations": world[1].annotations("train"), "image_root": world[1].image_root}
    report = run(folder, store=str(root / "store"), out=tmp_path / "b.json", strategies=["cpi"], **inputs)
    expected = count(world, tmp_path / "c.json", strategies=["cpi"])
    assert report["strategies"] == expected["strategies"]
    assert report["masks_without_object"] == NUM_IMAGES  # the empty one of each image


def labels_of(coco, key):
    halves = [upper_half(a.rle) for a in coco.annotations[key.image_id]]
    nothing = rle.encode(np.zeros((key.height, key.width), bool))
    return [row_of(key.image_id, place, 1, half, nothing, "kept") for place, half in enumerate([*halves, nothing])]


def row_of(image_id, instance_id, category_id, network, refined, outcome):
    return PseudoLabel(
        image_id=image_id,
        instance_id=instance_id,
        category_id=category_id,
        score=0.9,
        outcome=outcome,
        height=network["size"][0],
        width=network["size"][1],
        network_rle=network["counts"],
        network_area=rle.area(network),
        refined_rle=refined["counts"],
        refined_area=rle.area(refined),
    )


def test_sentences_are_compared_with_what_they_mean(world, tmp_path):
    _, files, coco = world
    expressions = json.loads(files.expressions("train").read_text())
    codes = {a.annotation_id: a.rle for entries in coco.annotations.values() for a in entries}
    nothing = rle.encode(np.zeros(rle.decode(next(iter(codes.values()))).shape, bool))
    rows = expressions if isinstance(expressions, list) else expressions["expressions"]
    entries = [
        {"ref_id": row["ref_id"], "segmentation": upper_half(codes[row["annotation_id"]]) if k else nothing}
        for k, row in enumerate(rows)
    ]
    file = tmp_path / "referred.json"
    file.write_text(json.dumps(entries))
    report = count(world, tmp_path / "d.json", labels=file, expressions=files.expressions("train"), with_oracle=False)
    assert set(report["strategies"]) == {"iom", "cpi", "cpi_u", "cpi_o"}
    row = report["strategies"]["cpi_u"]
    assert (row["total"], row["num_empty"], row["num_positive"]) == (len(rows), 1, len(rows) - 1)
    assert report["oracle"] is None
    file.write_text(json.dumps([{"ref_id": 10**6, "segmentation": nothing}]))
    with pytest.raises(AnnotationError, match="unknown object"):
        count(world, tmp_path / "e.json", labels=file, expressions=files.expressions("train"))


def test_sentences_that_mean_nothing_are_counted_apart(world, tmp_path):
    """gRefCOCO: there is no object that a refined mask could come nearer to."""
    _, files, coco = world
    codes = {a.annotation_id: a for entries in coco.annotations.values() for a in entries}
    meant, image_of_others = next(iter(codes.values())), max(coco.by_id)
    assert meant.image_id != image_of_others
    ids = {1: (meant.image_id, meant.annotation_id), 2: (meant.image_id, -1), 3: (image_of_others, -1)}
    rows = [
        {"ref_id": r, "image_id": i, "ann_id": [a], "split": "train", "sentences": [{"sent_id": r, "sent": "a ring"}]}
        for r, (i, a) in ids.items()
    ]
    expressions, masks = tmp_path / "grefs.json", tmp_path / "masks.json"
    expressions.write_text(json.dumps(rows))
    masks.write_text(json.dumps([{"ref_id": r, "segmentation": upper_half(meant.rle)} for r in ids]))
    report = count(world, tmp_path / "g.json", labels=masks, expressions=expressions, strategies=["cpi_u"])
    assert report["strategies"]["cpi_u"]["total"] == report["oracle"]["total"] == 1
    assert report["strategies"]["cpi_u"]["num_positive"] == 1
    assert (report["masks_without_object"], report["images"]) == (2, 2)

    settings = {"expressions_file": expressions, "annotation_file": files.annotations("train"), "split": "train"}
    data = ReferDataset(pipeline=[], image_root=str(files.image_root), **{k: str(v) for k, v in settings.items()})
    found = quality([row_of(i, 0, r, upper_half(meant.rle), meant.rle, "matched") for r, (i, _) in ids.items()], data)
    assert (found["corrections"]["total"], found["num_without_object"]) == (1, 2)
    assert found["after"]["oIoU"] == found["corrections"]["mean_iou_after"] == 1


def test_limit_and_what_is_in_the_way(world, tmp_path):
    report = count(world, tmp_path / "f.json", limit=1)
    assert report["images"] == 1
    with pytest.raises(InputError, match="--overwrite"):
        count(world, tmp_path / "f.json")
    assert count(world, tmp_path / "f.json", overwrite=True)["images"] == NUM_IMAGES


def test_images_that_are_not_stored_are_named(world, tmp_path):
    files = world[1]
    other = {"annotations": files.annotations("val"), "image_root": files.image_root}
    coco = load_coco(files.annotations("val"), files.image_root)
    ((image_id, (first, *_)),) = coco.annotations.items()
    entry = {"image_id": image_id, "category_id": first.category_id, "score": 1, "segmentation": first.rle}
    (tmp_path / "val.json").write_text(json.dumps([entry]))
    with pytest.raises(InputError, match="none of these images"):
        count(world, tmp_path / "g.json", labels=tmp_path / "val.json", **other)


@pytest.mark.parametrize("content", [None, "{", "3", '[{"a": 1}, 2]'])
@pytest.mark.parametrize("of_sentences", [False, True])
def test_odd_files_are_refused(world, tmp_path, content, of_sentences):
    file = tmp_path / "labels.json"
    if content is not None:
        file.write_text(content)
    expressions = world[1].expressions("train") if of_sentences else None
    with pytest.raises(InputError):
        count(world, tmp_path / "h.json", labels=file, expressions=expressions)
    with pytest.raises(InputError, match=r"pseudo-label CONFIG"):
        count(world, tmp_path / "h.json", labels=tmp_path)


@pytest.mark.parametrize(
    ("texts", "says"),
    [
        (["cpy_u"], "did you mean cpi_u"),
        (["iom:treshold=0.5"], "did you mean iou_threshold"),
        (["iom:iou_threshold=2"], "iou_threshold"),
        (["iom:0.5"], "key=value"),
        (["points"], "measurements.prompts"),
        (["iom", "iom"], "once"),
    ],
)
def test_odd_strategies_are_refused(texts, says):
    with pytest.raises(ConfigError) as caught:
        parse_strategies(texts)
    assert says in str(caught.value)
