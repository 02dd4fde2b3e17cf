"""What is refused before a training starts: nothing is written or deleted for it."""

import json
from dataclasses import replace
from pathlib import Path
from urllib.error import URLError

import numpy as np
import pytest

from data_schemas.manifest import SCHEMA_VERSIONS, ImageKey, ImageOutcome, StoreIdentity
from data_schemas.similarity import SimilarityLayout, SimilarityTargets
from jobs.config_files import load_config
from jobs.precompute_sam import precompute
from jobs.settings import PrecomputeSettings, SamSettings, SimilaritySettings
from jobs.training import checks
from jobs.training.backbone_weights import check_backbone_weights, told_if_not_had, without_unwanted_weights
from jobs.training.checks import check_inputs, check_settings
from jobs.training.launch import launch, refuse_many_workers
from jobs.training.run_directory import held, run_dir
from jobs.training.runs import read_training_config
from pipeline.data.coco import load_coco, make_coco, subset
from pipeline.data.splits import draw_split, load_split, save_split
from pipeline.errors import (
    CheckpointError,
    ConfigError,
    EnvironmentProblemError,
    InputError,
    StoreMismatchError,
    TooManyQuarantinedError,
)
from pipeline.refine.build import LIBRARY_REFINERS
from pipeline.stores.proposal_store import commit_proposals
from pipeline.stores.similarity_store import commit_similarity
from pipeline.stores.writer import StoreWriter
from tests.jobs.toys import fake_sam
from tests.toy_scenes import small_scenes

CONFIGS = Path(__file__).parents[2] / "configs"
TEACHERS, STUDENTS = (sorted((CONFIGS / stage).glob("*.py")) for stage in ("teacher", "student"))


def read(name, *options):
    return read_training_config(CONFIGS / f"{name}.py", list(options))


def refusal(name, *options):
    with pytest.raises(ConfigError) as caught:
        check_settings(read(name, *options), where="here")
    return str(caught.value)


@pytest.mark.parametrize("path", [*TEACHERS, *STUDENTS], ids=lambda path: path.stem)
def test_the_shipped_configs_pass(path):
    check_settings(read_training_config(path, []), where=path)


@pytest.mark.parametrize(
    ("option", "told"),
    [
        ("max_iters=abc", "max_iters = 'abc', expected a whole number"),
        ("max_iters=-5", "max_iters = -5"),
        ("max_iters=2.5", "max_iters = 2.5"),
        ("batch_size=0", "batch_size = 0"),
        ("learning_rate=-1", "learning_rate = -1, expected a number above 0"),
        ("learning_rate=0", "learning_rate = 0"),
        ("max_broken_share=2", "max_broken_share = 2, expected a share"),
        ("seed=-1", "seed = -1"),
    ],
)
def test_a_number_that_cannot_be_used_is_refused(option, told):
    assert told in refusal("teacher/scenes_supervised", option)


@pytest.mark.parametrize(
    ("option", "told"),
    [
        ("model.pseudo_labels.score_threshold=abc", "score_threshold: expected float, got 'abc'"),
        ("model.pseudo_labels.score_threshold=7", "not a probability"),
        ("model.settings.unlabelled_weight=-1", "out of range"),
        ("model.settings.min_pixels=0", "out of range"),
        ("model.refiner.name=pionts", "did you mean points"),
        ("model.refiner.iou_threshold=0.5", "unknown setting of refiner points"),
        ("model.arp.mode=sideways", "mode: expected 'static' or 'moved'"),
        ("load_from=weights.pth", "init_checkpoint=FILE"),
        ("resume=True", "--resume"),
        ("launcher=pytorch", "--workers N"),
        ("burn_in=-1", "burn_in = -1"),
        ("ema_decay=1", "ema_decay = 1"),
    ],
)
def test_a_students_block_that_cannot_be_used_is_refused(option, told):
    assert told in refusal("student/scenes_points", option)


def test_a_mistyped_block_in_a_file_names_the_nearest_setting(tmp_path):
    text = (CONFIGS / "student/scenes_points.py").read_text()
    text = text.replace("settings=dict(unlabelled_weight", "settings=dict(unlabeled_weight")
    folder = tmp_path / "configs"
    for name in ("_base_", "teacher"):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).symlink_to(CONFIGS / name)
    (folder / "student").mkdir()
    path = folder / "student/mine.py"
    path.write_text(text)
    with pytest.raises(ConfigError, match=r"unlabeled_weight.*nearest: unlabelled_weight"):
        check_settings(read_training_config(path, []), where=path)
    path.write_text(text.replace("unlabeled", "unlabelled").replace("max_iters = 380", "max_iter = 380"))
    with pytest.raises(ConfigError, match=r"max_iter: nothing reads this .nearest: max_iters"):
        check_settings(read_training_config(path, []), where=path)


