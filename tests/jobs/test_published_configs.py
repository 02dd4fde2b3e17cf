"""The configs of S4M's tables, each row of them, against tiny trees in the layouts of Cityscapes and COCO.

The data sets are not needed: what is checked is that conversion, split, configs and checks fit each other.
"""

import ast
import re
from pathlib import Path

import numpy as np

import pipeline.models.mmcv_ops  # noqa: F401  isort: skip  (before mmdet)
import pytest
from mmdet.structures.bbox import HorizontalBoxes
from mmdet.structures.mask import BitmapMasks
from mmengine.dataset import Compose
from mmengine.logging import MMLogger
from mmengine.optim import OptimWrapper, build_optim_wrapper
from mmengine.registry import MODELS, init_default_scope
from torch.nn.modules.batchnorm import _BatchNorm

from data_schemas.manifest import SCHEMA_VERSIONS, StoreIdentity
from data_schemas.similarity import SimilarityLayout, SimilarityTargets
from jobs import convert_cityscapes, split
from jobs.config_files import load_config
from jobs.evaluate_cityscapes import cityscapes_figures, cityscapes_lines, is_cityscapes
from jobs.settings import load_settings
from jobs.store_checks import image_keys
from jobs.training.checks import check_inputs, check_settings
from jobs.training.launch import launch
from jobs.training.run_directory import read_done
from jobs.training.runs import read_training_config
from pipeline.data.coco import load_coco
from pipeline.data.instance_dataset import seeded
from pipeline.errors import AnnotationError, InputError
from pipeline.masks import rle
from pipeline.models.cityscapes_metric import CityscapesApMetric
from pipeline.stores.proposal_store import commit_proposals
from pipeline.stores.similarity_store import commit_similarity
from pipeline.stores.writer import StoreWriter
from tests.toy_published import write_cityscapes, write_coco_tree

CONFIGS = Path(__file__).parents[2] / "configs"
PERCENTS = {"cityscapes": (5, 10, 20, 30), "coco": (1, 2, 5, 10)}
TEACHERS = ("r50", "r50_supervised")
STUDENTS = ("r50_points", "r50_cpi_u", "r50_guided", "r50_mean_teacher", "r50_released")
ROWS = [
    (family, f"{stage}/{family}_{name}", percent)
    for family in PERCENTS
    for stage, names in (("teacher", TEACHERS), ("student", STUDENTS))
    for name in names
    for percent in PERCENTS[family]
]


@pytest.fixture(scope="module")
def trees(tmp_path_factory):
    """Overrides of every family: data, converted and split into all shares, and a store."""
    root = tmp_path_factory.mktemp("published")
    city = write_cityscapes(root / "cityscapes")
    convert_cityscapes.run(city)
    coco = write_coco_tree(root / "coco")
    files = {
        "cityscapes": (city / "annotations/train.json", city / "leftImg8bit/train", city),
        "coco": (coco / "annotations/instances_train2017.json", coco / "train2017", coco),
    }
    for family, (annotations, images, folder) in files.items():
        for percent in PERCENTS[family]:
            split.run(annotations, image_root=images, out=folder / f"split_{percent}", percent=percent)
        write_store(str(root / f"{family}_store"), annotations, images)
    return {
        "cityscapes": [f"data_root={city}", f"store={root / 'cityscapes_store'}"],
        "coco": [
            *(f"annotations={files['coco'][0]}", f"image_root={files['coco'][1]}"),
            f"val_annotations={coco / 'annotations/instances_val2017.json'}",
            f"val_images={coco / 'val2017'}",
            f"split_file={coco}/split_{{percent}}/split.json",
            f"store={root / 'coco_store'}",
        ],
    }


def write_store(uri, annotations, images):
    """What precompute-sam would write: targets of zeros, libraries without a mask."""
    coco = load_coco(annotations, images)
    keys, kinds_of = image_keys(coco.images), np.repeat(np.array([1, 0], np.uint8), 64)
    rows = SimilarityTargets(np.full((128, 2), 30, np.float32), kinds_of, np.zeros((128, 2, 2), np.float32))
    for kind in ("similarity", "proposals"):
        layout = SimilarityLayout(num_points=128, grid_hw=(2, 2), rows_per_chunk=64) if kind == "similarity" else None
        identity = StoreIdentity(kind, SCHEMA_VERSIONS[kind], coco.fingerprint, "sam", "0" * 64)
        with StoreWriter.create_or_open(uri, identity, keys, images_per_shard=9, layout=layout) as writer:
            for task in writer.missing().tasks:
                ids = [image.image_id for image in task.plan.images]
                if layout is None:
                    commit_proposals(task, {image_id: [] for image_id in ids})
                else:
                    commit_similarity(task, dict.fromkeys(ids, rows))


