"""Hooks and loop: the teacher's phases, seeds as functions of the step, streams that start anywhere, our metric."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from mmengine.model import BaseModel
from torch import nn

from pipeline.data.coco import load_coco
from pipeline.errors import ConfigError
from pipeline.masks import rle
from pipeline.models import training_hooks
from pipeline.models.training_hooks import (
    BatchStatisticsHook,
    BurnInEmaHook,
    MaskApMetric,
    ProgressHook,
    StepSeedHook,
    _StreamIterator,
    detections,
    update_average,
)
from tests.toy_scenes import small_scenes


class Network(nn.Module):
    def __init__(self, value, count):
        super().__init__()
        self.weight = nn.Parameter(torch.full((2, 3), float(value)))
        self.short = nn.Parameter(torch.full((4,), float(value), dtype=torch.float16))
        self.register_buffer("mean", torch.full((3,), float(value)))
        self.register_buffer("index", torch.arange(count, count + 4))
        self.register_buffer("mask", torch.tensor([value > 0, value <= 0]))


class Pair(BaseModel):
    def __init__(self):
        super().__init__()
        self.student, self.teacher = Network(1, 10), Network(-3, 0)

    def forward(self, inputs, data_samples=None, mode="tensor"):
        raise NotImplementedError


def run_hook(hook, model, steps, *, moving=True):
    """The teacher's weight, float buffer and index after the hook of every step; the student moves by 1 each step."""
    seen = []
    for step in range(steps):
        if moving and step:
            with torch.no_grad():
                model.student.weight += 1
                model.student.mean += 1
                model.student.index += 1
        hook.before_train_iter(SimpleNamespace(model=model, iter=step), step)
        seen.append((float(model.teacher.weight[0, 0]), float(model.teacher.mean[0]), model.teacher.index.tolist()))
    return seen


def test_frozen_then_copied_then_averaged():
    seen = run_hook(BurnInEmaHook(burn_in=2, decay=0.75), Pair(), 5)
    assert seen[0] == seen[1] == (-3.0, -3.0, [0, 1, 2, 3])
    assert seen[2] == (3.0, 3.0, [12, 13, 14, 15])  # the student after two moves
    assert seen[3][0] == seen[3][1] == 0.75 * 3 + 0.25 * 4
    assert seen[4][0] == 0.75 * 3.25 + 0.25 * 5
    assert seen[4][2] == [14, 15, 16, 17]  # integers are copied, never averaged


def test_keep_goes_on_from_the_first_teacher():
    seen = run_hook(BurnInEmaHook(burn_in=2, decay=0.75, at_end="keep"), Pair(), 4)
    assert seen[0] == seen[1] == seen[2] == (-3.0, -3.0, [0, 1, 2, 3])
    assert seen[3][0] == 0.75 * -3 + 0.25 * 4
    assert seen[3][2] == [13, 14, 15, 16]


def test_no_burn_in_copies_at_once():
    assert run_hook(BurnInEmaHook(burn_in=0, decay=0.9), Pair(), 1)[0][0] == 1.0


@pytest.mark.parametrize("changes", [{"burn_in": -1}, {"decay": 0.0}, {"decay": 1.0}, {"at_end": "drop"}])
def test_wrong_settings_are_refused(changes):
    with pytest.raises(ConfigError, match="burn-in settings"):
        BurnInEmaHook(**{"burn_in": 1, **changes})


def test_the_hook_finds_the_networks_inside_a_wrapper():
    model = Pair()
    wrapped = torch.nn.parallel.DataParallel(model)
    BurnInEmaHook(burn_in=0).before_train_iter(SimpleNamespace(model=wrapped, iter=0), 0)
    assert float(model.teacher.weight[0, 0]) == 1.0