@pytest.mark.parametrize(
    "option",
    [
        "model.refiner.cached_embeddings=3",
        "model.refiner.precision=fp32",
        "model.refiner.min_iou_with_teacher=0.5",
        "model.arp.min_source_area=3000",
        "model.settings.min_pixels=1",
        "model.settings.learn_empty_batches=True",
        "model.pseudo_labels.nms_iou_threshold=None",
    ],
)
def test_a_setting_at_its_default_may_be_given_on_the_command_line(option):
    config = read("student/scenes_cpi_u", option)
    check_settings(config, where="here")
    _, block, name = option.split("=")[0].split(".")
    assert name in config.model[block]


def test_the_number_format_of_sam_is_checked_before_anything_is_built():
    for option, problem in {"precision=bf16": "bf16 is for CUDA", "precision=fp16": "precision"}.items():
        with pytest.raises(ConfigError, match=problem):
            check_settings(read("student/scenes_points", f"model.refiner.{option}"), where="here")
    for data in ("cityscapes", "coco"):
        config = read(f"student/{data}_r50_points")
        assert config.model.refiner.precision == "bf16"
        check_settings(config, where="here")
        with pytest.raises(ConfigError, match=r"model\.refiner\.precision=fp32"):
            check_settings(read(f"student/{data}_r50_points", "model.refiner.device=cpu"), where="here")


@pytest.mark.parametrize("number", ["0", "2.5", "None"])
def test_how_many_embeddings_are_kept_is_checked_before_anything_is_built(number):
    with pytest.raises(ConfigError, match=r"model\.refiner\.cached_embeddings[\s\S]*whole number from 1"):
        check_settings(read("student/scenes_points", f"model.refiner.cached_embeddings={number}"), where="here")


def test_an_override_that_the_file_has_already_used_is_refused():
    with pytest.raises(ConfigError, match="`num_classes` has no effect") as caught:
        read("teacher/scenes_supervised", "num_classes=5")
    assert "copy of the file" in str(caught.value)
    assert (
        read("teacher/coco_r50", "backbone_checkpoint=weights.pth").model.backbone.init_cfg.checkpoint == "weights.pth"
    )


def test_an_override_that_another_one_hides_is_told_as_that():
    for name in ("teacher/coco_r50", "student/coco_r50_points"):
        assert "split_20" in read(name, "percent=20").split_file or "{percent}" in read(name).split_file
        with pytest.raises(ConfigError, match=r"`percent` has no effect beside the other[\s\S]*leave percent out"):
            read(name, "percent=20", "split_file=split.json")


def test_the_number_of_classes_is_a_setting_of_coco_and_cityscapes():
    for name in ("coco_r50", "cityscapes_r50"):
        student = read(f"student/{name}_points", "num_classes=5").model.detector
        for network in (read(f"teacher/{name}", "num_classes=5").model, student):
            assert network.panoptic_head.num_things_classes == network.panoptic_fusion_head.num_things_classes == 5
            assert network.panoptic_head.loss_cls.class_weight == [1.0] * 5 + [0.1]


def test_the_backbones_weights_are_looked_at_before_the_training(tmp_path):
    with pytest.raises(CheckpointError, match=r"weights of the backbone are not there[\s\S]*backbone_checkpoint=FILE"):
        check_backbone_weights(read("teacher/coco_r50", f"backbone_checkpoint={tmp_path / 'nope.pth'}"))
    (tmp_path / "text.pth").write_text("no weights")
    with pytest.raises(CheckpointError, match=r"text\.pth"):
        check_backbone_weights(read("student/coco_r50_points", f"backbone_checkpoint={tmp_path / 'text.pth'}"))
    for name in ("teacher/coco_r50", "student/coco_r50_points", "teacher/scenes_supervised", "teacher/refcoco_lavt"):
        config = read(name)
        before = config.model.to_dict()
        check_backbone_weights(config)
        without_unwanted_weights(config)
        assert config.model.to_dict() == before
        with pytest.raises(ZeroDivisionError), told_if_not_had(config):
            raise ZeroDivisionError
    for name in ("teacher/coco_r50", "student/coco_r50_points"):
        config = read(name, "backbone_checkpoint=None")
        check_backbone_weights(config)
        without_unwanted_weights(config)
        assert (config.model.get("detector") or config.model).backbone.init_cfg is None