def test_every_published_config_is_a_row():
    named = {name for _, name, _ in ROWS}
    there = {
        f"{stage}/{path.stem}"
        for stage in ("teacher", "student")
        for family in PERCENTS
        for path in (CONFIGS / stage).glob(f"{family}_*.py")
    }
    assert named == there


@pytest.mark.parametrize(("family", "name"), sorted({(family, name) for family, name, _ in ROWS}))
def test_every_row_fits_its_data(trees, family, name):
    for percent in PERCENTS[family]:
        config = read_training_config(CONFIGS / f"{name}.py", [*trees[family], f"percent={percent}"])
        check_settings(config, where=name)
        check_inputs(config)
        assert f"split_{percent}/" in config.split_file


@pytest.mark.parametrize(
    "name", ["live_teacher", "decoder_feature", "encoder_structural", "encoder_feature", "student"]
)
@pytest.mark.parametrize("family", sorted(PERCENTS))
def test_the_cells_of_tables_4_and_5_fit_their_data(trees, family, name):
    for percent in PERCENTS[family]:
        options = [*trees[family], f"percent={percent}"]
        config = read_training_config(CONFIGS / f"ablation/{family}_sd_{name}.py", options)
        check_settings(config, where=name)
        check_inputs(config)
        assert f"split_{percent}/" in config.split_file
    stream = "labelled" if name == "student" else "none"
    (points,) = [step for step in inner(config, stream).pipeline if "Target" in step["type"].__name__]
    assert (points["num_inside"], points["num_uniform"]) == (64, 64)
    network = config.model.get("detector", config.model)
    assert network.structural_weight == 1.0
    if name != "student":
        student = read_training_config(CONFIGS / f"student/{family}_r50_points.py", [])
        assert network.live_sam.name == student.model.refiner.sam == "sam2_hiera_large"


def test_a_share_that_was_not_split_is_refused(trees):
    config = read_training_config(CONFIGS / "teacher/cityscapes_r50.py", [*trees["cityscapes"], "percent=7"])
    with pytest.raises(InputError, match=r"(?s)split file not found.*split_7.*s4m-pipeline split") as caught:
        check_inputs(config)
    root = config.data_root
    files = f"{root}/annotations/train.json --image-root {root}/leftImg8bit/train"
    assert caught.value.fix.endswith(f"split {files} --percent P --out {root}/split_7")


@pytest.mark.parametrize("name", ["cityscapes", "coco"])
def test_the_sam_configs_are_settings(name):
    path = CONFIGS / f"sam/{name}.py"
    settings = load_settings(load_config(path).to_dict(), where=path)
    student = read_training_config(CONFIGS / f"student/{name}_r50_cpi_u.py", [])
    assert (settings.store, settings.images, settings.image_root) == (
        student.store,
        student.annotations,
        student.image_root,
    )


def inner(config, stream):
    """Config of the data set below a stream; of a teacher's only stream where there are no two."""
    data = config.train_dataloader.dataset
    return data.get(stream, data).dataset


def kinds(pipeline):
    return [step["type"].__name__ for step in pipeline]


def test_what_a_teacher_and_a_student_read(trees):
    def read(name, *options):
        return read_training_config(CONFIGS / f"{name}.py", list(options))

    for family in PERCENTS:
        assert "LoadSimilarityTargets" in kinds(inner(read(f"teacher/{family}_r50"), "none").pipeline)
        assert "LoadSimilarityTargets" not in kinds(inner(read(f"teacher/{family}_r50_supervised"), "none").pipeline)
        student = read(f"student/{family}_r50_points")
        assert "LoadSimilarityTargets" not in kinds(inner(student, "labelled").pipeline)
        assert inner(student, "unlabelled").part == "unlabelled"
        assert inner(read(f"student/{family}_r50_released"), "unlabelled").part == "all"
        assert inner(read(f"student/{family}_r50_points", "unlabelled_part=all"), "unlabelled").part == "all"
    jitter = {
        option: [s for s in inner(read("student/cityscapes_r50_points", *option), "unlabelled").pipeline if "prob" in s]
        for option in ((), ("weak_jitter=0",))
    }
    assert [step["prob"] for step in jitter[()]] == [0.5, 0.5]  # colours, flip
    assert [step["prob"] for step in jitter["weak_jitter=0",]] == [0, 0.5]