def test_the_average_has_no_graph_and_touches_no_memory_but_the_teachers():
    model = Pair()
    pointers = [value.data_ptr() for value in model.teacher.state_dict().values()]
    before = {name: value.clone() for name, value in model.student.state_dict().items()}
    for _ in range(5):
        update_average(model.teacher, model.student, decay=0.5)
    for parameter in model.teacher.parameters():
        assert parameter.is_leaf
        assert parameter.grad_fn is None
    assert pointers == [value.data_ptr() for value in model.teacher.state_dict().values()]
    assert all(torch.equal(value, before[name]) for name, value in model.student.state_dict().items())
    assert float(model.teacher.weight[0, 0]) == 1 - 4 * 0.5**5
    assert model.teacher.short.dtype == torch.float16
    assert model.teacher.mask.tolist() == [True, False]


def test_a_copy_is_exact_even_over_what_is_not_a_number():
    model = Pair()
    with torch.no_grad():
        model.teacher.weight.fill_(float("nan"))
        model.student.weight.copy_(torch.rand(2, 3))
    update_average(model.teacher, model.student, decay=0.0)
    assert torch.equal(model.teacher.weight, model.student.weight)


def test_relative_positions_survive_averaging():
    """The released defect: index 15 becomes 14 at the first update with 0.9996."""
    model = Pair()
    model.student.index.copy_(torch.tensor([15, 47, 528, 1]))
    model.teacher.index.copy_(model.student.index)
    for _ in range(100):
        update_average(model.teacher, model.student, decay=0.9996)
    assert model.teacher.index.tolist() == [15, 47, 528, 1]


def test_workers_share_the_statistics_of_plain_batch_norms_alone(monkeypatch):
    from pipeline.models import training_hooks

    shared = []

    def with_another_worker(tensor, op):
        """The other one's statistics are all 3."""
        assert op == "mean"
        shared.append(tensor)
        tensor.add_(3).div_(2)

    model = nn.ModuleDict(
        {
            "learnt": nn.BatchNorm2d(2),
            "frozen": nn.BatchNorm2d(2).eval(),
            "synced": nn.SyncBatchNorm(2),
            "bare": nn.BatchNorm1d(2, track_running_stats=False),
            "other": nn.GroupNorm(1, 2),
        }
    )
    model.register_buffer("history", torch.zeros(2))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    hook, runner = BatchStatisticsHook(), SimpleNamespace(model=model)
    hook.after_train_iter(runner, 0)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    monkeypatch.setattr(training_hooks, "is_distributed", lambda: True)
    monkeypatch.setattr(training_hooks, "all_reduce", with_another_worker)
    hook.after_train_iter(runner, 0)
    changed = {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}
    assert changed == {"learnt.running_mean", "learnt.running_var"}
    assert model["learnt"].running_mean.tolist() == [1.5, 1.5]
    assert model["learnt"].running_var.tolist() == [2.0, 2.0]
    assert len(shared) == 2


def test_a_steps_random_numbers_depend_on_the_step_only():
    def draw(step, seed=0):
        model = nn.Module()
        model.step_key = None
        StepSeedHook(seed=seed).before_train_iter(SimpleNamespace(model=model, iter=step), step)
        return torch.rand(3).tolist(), model.step_key

    expected = draw(5)
    torch.rand(7)
    assert draw(5) == expected
    assert expected[1] == (5, 0)
    assert draw(6)[0] != expected[0]
    assert draw(5, seed=1)[0] != expected[0]


def test_workers_draw_for_themselves(monkeypatch):
    def draw(rank):
        monkeypatch.setattr(training_hooks, "get_dist_info", lambda: (rank, 2))
        model = nn.Module()
        model.step_key = None
        StepSeedHook(seed=0).before_train_iter(SimpleNamespace(model=model, iter=5), 5)
        return torch.rand(3).tolist(), model.step_key

    first, second = draw(0), draw(1)
    assert (first[1], second[1]) == ((5, 0), (5, 1))
    assert first[0] != second[0]
    assert draw(1) == second


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_workers_on_cpus_have_plain_batch_norms(monkeypatch, device):
    """torch refuses SyncBN on CPUs as soon as there are two workers."""
    monkeypatch.setattr(training_hooks, "is_distributed", lambda: True)
    monkeypatch.setattr(training_hooks, "get_device", lambda: device)
    monkeypatch.setattr(training_hooks, "MMDistributedDataParallel", lambda module, **_: module)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(nn.Module, "to", lambda self, *_: self)
    model = nn.Sequential(nn.SyncBatchNorm(3), nn.Conv2d(3, 3, 1))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    wrapped = training_hooks.TrainingRunner.wrap_model(SimpleNamespace(cfg={}), None, model)
    assert isinstance(wrapped[0], nn.SyncBatchNorm) == (device == "cuda")
    assert all(torch.equal(value, before[name]) for name, value in wrapped.state_dict().items())
    if device == "cpu":
        assert wrapped(torch.rand(2, 3, 4, 4)).shape == (2, 3, 4, 4)