def test_a_download_that_fails_names_the_setting():
    message = r"torchvision://resnet50[\s\S]*backbone_checkpoint=FILE"
    with pytest.raises(EnvironmentProblemError, match=message), told_if_not_had(read("student/coco_r50_points")):
        raise URLError("Name or service not known")
    with pytest.raises(FileNotFoundError), told_if_not_had(read("teacher/scenes_supervised")):
        raise FileNotFoundError("something else")


def test_an_override_of_what_the_file_has_copied_is_refused():
    with pytest.raises(ConfigError, match=r"`labelled_stream\.dataset\.part` has no effect") as caught:
        read("student/scenes_points", "labelled_stream.dataset.part=all")
    assert "train_dataloader" in str(caught.value)
    read("student/scenes_points", "train_dataloader.dataset.labelled.dataset.part=all")


def test_a_config_of_something_else_is_refused():
    for name in ("sam/scenes", "_base_/scenes_data"):
        with pytest.raises(ConfigError, match="describes no training"):
            read(name)


FAMILIES = {
    "scenes": "scenes",
    "refer_scenes": "scenes",
    "refcoco": "refcoco",
    "refcocoplus": "refcocoplus",
    "refcocog": "refcocog",
    "grefcoco": "grefcoco",
    "nuclei": "nuclei",
    "coco": "coco",
    "cityscapes": "cityscapes",
}
"""How the configs of a family begin, and whose SAM config is theirs."""


@pytest.mark.parametrize("path", STUDENTS, ids=lambda path: path.stem)
def test_the_configs_of_a_family_name_each_others_folders(path):
    family = next(name for name in FAMILIES if path.stem.startswith(f"{name}_"))
    sam = read_sam(FAMILIES[family])
    student = read_training_config(path, [])
    teachers = {str(run_dir(teacher, None)): teacher for teacher in TEACHERS if teacher.stem.startswith(f"{family}_")}
    assert student.teacher_checkpoint in teachers
    teacher = read_training_config(teachers[student.teacher_checkpoint], [])
    # Not every way reads a store.
    assert student.get("store", sam.store) == teacher.get("store", sam.store) == sam.store
    assert student.split_file == teacher.split_file
    assert sam.split in (None, student.split_file)  # None: the store serves every split


def read_sam(family):
    return load_config(CONFIGS / f"sam/{family}.py", [])


def test_more_workers_than_cores_are_refused_here_and_not_on_a_cluster(monkeypatch):
    monkeypatch.setattr("os.cpu_count", lambda: 4)
    refuse_many_workers(4, "local")
    refuse_many_workers(99, "10.0.0.1:6379")
    with pytest.raises(ConfigError, match="more workers than this machine has cores"):
        refuse_many_workers(5, "start")


def test_a_run_directory_that_is_a_file_is_refused(tmp_path):
    (tmp_path / "taken").write_text("")
    with pytest.raises(InputError, match="a run directory is wanted"), held(tmp_path / "taken"):
        pass


@pytest.fixture
def scenes(tmp_path):
    return small_scenes(tmp_path / "scenes", num_train=4)


def write_store(uri, scenes, *, kinds=("similarity", "proposals"), rename=None):
    """What precompute-sam would write, with nothing in it."""
    coco = load_coco(scenes.annotations("train"), scenes.image_root)
    labelled = subset(coco, load_split(scenes.root / "split.json", coco).labelled)
    for kind in kinds:
        chosen = labelled if kind == "similarity" else make_coco(coco.image_root, coco.images, (), ())
        images = [ImageKey(i.image_id, rename or i.file_name, i.height, i.width) for i in chosen.images]
        layout = SimilarityLayout(num_points=4, grid_hw=(2, 2), rows_per_chunk=2) if kind == "similarity" else None
        identity = StoreIdentity(kind, SCHEMA_VERSIONS[kind], chosen.fingerprint, "sam", "0" * 64)
        with StoreWriter.create_or_open(uri, identity, images, images_per_shard=9, layout=layout) as writer:
            for task in writer.missing().tasks:
                ids = [image.image_id for image in task.plan.images]
                if layout is None:
                    commit_proposals(task, {i: [] for i in ids})
                else:
                    points, kind_of = np.ones((4, 2), np.float32), np.ones(4, np.uint8)
                    rows = SimilarityTargets(points, kind_of, np.zeros((4, 2, 2), np.float32))
                    commit_similarity(task, dict.fromkeys(ids, rows))
    return uri