@pytest.mark.parametrize("family", ["scenes", "nuclei", "coco", "cityscapes"])
def test_the_baselines_have_no_sam_and_a_teacher_of_labels_alone(family):
    infix = "_r50" if family in PERCENTS else ""
    for name in ("guided", "mean_teacher"):
        config = read_training_config(CONFIGS / f"student/{family}{infix}_{name}.py", [])
        assert config.model.arp is None
        assert config.model.refiner == {"name": "none"}
        assert config.teacher_checkpoint == f"work_dirs/teacher_{family}{infix}_supervised"
        (burn_in,) = [hook for hook in config.custom_hooks if hook["type"].__name__ == "BurnInEmaHook"]
        assert (burn_in["burn_in"] == 0) == (name == "mean_teacher")
    # Of a mean teacher both networks start alike, classes too.
    assert config.init_checkpoint == config.teacher_checkpoint
    assert not any(re.search(config.init_skip, name) for name in ("panoptic_head.cls_embed.weight", "a"))


def test_the_metric_of_a_config_is_cityscapes_and_refuses_a_plain_coco_file(trees):
    options = trees["cityscapes"]
    evaluator = dict(read_training_config(CONFIGS / "teacher/cityscapes_r50.py", options).val_evaluator)
    assert evaluator.pop("type") is CityscapesApMetric
    metric = CityscapesApMetric(**evaluator)
    coco = load_coco(Path(evaluator["annotation_file"]), Path(evaluator["image_root"]))
    names = [category.name for category in coco.categories]
    metric.use_classes(names)
    found = {
        image.image_id: [as_found(coco, entry) for entry in coco.annotations[image.image_id]] for image in coco.images
    }
    figures = metric.compute_metrics(list(found.items()))
    assert figures["cityscapes_AP"] == figures["cityscapes_AP50"] == figures["mask_AP"] == 1.0
    # What covers only the void is nobody's business there, and false for COCO.
    for image in coco.images:
        void = np.zeros((image.height, image.width), bool)
        void[-3:] = True
        best = found[image.image_id][-1]
        found[image.image_id].append(best | {"segmentation": rle.encode(void), "score": 0.99})
    figures = metric.compute_metrics(list(found.items()))
    assert figures["cityscapes_AP"] == 1.0
    assert figures["mask_AP"] < 1.0
    plain = options[0].removeprefix("data_root=") + "/../coco/annotations/instances_val2017.json"
    other = CityscapesApMetric(annotation_file=plain, image_root=evaluator["image_root"])
    with pytest.raises(AnnotationError, match="not a converted Cityscapes file"):
        other.use_classes(["class 0"])


def test_evaluate_tells_cityscapes_figures_of_these_configs_alone(trees):
    config = read_training_config(CONFIGS / "student/cityscapes_r50_points.py", trees["cityscapes"])
    assert is_cityscapes(config)
    assert not is_cityscapes(read_training_config(CONFIGS / "student/coco_r50_points.py", trees["coco"]))
    coco = load_coco(Path(config.val_annotations), Path(config.val_images))
    results = [as_found(coco, entry) for entries in coco.annotations.values() for entry in entries[1:]]
    figures = cityscapes_figures(Path(config.val_annotations), coco, results)
    lines = cityscapes_lines(figures)
    assert lines[1].split() == ["cityscapes", f"{figures['ap']:.4f}", f"{figures['ap50']:.4f}"]
    assert [line.split()[0] for line in lines[2:]] == [category.name for category in coco.categories]
    assert 0 < figures["ap"] <= 1
    absent = [name for name, ap in figures["per_class"].items() if ap is None]
    assert [line.split() for line in lines if "-" in line.split()] == [[name, "-", "-"] for name in absent]
    assert absent


def as_found(coco, entry):
    return {
        "image_id": entry.image_id,
        "category_id": entry.category_id,
        "segmentation": entry.rle,
        "score": 0.5,
    }


