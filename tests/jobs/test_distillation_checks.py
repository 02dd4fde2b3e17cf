"""What is refused before a training: parts of the distillation that do not fit, targets of other features."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from data_schemas.manifest import SCHEMA_VERSIONS, ImageKey, StoreIdentity
from data_schemas.similarity import SimilarityLayout, SimilarityTargets
from jobs.config_files import load_config
from jobs.settings import PrecomputeSettings, SamSettings, SimilaritySettings, load_settings
from jobs.training.checks import check_inputs, check_settings
from jobs.training.placeholders import expand
from jobs.training.runs import read_training_config
from pipeline.data.coco import load_coco, subset
from pipeline.data.splits import load_split
from pipeline.errors import ConfigError, StoreMismatchError
from pipeline.stores.similarity_store import commit_similarity
from pipeline.stores.writer import StoreWriter
from tests.toy_scenes import small_scenes

CONFIGS = Path(__file__).parents[2] / "configs"
ABLATION = sorted(path for path in (CONFIGS / "ablation").glob("*sd_*.py") if path.stem != "sd_encoder_sam")
FAMILIES = ("", "cityscapes_", "coco_")


def read(name, *options):
    return read_training_config(CONFIGS / f"{name}.py", list(options))


@pytest.mark.parametrize("path", ABLATION, ids=lambda path: path.stem)
def test_the_shipped_configs_pass_and_have_enough_queries(path):
    config = read_training_config(path, [])
    check_settings(config, where=path)
    model = config.model.get("detector", config.model)
    head = model.panoptic_head
    assert model.test_cfg.max_per_image <= head.num_queries * head.num_things_classes


def test_there_is_a_config_for_every_cell():
    """Which network, which features of SAM, which loss and which source the cells differ in."""
    cells = {}
    for path in ABLATION:
        config = read_training_config(path, [])
        network = config.model.get("detector", config.model)
        live = network.get("live_sam") or {}
        cells[path.stem] = (
            network.get("structural_feature"),
            network.get("distillation", "structural"),
            live.get("features", "store"),
        )
    table = {
        "sd_encoder_structural": ("encoder", "structural", "encoder"),
        "sd_encoder_feature": ("encoder", "feature", "encoder"),
        "sd_decoder_feature": ("decoder", "feature", "decoder"),
        "sd_live_teacher": ("decoder", "structural", "decoder"),
        "sd_student": ("decoder", "structural", "store"),
    }
    scenes_alone = {"sd_encoder_teacher": ("decoder", "structural", "store")}
    assert cells == scenes_alone | {family + name: parts for family in FAMILIES for name, parts in table.items()}


def test_the_encoders_targets_go_where_their_teacher_reads():
    sam = load_settings(load_config(CONFIGS / "ablation/sd_encoder_sam.py").to_dict(), where="here")
    plain = load_settings(load_config(CONFIGS / "sam/scenes.py").to_dict(), where="here")
    assert (sam.similarity.features, sam.targets) == ("encoder", ("similarity",))
    assert replace(sam.similarity, features="decoder") == plain.similarity
    assert (sam.images, sam.split, sam.sam) == (plain.images, plain.split, plain.sam)
    assert read("ablation/sd_encoder_teacher").structural_store == sam.store != plain.store


def test_features_are_part_of_a_stores_identity_and_the_default_leaves_it_as_it_was():
    made = PrecomputeSettings(images="i", store="s", sam=SamSettings("scenes-nano"))
    assert made.identity_settings("similarity") == {
        "num_inside": 128,
        "num_uniform": 128,
        "seed": 0,
        "precision": "fp32",
    }
    other = replace(made, similarity=SimilaritySettings(features="encoder"))
    assert other.identity_settings("similarity") == made.identity_settings("similarity") | {"features": "encoder"}
    with pytest.raises(ConfigError, match=r"features[\s\S]*'decoder' or 'encoder'"):
        load_settings({"images": "i", "store": "s", "sam": {"name": "n"}, "similarity": {"features": "neck"}}, where="")


DRAWS = {"type": "pipeline.data.transforms.DrawTargetPoints"}
LOADS = {"type": "pipeline.data.transforms.LoadSimilarityTargets", "store": "s"}


def changed(name, *, transforms=None, stream="dataset", **model):
    """A shipped config with other settings of the model and other transforms that give targets."""
    config = load_config(CONFIGS / f"{name}.py")
    network = config.model.get("detector", config.model)
    network.update(model)
    if transforms is not None:
        inner = config.train_dataloader.dataset
        inner = inner.labelled.dataset if stream == "labelled" else inner.dataset
        kept = [each for each in inner.pipeline if "Target" not in str(dict(each)["type"])]
        inner.pipeline = [*kept[:-1], *transforms, kept[-1]]
    expand(config)
    return config


LIVE = {"name": "scenes-nano"}


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"distillation": "feature"}, "needs SAM in the training step"),
        ({"distillation": "both"}, "unknown distillation"),
        ({"live_sam": LIVE}, "needs the pixels of the view"),
        ({"live_sam": {"features": "decoder"}, "transforms": [DRAWS]}, "name: missing"),
        ({"live_sam": LIVE | {"feature": "decoder"}, "transforms": [DRAWS]}, "feature: no such key"),
        ({"live_sam": LIVE | {"channels": "many"}, "transforms": [DRAWS]}, "channels: expected int"),
        ({"live_sam": LIVE, "transforms": []}, "asked at no point"),
        ({"transforms": [DRAWS]}, "DrawTargetPoints needs a SAM in the training step"),
    ],
)
def test_parts_that_do_not_fit_are_refused_before_the_training(change, told):
    with pytest.raises(ConfigError, match=told):
        check_settings(changed("teacher/scenes_structural", **change), where="here")


def test_parts_that_fit_pass():
    for transforms in ([DRAWS], [LOADS | {"keep_view": True}]):
        for distillation in ("structural", "feature"):
            change = {"live_sam": LIVE, "distillation": distillation, "transforms": transforms}
            check_settings(changed("teacher/scenes_structural", **change), where="here")


def test_a_student_that_is_to_distil_needs_targets_and_one_that_is_not_may_have_them():
    with pytest.raises(ConfigError, match=r"nothing to distil[\s\S]*distil_labelled"):
        check_settings(read("student/scenes_points", "model.settings.distil_labelled=True"), where="here")
    check_settings(read("ablation/sd_student", "model.settings.distil_labelled=False"), where="here")
    with pytest.raises(ConfigError, match="distil_labelled: expected bool"):
        check_settings(read("ablation/sd_student", "model.settings.distil_labelled=1"), where="here")
    live = {"live_sam": LIVE, "stream": "labelled"}
    check_settings(changed("ablation/sd_student", **live, transforms=[DRAWS]), where="here")
    with pytest.raises(ConfigError, match="needs the pixels of the view"):
        check_settings(changed("ablation/sd_student", **live, transforms=[LOADS]), where="here")


def write_store(uri, scenes, settings):
    """Targets of the labelled scenes with nothing in them."""
    coco = load_coco(scenes.annotations("train"), scenes.image_root)
    labelled = subset(coco, load_split(scenes.root / "split.json", coco).labelled)
    images = [ImageKey(i.image_id, i.file_name, i.height, i.width) for i in labelled.images]
    identity = StoreIdentity(
        "similarity", SCHEMA_VERSIONS["similarity"], labelled.fingerprint, "sam", "0" * 64, settings
    )
    rows = SimilarityTargets(np.ones((4, 2), np.float32), np.ones(4, np.uint8), np.zeros((4, 2, 2), np.float32))
    layout = SimilarityLayout(num_points=4, grid_hw=(2, 2), rows_per_chunk=2)
    with StoreWriter.create_or_open(uri, identity, images, images_per_shard=9, layout=layout) as writer:
        for task in writer.missing().tasks:
            commit_similarity(task, {image.image_id: rows for image in task.plan.images})
    return uri


def test_a_training_refuses_targets_of_the_other_features_before_it_starts(tmp_path):
    scenes = small_scenes(tmp_path / "scenes", num_train=4)
    old = write_store(tmp_path / "old", scenes, {})
    new = write_store(tmp_path / "new", scenes, {"features": "encoder"})

    def inputs_of(name, store):
        check_inputs(read(name, f"data_root={scenes.root}", f"structural_store={store}"))

    inputs_of("teacher/scenes_structural", old)
    inputs_of("ablation/sd_encoder_teacher", new)
    inputs_of("ablation/sd_student", old)
    for name, store in (("teacher/scenes_structural", new), ("ablation/sd_encoder_teacher", old)):
        with pytest.raises(StoreMismatchError, match="other features of SAM"):
            inputs_of(name, store)