def inputs_of(name, scenes, *options):
    check_inputs(read(name, f"data_root={scenes.root}", *options))


def test_a_store_of_these_images_is_taken(scenes, tmp_path):
    store = write_store(tmp_path / "store", scenes)
    inputs_of("teacher/scenes_structural", scenes, f"store={store}")
    inputs_of("student/scenes_cpi_u", scenes, f"store={store}")


def test_a_validation_set_without_an_object_is_told_before_the_training(scenes):
    rewritten(scenes.annotations("val"), lambda content: content["annotations"].clear())
    with pytest.raises(InputError, match=r"no object[\s\S]*val\.json"):
        inputs_of("teacher/scenes_supervised", scenes)


@pytest.mark.parametrize("name", ["teacher/scenes_supervised", "student/scenes_points"])
def test_images_that_are_not_there_are_told_before_the_training(scenes, name):
    coco = load_coco(scenes.annotations("train"), scenes.image_root)
    split = load_split(scenes.root / "split.json", coco)
    ids = split.unlabelled if name.startswith("student") else split.labelled
    first, *others = [coco.path_of(coco.by_id[image_id]) for image_id in ids]
    first.write_text("no image")
    with pytest.raises(TooManyQuarantinedError, match=rf"1 of 2 images[\s\S]*{first.name}[\s\S]*replace these"):
        inputs_of(name, scenes)
    inputs_of(name, scenes, "max_broken_share=0.5")
    for path in others:
        path.unlink()
    with pytest.raises(TooManyQuarantinedError, match=r"2 of 2 images[\s\S]*correct the folder of these images"):
        inputs_of(name, scenes)


def test_of_a_large_set_some_images_are_looked_at(scenes, monkeypatch):
    monkeypatch.setattr(checks, "_NUM_LOOKED_AT", 2)
    coco = load_coco(scenes.annotations("train"), scenes.image_root)
    coco.path_of(coco.images[1]).unlink()
    checks._refuse_missing_images(coco, max_broken_share=0)  # 0 and 2 of 4
    coco.path_of(coco.images[2]).unlink()
    with pytest.raises(TooManyQuarantinedError, match="1 of 2 images"):
        checks._refuse_missing_images(coco, max_broken_share=0)


def test_a_store_that_is_not_there_is_told_before_the_training(scenes, tmp_path):
    for name in ("teacher/scenes_structural", "student/scenes_iom"):
        with pytest.raises(InputError, match="precompute-sam"):
            inputs_of(name, scenes, f"store={tmp_path / 'none'}")
    inputs_of("teacher/scenes_supervised", scenes)
    inputs_of("student/scenes_points", scenes, f"store={tmp_path / 'none'}")  # points need none
    for name in LIBRARY_REFINERS:
        with pytest.raises(ConfigError, match=f"{name} needs a proposal library"):
            inputs_of("student/scenes_cpi_u", scenes, "model.refiner.store=None", f"model.refiner.name={name}")


def test_a_store_of_other_images_is_refused(scenes, tmp_path):
    store = write_store(tmp_path / "store", scenes, rename="other.png")
    for name, noun in (("teacher/scenes_structural", "similarity targets"), ("student/scenes_cpi_u", "proposals")):
        with pytest.raises(StoreMismatchError, match=f"the {noun} of this store are not of these images"):
            inputs_of(name, scenes, f"store={store}")


def test_a_library_that_is_not_finished_is_told_before_the_training(scenes, tmp_path):
    coco = load_coco(scenes.annotations("train"), scenes.image_root)
    keys = [ImageKey(i.image_id, i.file_name, i.height, i.width) for i in coco.images]
    identity = StoreIdentity("proposals", SCHEMA_VERSIONS["proposals"], coco.fingerprint, "sam", "0" * 64)
    store = str(tmp_path / "store")
    with StoreWriter.create_or_open(store, identity, keys, images_per_shard=1) as writer:
        tasks = writer.missing().tasks
        for task in tasks[:-1]:
            commit_proposals(task, {image.image_id: [] for image in task.plan.images})
    last = tasks[-1].plan.images[0].image_id
    every = "train_dataloader.dataset.unlabelled.dataset.part=all"
    with pytest.raises(InputError, match=f"(?s)library is not finished.*1 are not computed yet, such as image {last}"):
        inputs_of("student/scenes_cpi_u", scenes, f"store={store}", every)
    with StoreWriter.create_or_open(store, identity, keys, images_per_shard=1) as writer:
        commit_proposals(writer.missing().tasks[0], {}, [ImageOutcome(last, "quarantined", stage="s", reason="r")])
    inputs_of("student/scenes_cpi_u", scenes, f"store={store}", every)