def test_a_view_of_cityscapes_is_wide():
    init_default_scope("mmdet")
    pipeline = inner(read_training_config(CONFIGS / "teacher/cityscapes_r50.py", []), "none").pipeline
    geometry = Compose(list(pipeline)[:2])
    shapes = set()
    for seed in range(8):
        with seeded([seed]):
            sample = {
                "img": np.zeros((1024, 2048, 3), np.uint8),
                "img_shape": (1024, 2048),
                "homography_matrix": np.eye(3, dtype=np.float32),
                "gt_masks": BitmapMasks([np.ones((1024, 2048), np.uint8)], 1024, 2048),
                "gt_bboxes": HorizontalBoxes(np.array([[0, 0, 2048, 1024]], np.float32)),
                "gt_bboxes_labels": np.zeros(1, np.int64),
                "gt_ignore_flags": np.zeros(1, bool),
            }
            view = geometry(sample)
        shapes.add((view["img"].shape[:2], view["gt_masks"].masks.shape[1:]))
    assert shapes == {((512, 1024), (512, 1024))}


def test_norms_of_cityscapes_backbone_have_its_rate_and_no_decay():
    MMLogger.get_instance("mmengine", log_level="WARNING")
    config = read_training_config(CONFIGS / "teacher/cityscapes_r50_supervised.py", ["model.backbone.init_cfg=None"])
    network = MODELS.build(config.model)
    optimizer = build_optim_wrapper(network, {**config.optim_wrapper, "type": OptimWrapper}).optimizer
    groups = {id(p): (group["lr"], group["weight_decay"]) for group in optimizer.param_groups for p in group["params"]}
    told = {name: groups[id(parameter)] for name, parameter in network.named_parameters()}
    norms = {
        f"{name}.{kind}"
        for name, module in network.backbone.named_modules(prefix="backbone")
        if isinstance(module, _BatchNorm)
        for kind in ("weight", "bias")
    }
    assert len(norms) == 2 * 53
    assert {told[name] for name in norms} == {(1e-5, 0.0)}
    assert {told[name] for name in told if name.startswith("backbone.") and name not in norms} == {(1e-5, 0.05)}
    assert told["panoptic_head.mask_embed.0.weight"] == (1e-4, 0.05)


SMALL_NETWORK = {
    "backbone.depth": 18,
    "backbone.init_cfg": None,
    "panoptic_head.in_channels": "[64,128,256,512]",
    "panoptic_head.num_queries": 10,
    "train_cfg.num_points": 256,
    "test_cfg.max_per_image": 10,
}
SMALL_RUN = {
    "device": "cpu",
    "max_iters": 2,
    "val_interval": 2,
    "checkpoint_interval": 2,
    "log_interval": 1,
    "batch_size": 2,
    "optim_wrapper.type": "OptimWrapper",
    "train_dataloader.num_workers": 0,
    "train_dataloader.persistent_workers": False,
    "val_dataloader.num_workers": 0,
}


def small(trees, model, streams, **more):
    """Overrides that train the Cityscapes configs on images of 64 x 128 in seconds."""
    views = {}
    for stream in streams:
        data = f"train_dataloader.dataset.{stream}dataset.pipeline"
        views |= {f"{data}.0.scales": "[(256,64),(256,96)]", f"{data}.1.crop_size": "(128,64)"}
    network = {f"{model}.{name}": value for name, value in SMALL_NETWORK.items()}
    return [*trees["cityscapes"], *(f"{k}={v}" for k, v in {**SMALL_RUN, **network, **views, **more}.items())]


@pytest.mark.slow
def test_teacher_student_and_mean_teacher_of_cityscapes_train(trees, tmp_path):
    teacher = tmp_path / "teacher"
    launch(
        CONFIGS / "teacher/cityscapes_r50.py",
        stage="teacher",
        cfg_options=small(trees, "model", ("",)),
        work_dir=teacher,
    )
    assert {"cityscapes_AP", "cityscapes_AP50", "mask_AP"} <= set(read_done(teacher)["validation"])
    assert "loss_structural" in (teacher / "progress.log").read_text()
    sure = {"model.pseudo_labels.score_threshold": 0.0, "model.pseudo_labels.min_soft_area": 0.0, "burn_in": 1}
    on_cpu = {"model.refiner.device": "cpu", "model.refiner.precision": "fp32"}
    points = {"model.refiner.sam": "scenes-nano", **on_cpu, **sure}
    for name, options in (("released", points), ("mean_teacher", {})):
        folder = tmp_path / name
        launch(
            CONFIGS / f"student/cityscapes_r50_{name}.py",
            stage="student",
            cfg_options=small(
                trees, "model.detector", ("labelled.", "unlabelled."), teacher_checkpoint=teacher, **options
            ),
            work_dir=folder,
        )
        assert read_done(folder)["iterations"] == 2
        assert "refiner/matched" in (folder / "progress.log").read_text()