def test_a_model_without_a_key_is_left_alone():
    model = nn.Module()
    StepSeedHook(seed=0).before_train_iter(SimpleNamespace(model=model, iter=0), 0)
    assert not hasattr(model, "step_key")


class Loader:
    def __init__(self):
        self.sampler, self.started = SimpleNamespace(first_step=0), []

    def __iter__(self):
        self.started.append(self.sampler.first_step)
        return iter(range(self.sampler.first_step, 100))


def test_the_stream_starts_late_and_reads_nothing_before():
    loader = Loader()
    stream = _StreamIterator(loader)
    assert loader.started == []
    stream.skip_iter(40)
    assert [next(stream) for _ in range(3)] == [40, 41, 42]
    assert loader.started == [40]


def test_progress_is_printed_every_interval_and_at_the_end(capsys, tmp_path):
    hook, runner = ProgressHook(interval=2), SimpleNamespace(iter=0, max_iters=5, work_dir=str(tmp_path))
    hook.before_train(runner)
    for runner.iter in range(5):
        hook.after_train_iter(
            runner, 0, outputs={"loss": torch.tensor(1.5), "refiner/matched": 3.0, "sup/d0.loss_cls": 9.0}
        )
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[1] for line in lines] == ["2/5", "4/5", "5/5"]
    assert all("loss 1.5" in line and "refiner/matched 3" in line and "loss_cls" not in line for line in lines)
    assert "ETA 0:00" in lines[-1]
    assert (tmp_path / "progress.log").read_text().splitlines() == lines


@pytest.fixture(scope="module")
def scenes(tmp_path_factory):
    return small_scenes(tmp_path_factory.mktemp("data") / "scenes", num_train=2, num_val=2)


def test_the_time_left_is_that_of_steps_without_their_validations(capsys, tmp_path, monkeypatch):
    """Two seconds a step; after step 2 a validation of an hour, of both networks one after the other."""
    now = [100.0]
    monkeypatch.setattr(training_hooks.time, "monotonic", lambda: now[0])
    hook, runner = ProgressHook(interval=2), SimpleNamespace(iter=0, max_iters=100, work_dir=str(tmp_path))
    hook.before_train(runner)
    for runner.iter in range(6):
        now[0] += 2
        hook.after_train_iter(runner, 0)
        if runner.iter in (1, 2):  # where a line is printed, and between two
            hook.before_val(runner)
            now[0] += 3600
            hook.after_val(runner)
    lines = capsys.readouterr().out.splitlines()
    assert [line.split("  ")[-2:] for line in lines] == [
        ["2.00 s/step", "ETA 3:16"],
        ["2.00 s/step", "ETA 3:12"],
        ["2.00 s/step", "ETA 3:08"],
    ]


def test_the_lines_show_distillation_of_both_stages(capsys, tmp_path):
    hook, runner = ProgressHook(interval=1), SimpleNamespace(iter=0, max_iters=1, work_dir=str(tmp_path))
    hook.before_train(runner)
    losses = {"loss_structural": 1.0, "sup/loss_structural": 2.0, "loss_feature": 3.0, "sup/loss_mask": 4.0}
    hook.after_train_iter(runner, 0, outputs={name: torch.tensor(value) for name, value in losses.items()})
    line = capsys.readouterr().out
    assert "loss_structural 1  sup/loss_structural 2  loss_feature 3" in line
    assert "loss_mask" not in line