def test_where_all_images_are_pseudo_labelled_the_library_must_hold_all(scenes, tmp_path):
    store, every = write_store(tmp_path / "store", scenes), "train_dataloader.dataset.unlabelled.dataset.part=all"
    inputs_of("student/scenes_cpi_u", scenes, f"store={store}", every)
    more = small_scenes(tmp_path / "more", num_train=8)
    coco = load_coco(more.annotations("train"), more.image_root)
    ids, split = sorted(coco.by_id), more.root / "split.json"
    split.unlink()
    # The library holds the labelled images and no others.
    save_split(replace(draw_split(coco, percent=50, seed=0), labelled=(*ids[:4],), unlabelled=(*ids[4:],)), split)
    with pytest.raises(StoreMismatchError, match="4 of 8 images differ"):
        inputs_of("student/scenes_cpi_u", more, f"store={store}", every)


def rewritten(file, change):
    content = json.loads(file.read_text())
    change(content)
    file.write_text(json.dumps(content))


def test_targets_from_other_annotations_of_the_images_are_refused(scenes, tmp_path):
    store = write_store(tmp_path / "store", scenes, kinds=("similarity",))
    coco = load_coco(scenes.annotations("train"), scenes.image_root)
    one = load_split(scenes.root / "split.json", coco).labelled[0]
    rewritten(
        scenes.annotations("train"),
        lambda c: c["annotations"].remove(next(a for a in c["annotations"] if a["image_id"] == one)),
    )
    fresh = load_coco(scenes.annotations("train"), scenes.image_root)
    (scenes.root / "split.json").unlink()
    save_split(draw_split(fresh, percent=50, seed=0), scenes.root / "split.json")
    with pytest.raises(StoreMismatchError, match="other annotations"):
        inputs_of("teacher/scenes_structural", scenes, f"store={store}")


def test_targets_of_other_pictures_with_the_same_names_are_told_of(scenes, tmp_path, capsys):
    other = small_scenes(tmp_path / "other", num_train=4, seed=6)
    for name, made_of in (("own", scenes), ("other", other)):
        settings = PrecomputeSettings(  # of all images, and half of them are labelled
            images=str(made_of.annotations("train")),
            image_root=str(made_of.image_root),
            store=str(tmp_path / name),
            sam=SamSettings("fake"),
            targets=("similarity",),
            similarity=SimilaritySettings(num_inside=32, num_uniform=32, rows_per_chunk=4),
        )
        precompute(settings, make_backend=fake_sam)
    coco = load_coco(scenes.annotations("train"), scenes.image_root)
    one = load_split(scenes.root / "split.json", coco).labelled[0]
    capsys.readouterr()
    inputs_of("teacher/scenes_structural", scenes, f"store={tmp_path / 'own'}")
    assert capsys.readouterr().out == ""
    inputs_of("teacher/scenes_structural", scenes, f"store={tmp_path / 'other'}")
    assert "of other pictures with the same ids, names and sizes" in capsys.readouterr().out
    rewritten(
        scenes.annotations("train"),
        lambda c: c["annotations"].remove(next(a for a in c["annotations"] if a["image_id"] == one)),
    )
    inputs_of("teacher/scenes_structural", scenes, f"store={tmp_path / 'own'}")
    assert capsys.readouterr().out == ""  # an annotation was corrected


def test_targets_of_all_classes_serve_a_training_of_some(scenes, tmp_path):
    store = write_store(tmp_path / "store", scenes, kinds=("similarity",))
    config = read("teacher/scenes_structural", f"data_root={scenes.root}", f"store={store}")
    coco = load_coco(scenes.annotations("train"), scenes.image_root)
    labelled = load_split(scenes.root / "split.json", coco).labelled
    taught = {coco.labels[entry.category_id] for image_id in labelled for entry in coco.annotations[image_id]}
    names = [coco.categories[label].name for label in sorted(taught)][:2]
    config.train_dataloader.dataset.dataset.class_names = names
    config.model.panoptic_head.num_things_classes = 2
    config.model.panoptic_fusion_head.num_things_classes = 2
    config.model.panoptic_head.loss_cls.class_weight = [1.0, 1.0, 0.1]
    check_inputs(config)