@pytest.mark.slow
def test_cells_of_tables_4_and_5_of_cityscapes_train(trees, tmp_path):
    live = {"model.live_sam.name": "scenes-nano", "model.live_sam.precision": "fp32", "model.live_sam.channels": 96}
    for name, loss in (
        ("live_teacher", "loss_structural"),
        ("encoder_structural", "loss_structural"),
        ("decoder_feature", "loss_feature"),
        ("encoder_feature", "loss_feature"),
    ):
        config = CONFIGS / f"ablation/cityscapes_sd_{name}.py"
        options = small(trees, "model", ("",), **live)
        launch(config, stage="teacher", cfg_options=options, work_dir=tmp_path / name)
        assert loss in (tmp_path / name / "progress.log").read_text()
    options = {
        "teacher_checkpoint": tmp_path / "live_teacher",
        "model.refiner.sam": "scenes-nano",
        "model.refiner.device": "cpu",
        "model.refiner.precision": "fp32",
    }
    launch(
        CONFIGS / "ablation/cityscapes_sd_student.py",
        stage="student",
        cfg_options=small(trees, "model.detector", ("labelled.", "unlabelled."), **options),
        work_dir=tmp_path / "student",
    )
    assert "sup/loss_structural" in (tmp_path / "student/progress.log").read_text()


TEACHER = {
    "learning_rate": 1e-4,
    "optim_wrapper.optimizer.weight_decay": 0.05,
    "optim_wrapper.paramwise_cfg.norm_decay_mult": 0.0,
    "optim_wrapper.paramwise_cfg.custom_keys.backbone.lr_mult": 0.1,
    "optim_wrapper.clip_grad": {"max_norm": 0.01, "norm_type": 2},
    "NETWORK.panoptic_head.num_queries": 100,
    "NETWORK.panoptic_head.loss_cls.loss_weight": 2.0,
    "NETWORK.panoptic_head.loss_mask.loss_weight": 5.0,
    "NETWORK.panoptic_head.loss_dice.loss_weight": 5.0,
    "NETWORK.train_cfg.num_points": 12544,
    "NETWORK.train_cfg.assigner.match_costs.0.weight": 2.0,
    "NETWORK.train_cfg.assigner.match_costs.1.weight": 5.0,
    "NETWORK.train_cfg.assigner.match_costs.2.weight": 5.0,
    "NETWORK.structural_feature": "decoder",
    "NETWORK.panoptic_head.num_transformer_feat_level": 3,
    "NETWORK.panoptic_head.pixel_decoder.encoder.num_layers": 6,
    "NETWORK.panoptic_head.transformer_decoder.num_layers": 9,
    "NETWORK.backbone.depth": 50,
    "optim_wrapper.type": "mmengine.optim.AmpOptimWrapper",
}
STUDENT = {
    "ema_decay": 0.9996,
    "at_burn_in_end": "copy",
    "model.settings.unlabelled_weight": 2.0,
    "model.pseudo_labels.score_threshold": 0.7,
    "model.pseudo_labels.min_soft_area": 5.0,
    "model.refiner.sam": "sam2_hiera_large",
    "model.refiner.num_points": 3,
    "model.arp.mode": "static",
    "model.pseudo_labels.nms_iou_threshold": None,
    "model.refiner.name": "points",
}
CITYSCAPES = {
    "max_iters": 90_000,
    "param_scheduler.power": 0.9,
    "param_scheduler.eta_min": 0.0,
    "NETWORK.backbone.norm_cfg": {"type": "SyncBN", "requires_grad": True},
    "NETWORK.backbone.norm_eval": False,
}
COCO = {
    "max_iters": 368_750,
    "param_scheduler.milestones": [327_778, 355_092],
    "param_scheduler.gamma": 0.1,
    "NETWORK.backbone.norm_cfg": {"type": "BN", "requires_grad": False},
    "NETWORK.backbone.norm_eval": True,
}
RELEASED = {
    "repeat_threshold": 10.0,
    "model.refiner.sampling": "softmax",
    "model.arp.min_source_area": 3000,
    "model.arp.pair_fraction": 0.5,
    "model.arp.min_visible_pixels": 1,
    "model.arp.min_visible_share": 0.0,
    "model.settings.learn_empty_batches": True,
    "model.settings.min_pixels": 1,
}