def prediction(coco, image, *, wrong=False):
    objects = coco.annotations[image.image_id]
    masks = np.stack([rle.decode(o.rle) for o in objects])
    labels = [coco.labels[o.category_id] for o in objects]
    instances = {
        "masks": torch.from_numpy(~masks if wrong else masks),
        "labels": torch.tensor(labels),
        "scores": torch.linspace(0.9, 0.5, len(labels)),
    }
    return {"img_id": image.image_id, "pred_instances": instances}


def test_the_metric_is_one_for_the_truth_and_zero_for_its_opposite(scenes):
    file, root = scenes.annotations("val"), scenes.image_root
    coco = load_coco(file, root)
    for wrong, expected in ((False, 1.0), (True, 0.0)):
        metric = MaskApMetric(annotation_file=str(file), image_root=str(root))
        for image in coco.images:
            metric.process(None, [prediction(coco, image, wrong=wrong)])
        figures = metric.evaluate(len(coco.images))
        assert set(figures) == {f"coco/{name}" for name in ("mask_AP", "mask_AP50", "mask_AP75", "AR100")}
        assert figures["coco/mask_AP"] == pytest.approx(expected)


def test_the_labels_of_the_metric_are_those_that_are_taught(scenes, tmp_path):
    root = scenes.image_root
    content = json.loads(scenes.annotations("val").read_text())
    taught = [category["name"] for category in content["categories"]]
    content["categories"].reverse()
    turned = tmp_path / "turned.json"
    turned.write_text(json.dumps(content))
    coco = load_coco(scenes.annotations("val"), root)

    def ap(metric):
        for image in coco.images:
            metric.process(None, [prediction(coco, image)])
        return metric.evaluate(len(coco.images))["coco/mask_AP"]

    metric = MaskApMetric(annotation_file=str(turned), image_root=str(root))
    metric.use_classes(taught)
    assert ap(metric) == pytest.approx(1.0)
    assert ap(MaskApMetric(annotation_file=str(turned), image_root=str(root))) < 0.5  # what it guards against
    with pytest.raises(ConfigError, match="class names"):
        MaskApMetric(annotation_file=str(turned), image_root=str(root)).use_classes([*taught, "unknown"])
    named = MaskApMetric(annotation_file=str(turned), image_root=str(root), class_names=taught[:2])
    named.use_classes(["something", "else"])  # the config's own names stay
    assert len(named._coco.categories) == 2


def test_the_metric_counts_the_images_that_were_seen(scenes):
    file, root = scenes.annotations("val"), scenes.image_root
    coco = load_coco(file, root)
    metric = MaskApMetric(annotation_file=str(file), image_root=str(root))
    metric.process(None, [prediction(coco, coco.images[0])])
    assert metric.evaluate(1)["coco/mask_AP"] == pytest.approx(1.0)


def test_no_detection_at_all_is_an_ap_of_zero(scenes):
    file, root = scenes.annotations("val"), scenes.image_root
    metric = MaskApMetric(annotation_file=str(file), image_root=str(root))
    empty = {"masks": torch.zeros(0, 64, 64), "labels": torch.zeros(0), "scores": torch.zeros(0)}
    for image in load_coco(file, root).images:
        metric.process(None, [{"img_id": image.image_id, "pred_instances": empty}])
    assert metric.evaluate(2)["coco/mask_AP"] == 0.0


def test_detections_use_the_files_category_ids_and_leave_empty_masks_out(scenes):
    coco = load_coco(scenes.annotations("val"), scenes.image_root)
    sample = prediction(coco, coco.images[0])
    sample["pred_instances"]["masks"][0] = False
    entries = detections(sample, coco)
    objects = coco.annotations[coco.images[0].image_id]
    assert [entry["category_id"] for entry in entries] == [o.category_id for o in objects[1:]]
    assert [entry["segmentation"] for entry in entries] == [o.rle for o in objects[1:]]
    assert entries[0]["score"] == pytest.approx(float(sample["pred_instances"]["scores"][1]))