def test_other_classes_than_the_networks_are_refused(scenes):
    rewritten(scenes.annotations("train"), lambda c: c["categories"].append({"id": 99, "name": "ninth"}))
    (scenes.root / "split.json").unlink()
    fresh = load_coco(scenes.annotations("train"), scenes.image_root)
    save_split(draw_split(fresh, percent=50, seed=0), scenes.root / "split.json")
    with pytest.raises(ConfigError, match="another number of classes") as caught:
        inputs_of("teacher/scenes_supervised", scenes)
    assert "ninth" in str(caught.value)


@pytest.mark.parametrize(
    "place", ["panoptic_head.num_things_classes", "panoptic_fusion_head.num_things_classes", "class_weight"]
)
def test_every_place_that_is_told_the_number_of_classes_is_checked(scenes, place):
    config = read("teacher/scenes_supervised", f"data_root={scenes.root}")
    head, fusion = config.model.panoptic_head, config.model.panoptic_fusion_head
    if place == "class_weight":
        head.loss_cls.class_weight = [1.0, 0.1]
    else:
        {"panoptic_head": head, "panoptic_fusion_head": fusion}[place.split(".")[0]].num_things_classes = 1
    with pytest.raises(ConfigError, match="another number of classes") as caught:
        check_inputs(config)
    assert caught.value.expected.startswith("1 classes")
    assert caught.value.expected.count("classes (model.") == 1
    assert place in caught.value.expected
    assert "--cfg-options num_classes=8" in caught.value.fix


@pytest.mark.parametrize("name", ["teacher/coco_r50", "student/coco_r50_points", "student/coco_r50_cpi_u"])
def test_the_number_of_classes_of_a_coco_training_is_one_option(name):
    for options, count in ([], 80), (["num_classes=3"], 3):
        config = read(name, *options)
        check_settings(config, where="here")
        network = config.model.get("detector", config.model)
        assert network.panoptic_head.num_things_classes == count
        assert network.panoptic_fusion_head.num_things_classes == count
        assert network.panoptic_head.loss_cls.class_weight == [1.0] * count + [0.1]
    assert "num_classes = 0" in refusal(name, "num_classes=0")
    with pytest.raises(ConfigError, match="cannot be filled") as caught:
        read(name, "num_classes=many")
    assert (caught.value.where, caught.value.got) == ("many x 1.0", "many")


def test_a_validation_set_with_other_names_is_refused(scenes):
    rewritten(scenes.annotations("val"), lambda c: c["categories"][0].update(name="mistyped"))
    with pytest.raises(ConfigError, match="class names that the annotation file does not have"):
        inputs_of("teacher/scenes_supervised", scenes)


TINY = ["max_iters=1", "batch_size=1", "init_checkpoint=None", "device=cpu", "model.test_cfg.max_per_image=3"]


def train(scenes, folder, *options, **more):
    return launch(
        CONFIGS / "teacher/scenes_supervised.py",
        stage="teacher",
        cfg_options=[f"data_root={scenes}", *TINY, *options],
        work_dir=folder,
        **more,
    )


def test_a_refused_start_writes_nothing_and_deletes_nothing(scenes, tmp_path):
    folder = tmp_path / "run"
    with pytest.raises(InputError, match="not found"):
        train(tmp_path / "nowhere", folder)
    assert not folder.exists()
    train(scenes.root, folder)
    kept = sorted(path.name for path in folder.iterdir())
    with pytest.raises(InputError, match="not found"):
        train(tmp_path / "nowhere", folder, overwrite=True)
    assert sorted(path.name for path in folder.iterdir()) == kept
    assert "done.json" in kept


def test_a_dry_run_checks_the_data_too(scenes, tmp_path, capsys):
    with pytest.raises(InputError, match="not found"):
        train(tmp_path / "nowhere", tmp_path / "run", dry_run=True)
    train(scenes.root, tmp_path / "run", dry_run=True)
    assert "would train 1 steps" in capsys.readouterr().out
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_a_run_that_died_before_its_first_checkpoint_is_begun_again_with_other_settings(scenes, tmp_path):
    folder = tmp_path / "run"
    train(scenes.root, folder)
    for path in (*folder.glob("iter_*.pth"), folder / "done.json"):
        path.unlink()
    train(scenes.root, folder, "seed=3")
    assert "seed = 3" in (folder / "resolved_config.py").read_text()