@pytest.mark.parametrize(
    ("name", "numbers"),
    [
        ("teacher/cityscapes_r50", {**TEACHER, **CITYSCAPES, "batch_size": 4, "NETWORK.structural_weight": 1.0}),
        ("teacher/coco_r50", {**TEACHER, **COCO, "batch_size": 6, "NETWORK.structural_weight": 1.0}),
        ("student/cityscapes_r50_points", {**TEACHER, **STUDENT, **CITYSCAPES, "batch_size": 4, "burn_in": 15_000}),
        ("student/coco_r50_points", {**TEACHER, **STUDENT, **COCO, "batch_size": 3, "burn_in": 25_000}),
        ("student/cityscapes_r50_guided", {"burn_in": 50_000, "model.refiner.name": "none", "model.arp": None}),
        ("student/coco_r50_guided", {"burn_in": 50_000, "model.refiner.name": "none", "model.arp": None}),
        ("student/cityscapes_r50_released", RELEASED),
        ("student/coco_r50_released", {**RELEASED, "model.arp.mode": "moved"}),
    ],
)
def test_the_numbers_are_the_papers(name, numbers):
    """Or, where it gives none, the released code's."""
    config = read_training_config(CONFIGS / f"{name}.py", []).to_dict()
    network = "model.detector" if name.startswith("student") else "model"

    def value(path):
        found = config
        for word in path.replace("NETWORK", network).split("."):
            found = found[int(word)] if isinstance(found, list) else found[word]
        return found

    assert {path: value(path) for path in numbers} == numbers


@pytest.mark.parametrize("stage", ["teacher", "student"])
def test_views_are_the_released_ones(stage):
    """Labelled and, of a student, unlabelled: COCO's jitter of scale, Cityscapes' short edges; both flip half."""

    def streams(family):
        name = f"{stage}/{family}_r50{'_points' if stage == 'student' else ''}"
        data = read_training_config(CONFIGS / f"{name}.py", []).train_dataloader["dataset"]
        for stream in (data["labelled"], data["unlabelled"]) if stage == "student" else (data,):
            yield {str(step["type"]).split(".")[-1].rstrip("'>"): step for step in stream["dataset"]["pipeline"]}

    for view in streams("coco"):
        assert view["RandomResize"]["scale"] == (1024, 1024)
        assert view["RandomResize"]["ratio_range"] == (0.1, 2.0)
        assert view["RandomCrop"]["crop_size"] == (1024, 1024)
        assert view["RandomFlip"]["prob"] == 0.5
    for view in streams("cityscapes"):
        edges = [scale[1] for scale in view["RandomChoiceResize"]["scales"]]
        assert len(edges) == 16
        assert np.allclose(edges, np.linspace(0.5, 2, 16) * 1024, atol=1)
        assert view["RandomCrop"]["crop_size"] == (1024, 512)
        assert view["RandomFlip"]["prob"] == 0.5


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("[!_]*/*.py")), ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_a_config_opens_with_its_claim_its_cost_and_its_command(path):
    head = ast.get_docstring(ast.parse(path.read_text()))
    assert re.search(r"Claim( \([^)]+\))?:\s", head)
    assert re.search(r"Cost:\s", head)
    assert "s4m-pipeline " in head


@pytest.mark.parametrize("family", sorted(PERCENTS))
def test_a_step_distils_64_points_of_either_kind_and_the_store_has_enough(family):
    (load,) = [
        step
        for step in inner(read_training_config(CONFIGS / f"teacher/{family}_r50.py", []), "none").pipeline
        if "LoadSimilarityTargets" in str(step["type"])
    ]
    assert (load["num_inside"], load["num_uniform"]) == (64, 64)
    path = CONFIGS / f"sam/{family}.py"
    stored = load_settings(load_config(path).to_dict(), where=path).similarity
    assert min(stored.num_inside, stored.num_uniform) >= {"cityscapes": 256, "coco": 128}[family]
