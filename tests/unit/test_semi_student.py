"""A student's step: what it learns from, what it does not, and that every part that is asked for takes part."""

from types import SimpleNamespace

import pipeline.models.mmcv_ops  # noqa: F401  isort: skip  (before mmdet)
import numpy as np
import pytest
import torch
from mmdet.models.task_modules.samplers.mask_pseudo_sampler import MaskPseudoSampler  # noqa: F401
from mmengine.optim import OptimWrapper
from mmengine.registry import init_default_scope
from mmengine.structures import InstanceData
from PIL import Image
from toy_models import MEAN, NUM_CLASSES, STD, blocks, build_detector, detector_config, preprocessor_config, sample_of

from data_schemas.pseudo_labels import OUTCOMES
from pipeline.data.arp import Sample
from pipeline.errors import ConfigError
from pipeline.masks.library import MaskLibrary
from pipeline.masks.rle import encode
from pipeline.models import semi_student
from pipeline.models.pseudo_labels import TeacherQueries, ViewLabels
from pipeline.models.semi_student import SemiStudent, _with_targets, make_refiner
from pipeline.refine.build import build_refiner
from pipeline.refine.interface import Refined
from tests.fakes import FakeSam

SIZE = 64
EVERYTHING = {"score_threshold": 0.0, "min_soft_area": 0.0}
NOTHING = {"score_threshold": 1.0}


def build_student(*, refiner=None, pseudo_labels=EVERYTHING, arp=None, seed=0, **settings) -> SemiStudent:
    init_default_scope("mmdet")
    torch.manual_seed(seed)
    model = SemiStudent(
        detector=detector_config(),
        data_preprocessor=preprocessor_config(branches=True),
        refiner=refiner or {"name": "none"},
        pseudo_labels=pseudo_labels,
        arp=arp,
        settings=settings,
    )
    start = build_detector(seed=seed).state_dict()
    # The class layer leans to objects: random weights alone call everything no-object or nothing.
    start["panoptic_head.cls_embed.bias"] = torch.tensor([0.0] * NUM_CLASSES + [-4.0])
    model.student.load_state_dict(start)
    model.teacher.load_state_dict(start)
    return model.train()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    root = tmp_path_factory.mktemp("images")
    rng = np.random.default_rng(0)
    for number in (1, 2, 3, 4):
        image = np.zeros((SIZE, SIZE, 3), np.uint8)
        for top in range(0, SIZE, 16):
            image[top : top + 16, ::2] = rng.integers(0, 255, 3)
            image[top : top + 16, 1::2] = image[top, 0]
        Image.fromarray(image).save(root / f"{number}.png")
    return root


def batch(folder, *, hidden=False, truth=None):
    """Two labelled and two unlabelled images, as the collate function gives them."""
    inputs, samples = [], []
    for number in (1, 2, 3, 4):
        image = torch.from_numpy(np.asarray(Image.open(folder / f"{number}.png")).copy()).permute(2, 0, 1)
        sample = sample_of(blocks(2 if number < 3 else 0, (SIZE, SIZE), seed=number), [0, 2][: 2 * (number < 3)])
        sample.set_metainfo({"img_id": number, "img_path": str(folder / f"{number}.png")})
        if number >= 3:
            del sample.gt_instances
            sample.gt_instances = InstanceData()
            if hidden:
                masks = torch.from_numpy(blocks(2, (SIZE, SIZE), seed=9) > 0) if truth is None else truth
                sample.hidden_truth = InstanceData(labels=torch.tensor([0, 1])[: len(masks)], masks=masks)
        inputs.append(image)
        samples.append(sample)
    return {
        "inputs": {"sup": inputs[:2], "unsup": inputs[2:]},
        "data_samples": {"sup": samples[:2], "unsup": samples[2:]},
    }


def losses_of(model, data, *, seed=0):
    torch.manual_seed(seed)
    prepared = model.data_preprocessor(data, True)
    return model.loss(prepared["inputs"], prepared["data_samples"])


def total(losses, prefix=""):
    return sum(v.sum() for n, v in losses.items() if "loss" in n and n.startswith(prefix))


def gradients(model, loss):
    model.zero_grad()
    loss.backward()
    return {n: p.grad.clone() for n, p in model.student.named_parameters() if p.grad is not None}


class Library:
    """Proposals: the image and its halves."""

    def read_masks(self, image_id):
        left = np.zeros((SIZE, SIZE), bool)
        left[:, :32] = True
        return MaskLibrary.from_rles([encode(m) for m in (left, ~left, left | True)], size_hw=(SIZE, SIZE))


@pytest.fixture
def with_fakes(monkeypatch):
    """SAM and the proposal store without files."""
    sam = FakeSam()
    monkeypatch.setattr(semi_student, "build_backend", lambda *args, **kwargs: sam)
    monkeypatch.setattr(semi_student.ProposalStore, "open", lambda uri, **_: Library())
    return sam


REFINERS = {
    "none": {"name": "none"},
    "points": {"name": "points", "sam": "fake"},
    "cpi_u": {"name": "cpi_u", "store": "somewhere"},
    "iom": {"name": "iom", "store": "somewhere"},
}


@pytest.mark.parametrize("name", REFINERS)
def test_a_step_moves_the_student_and_not_the_teacher(folder, with_fakes, name):
    model = build_student(refiner=REFINERS[name], arp={"mode": "static"})
    before = {n: v.clone() for n, v in model.state_dict().items()}
    wrapper = OptimWrapper(torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1))
    torch.manual_seed(0)
    logged = model.train_step(batch(folder), wrapper)
    assert float(logged["pseudo/per_image"]) > 0
    assert np.isfinite(float(logged["loss"]))
    outcomes = {n: float(logged[f"refiner/{n}"]) for n in OUTCOMES}
    assert sum(outcomes.values()) > 0
    assert (outcomes["matched"] == 0) == (name == "none")
    moved = {n for n, v in model.state_dict().items() if not torch.equal(v, before[n])}
    assert moved
    assert all(n.startswith("student.") for n in moved)
    assert not model.teacher.training
    assert not any(m.training for m in model.teacher.modules())
    assert model.student.training
    assert all(not p.requires_grad and p.grad is None for p in model.teacher.parameters())


def test_sam_encodes_every_unlabelled_image_once_and_no_labelled_one(folder, with_fakes):
    model = build_student(refiner=REFINERS["points"])
    for _ in range(3):
        losses_of(model, batch(folder))
    assert len(with_fakes.embedded) == 2


def test_sam_encodes_the_unlabelled_images_of_a_step_as_one_batch(folder, with_fakes, monkeypatch):
    batches = []
    embed = with_fakes.embed
    monkeypatch.setattr(with_fakes, "embed", lambda images: batches.append(len(images)) or embed(images), raising=False)
    losses_of(build_student(refiner=REFINERS["points"] | {"cached_embeddings": 1}), batch(folder))
    assert batches == [2]
    losses_of(build_student(refiner=REFINERS["points"], pseudo_labels=NOTHING), batch(folder))
    assert batches == [2]  # nothing to refine


def test_without_pseudo_labels_only_the_labels_teach(folder):
    model = build_student(pseudo_labels=NOTHING)
    losses = losses_of(model, batch(folder))
    assert float(losses["pseudo/per_image"]) == 0
    assert float(total(losses, "unsup")) == 0
    both = gradients(model, total(losses))
    torch.manual_seed(0)
    prepared = model.data_preprocessor(batch(folder), True)
    alone = model.student.loss(prepared["inputs"]["sup"], prepared["data_samples"]["sup"])
    expected = gradients(model, total(alone))
    assert both.keys() == expected.keys()
    for name in expected:
        torch.testing.assert_close(both[name], expected[name], rtol=1e-5, atol=1e-8)


def test_that_everything_is_ground_is_learnt_only_if_asked_or_beside_a_label(folder):
    asked = losses_of(build_student(pseudo_labels=NOTHING, learn_empty_batches=True), batch(folder))
    assert float(asked["pseudo/per_image"]) == 0
    assert float(total(asked, "unsup")) > 0


def test_teacher_and_refiner_work_in_full_precision_within_autocast(folder):
    model, seen = build_student(), []
    filtered, refined = model.teacher_queries, model.refiner.refine
    model.teacher_queries = lambda *args: seen.append(torch.is_autocast_enabled("cpu")) or filtered(*args)
    model.refiner = SimpleNamespace(
        refine=lambda *args: seen.append(torch.is_autocast_enabled("cpu")) or refined(*args)
    )
    plain = losses_of(build_student(), batch(folder))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        half = losses_of(model, batch(folder))
        assert torch.is_autocast_enabled("cpu")
    assert seen == [False] * 3  # the teacher once, the refiner for two images
    assert float(half["pseudo/per_image"]) == float(plain["pseudo/per_image"])


def test_the_pseudo_label_loss_carries_its_weight(folder):
    plain, heavy = (losses_of(build_student(unlabelled_weight=w), batch(folder)) for w in (1.0, 3.0))
    assert float(total(plain, "unsup")) > 0
    torch.testing.assert_close(total(heavy, "unsup"), 3 * total(plain, "unsup"))
    torch.testing.assert_close(total(heavy, "sup"), total(plain, "sup"))


def test_both_parts_have_all_layers_losses(folder):
    losses = losses_of(build_student(), batch(folder))
    names = {f"{layer}loss_{kind}" for layer in ("", "d0.", "d1.") for kind in ("cls", "mask", "dice")}
    assert {n for n in losses if "loss" in n} == {f"{part}/{n}" for part in ("sup", "unsup") for n in names}


def test_pixel_weights_reach_the_loss(folder):
    plain, weighted = (
        losses_of(build_student(refiner={"name": "none", "pixel_weights": scope}), batch(folder))
        for scope in ("off", "all")
    )
    for name, value in plain.items():
        same = torch.equal(value.sum(), weighted[name].sum())
        assert same == (not name.startswith("unsup/") or "loss_mask" not in name), name
    assert float(weighted["unsup/loss_mask"].sum()) < float(plain["unsup/loss_mask"].sum())  # PWA weights are below 1


def test_pasting_changes_what_is_learnt_and_only_from_the_unlabelled(folder):
    off, on = (losses_of(build_student(arp=arp), batch(folder)) for arp in (None, {"mode": "static"}))
    torch.testing.assert_close(total(on, "sup"), total(off, "sup"))
    assert float(total(on, "unsup")) != float(total(off, "unsup"))
    assert float(on["pseudo/per_image"]) == float(off["pseudo/per_image"])


def test_hidden_ground_truth_is_measured_and_not_learnt(folder):
    model = build_student(arp={"mode": "static"})
    without = losses_of(model, batch(folder))
    with_truth = losses_of(model, batch(folder, hidden=True))
    other = losses_of(model, batch(folder, hidden=True, truth=torch.ones(1, SIZE, SIZE, dtype=torch.bool)))
    for name, value in without.items():
        assert torch.equal(value, with_truth[name]), name
        assert torch.equal(value, other[name]), name
    figures = ("sq", "ca", "precision", "recall")
    assert set(other) - set(without) == {
        f"quality/{which}_{name}" for which in ("teacher", "refined") for name in figures
    }
    assert 0.5 < float(other["quality/teacher_sq"]) < 1


def test_quality_is_one_where_the_hidden_truth_is_what_the_teacher_says(folder):
    model = build_student()
    prepared = model.data_preprocessor(batch(folder), True)
    inputs, samples = prepared["inputs"]["unsup"], prepared["data_samples"]["unsup"]
    labels, _ = model.refined_labels(model.teacher_queries(inputs, samples), samples, np.random.default_rng(0))
    for label, sample in zip(labels, samples, strict=True):
        largest = int(label.masks.sum((1, 2)).argmax())
        sample.hidden_truth = InstanceData(
            labels=torch.from_numpy(label.labels[[largest]]), masks=torch.from_numpy(label.masks[[largest]])
        )
    _, log = model.refined_labels(model.teacher_queries(inputs, samples), samples, np.random.default_rng(0))
    assert log["quality/refined_sq"] == log["quality/teacher_sq"] == 1.0
    assert log["quality/refined_ca"] > 0


class Answering:
    """Answers with one mask, whatever it is asked."""

    def __init__(self, mask):
        self.mask = mask

    def refine(self, image_id, image, masks, rng):
        return Refined(np.stack([self.mask] * len(masks)), [None] * len(masks), ["matched"] * len(masks))


def _one_query(model, folder):
    """Samples of a step, and for each the query of a square of 32 pixels, rows and columns 16 to 47, of class 1."""
    samples = model.data_preprocessor(batch(folder), True)["data_samples"]["unsup"]
    logits = torch.full((1, 16, 16), -9.0)
    logits[0, 4:12, 4:12] = 9.0
    return samples, [TeacherQueries(logits, torch.tensor([1]), torch.tensor([0.9])) for _ in samples]


def test_quality_is_told_before_and_after_refinement(folder):
    model = build_student()
    samples, queries = _one_query(model, folder)
    truth = np.zeros((SIZE, SIZE), bool)
    truth[16:48, 16:40] = True  # 24 of the teacher's 32 columns
    model.refiner = Answering(truth)
    for sample in samples:
        sample.hidden_truth = InstanceData(labels=torch.tensor([1]), masks=torch.from_numpy(truth[None]))
    _, log = model.refined_labels(queries, samples, np.random.default_rng(0))
    assert log["quality/teacher_sq"] == pytest.approx(0.75, abs=0.02)
    assert log["quality/refined_sq"] == 1.0
    assert log["quality/teacher_precision"] == log["quality/refined_recall"] == 1.0
    for sample in samples:
        sample.hidden_truth = InstanceData(labels=torch.tensor([2]), masks=torch.from_numpy(truth[None]))
    _, log = model.refined_labels(queries, samples, np.random.default_rng(0))
    assert log["quality/teacher_ca"] == log["quality/refined_ca"] == 0.0


class Dropping:
    """Bears out the first mask and no other."""

    def refine(self, image_id, image, masks, rng):
        given = masks.masks
        given[1:] = False
        return Refined(given, [None] * len(masks), ["matched"] + ["dropped"] * (len(masks) - 1))


def test_what_sam_does_not_bear_out_and_what_the_teacher_is_unsure_of_are_neither_learnt_nor_background(
    folder, monkeypatch
):
    model = build_student(arp={"mode": "static"})
    samples, _ = _one_query(model, folder)
    masks = torch.zeros(3, 16, 16, dtype=torch.bool)
    masks[0, 2:7, 2:7] = masks[1, 2:7, 9:14] = masks[2, 9:14, 2:7] = True
    logits = torch.where(masks, 9.0, -9.0)
    query = TeacherQueries(logits[:2], torch.tensor([1, 2]), torch.tensor([0.9, 0.8]), unsure=masks[2:])
    monkeypatch.setattr(model, "teacher_queries", lambda inputs, given: [query for _ in given])
    model.refiner = Dropping()
    learnt, learn = [], model.student.loss
    monkeypatch.setattr(model.student, "loss", lambda *given: learnt.append(given) or learn(*given))
    logged = losses_of(model, batch(folder))
    assert float(logged["refiner/dropped"]) == float(logged["refiner/matched"]) == len(samples)
    assert float(logged["pseudo/per_image"]) == 1
    (_, labelled), (_, targets) = learnt
    assert all("unsure_masks" not in sample.metainfo for sample in labelled)
    for target in targets:
        assert set(target.gt_instances.labels.tolist()) == {1}
        assert torch.equal(target.metainfo["unsure_masks"], masks[[2, 1]])


@pytest.mark.parametrize("pasted", [False, True])
def test_nothing_is_unsure_where_a_label_lies(folder, monkeypatch, pasted):
    """Neither a second mask of an object that is learnt, nor what a pasted object hides."""
    model = build_student(arp={"mode": "static"} if pasted else None)
    place = torch.zeros(3, 16, 16, dtype=torch.bool)
    place[0, 2:10, 2:10] = place[1, 2:8, 2:10] = place[2, 12:15, 12:15] = True  # IoU of the first two 0.75
    logits = torch.where(place, 9.0, -9.0)
    orders = [[0, 1], [2, 0]]  # SAM bears out the first of each
    queries = [TeacherQueries(logits[order], torch.tensor([1, 2]), torch.tensor([0.9, 0.8])) for order in orders]
    monkeypatch.setattr(model, "teacher_queries", lambda inputs, given: queries)
    model.refiner = Dropping()
    learnt, learn = [], model.student.loss
    monkeypatch.setattr(model.student, "loss", lambda *given: learnt.append(given) or learn(*given))
    losses_of(model, batch(folder))
    first, second = (target.metainfo["unsure_masks"] for target in learnt[1][1])
    assert len(first) == 0
    assert torch.equal(second, place[:0] if pasted else place[:1])


def test_a_refiner_that_changes_nothing_improves_nothing(folder):
    """Of two masks one has fewer pixels than are learnt, and the wrong class."""
    model = build_student(refiner={"name": "none"})
    samples, _ = _one_query(model, folder)
    logits = torch.full((2, 16, 16), -9.0)
    logits[0, 4:12, 4:12] = 9.0
    logits[1, 0, 0] = 9.0
    queries = [TeacherQueries(logits, torch.tensor([1, 2]), torch.tensor([0.9, 0.9])) for _ in samples]
    truth = np.zeros((2, SIZE, SIZE), bool)
    truth[0, 16:48, 16:40] = True
    truth[1, :3, :4] = True
    for sample in samples:
        sample.hidden_truth = InstanceData(labels=torch.tensor([1, 1]), masks=torch.from_numpy(truth))
    _, log = model.refined_labels(queries, samples, np.random.default_rng(0))
    for figure in ("sq", "ca"):
        assert log[f"quality/refined_{figure}"] == log[f"quality/teacher_{figure}"]


@pytest.mark.parametrize(("min_pixels", "left"), [(1, 1), (20, 1), (21, 0)])
def test_targets_with_too_few_pixels_are_not_learnt(folder, min_pixels, left):
    model = build_student(min_pixels=min_pixels)
    samples, queries = _one_query(model, folder)
    small = np.zeros((SIZE, SIZE), bool)
    small[3:7, 3:8] = True
    model.refiner = Answering(small)
    labels, log = model.refined_labels(queries, samples, np.random.default_rng(0))
    assert [len(label.labels) for label in labels] == [left, left]
    assert log["pseudo/per_image"] == left


def test_a_step_is_a_function_of_its_key(folder, with_fakes):
    model = build_student(refiner=REFINERS["points"], arp={"mode": "moved"})
    model.step_key = (3, 0)
    first, again = (float(total(losses_of(model, batch(folder)))) for _ in range(2))
    model.step_key = (4, 0)
    assert first == again
    assert float(total(losses_of(model, batch(folder)))) != first


def test_the_student_learns_pasted_pixels_with_pasted_labels_and_the_teacher_sees_the_weak_view(folder, monkeypatch):
    model = build_student(arp={"mode": "static"})
    images, seen, learnt = batch(folder)["inputs"]["unsup"], {}, []
    monkeypatch.setattr(semi_student, "strong_view", lambda image: 255 - image)
    mix, learn, look = model.mixed_samples, model.student.loss, model.teacher.extract_feat
    monkeypatch.setattr(model, "mixed_samples", lambda *given: seen.setdefault("mixed", mix(*given)))
    monkeypatch.setattr(model.teacher, "extract_feat", lambda given: look(seen.setdefault("weak", given)))
    monkeypatch.setattr(model.student, "loss", lambda *given: learnt.append(given) or learn(*given))
    losses_of(model, batch(folder))
    (_, _), (strong, targets) = learnt
    mean, std = (torch.tensor(v)[:, None, None] for v in (MEAN, STD))
    assert len(images) == len(seen["weak"]) == len(seen["mixed"]) == len(strong) == len(targets)
    for image, weak, mixed, learnt_view, target in zip(
        images, seen["weak"], seen["mixed"], strong, targets, strict=True
    ):
        torch.testing.assert_close(weak, (image.float() - mean) / std)
        pasted = torch.from_numpy(mixed.image).permute(2, 0, 1)
        assert not torch.equal(pasted, image)
        torch.testing.assert_close(learnt_view, (255 - pasted.float() - mean) / std)
        assert np.array_equal(target.gt_instances.masks.masks, mixed.masks)
        assert target.gt_instances.labels.tolist() == mixed.labels.tolist()


def test_the_way_through_normalised_pixels_and_back_loses_nothing(folder):
    model = build_student()
    inputs = model.data_preprocessor(batch(folder), True)["inputs"]["unsup"]
    nothing = [ViewLabels(np.zeros((0, SIZE, SIZE), bool), np.zeros(0, np.int64), []) for _ in inputs]
    for image, sample in zip(
        batch(folder)["inputs"]["unsup"],
        model.mixed_samples(inputs, nothing, np.random.default_rng(0)),
        strict=True,
    ):
        assert np.array_equal(sample.image, image.permute(1, 2, 0).numpy())


def test_checkpoints_hold_both_networks_and_nothing_else(with_fakes):
    model = build_student(refiner=REFINERS["points"])
    names = list(build_detector().state_dict())
    assert sorted(model.state_dict()) == sorted(f"{p}.{n}" for p in ("student", "teacher") for n in names)


def test_prediction_is_the_students(folder):
    model = build_student().eval()
    with torch.no_grad():
        for parameter in model.teacher.parameters():
            parameter.fill_(float("nan"))
    image = batch(folder)["inputs"]["unsup"][0]
    sample = sample_of(blocks(0, (SIZE, SIZE)), [])
    result = model.test_step({"inputs": [image], "data_samples": [sample]})
    assert torch.isfinite(result[0].pred_instances.scores).all()


def test_targets_are_made_on_the_device_of_the_inputs():
    """On a GPU the head makes its masks where the labels are; meta stands in for one here."""
    mixed = Sample(
        np.zeros((8, 8, 3), np.uint8), np.ones((1, 8, 8), bool), np.zeros(1, np.int64), (np.ones((8, 8), np.float32),)
    )
    target = _with_targets(sample_of(blocks(0, (8, 8)), []), mixed, torch.device("meta"))
    assert target.gt_instances.labels.device.type == "meta"
    assert target.gt_instances.pixel_weights.device.type == "meta"


def test_instances_without_weights_weigh_one_beside_those_with():
    masks, weight = np.ones((2, 8, 8), bool), np.full((8, 8), 0.25, np.float32)
    mixed = Sample(np.zeros((8, 8, 3), np.uint8), masks, np.array([1, 2]), (None, weight))
    instances = _with_targets(sample_of(blocks(0, (8, 8)), []), mixed, torch.device("cpu")).gt_instances
    assert (instances.pixel_weights[0] == 1).all()
    assert (instances.pixel_weights[1] == 0.25).all()
    bare = Sample(mixed.image, masks, mixed.labels, (None, None))
    assert (
        "pixel_weights" not in _with_targets(sample_of(blocks(0, (8, 8)), []), bare, torch.device("cpu")).gt_instances
    )


class Spy:
    """Records what it is given and answers with the masks of the teacher."""

    def __init__(self):
        self.given = []

    def refine(self, image_id, image, masks, rng):
        self.given.append((image_id, image, masks))
        return Refined(masks.masks, [None] * len(masks), ["kept"] * len(masks))


def test_the_refiner_works_in_the_canonical_frame_of_each_image(folder):
    """The unlabelled view shows the right half, enlarged twice and flipped: the refiner sees the original."""
    model = build_student()
    model.refiner = Spy()
    prepared = model.data_preprocessor(batch(folder), True)
    inputs, samples = prepared["inputs"]["unsup"], prepared["data_samples"]["unsup"]
    matrix = np.array([[-2, 0, 128], [0, 2, 0], [0, 0, 1]], np.float32)
    samples[0].set_metainfo({"homography_matrix": matrix})
    logits = torch.full((1, 16, 16), -9.0)
    logits[0, 4:8, 0:8] = 9.0  # view rows 16-32, columns 0-32
    query = TeacherQueries(logits, torch.tensor([2]), torch.tensor([0.9]))
    labels, _ = model.refined_labels([query, query], samples, np.random.default_rng(0))
    (first_id, _, first), (second_id, _, second) = model.refiner.given
    assert (first_id, second_id) == (3, 4)
    rows, columns = np.nonzero(first.masks[0])
    assert (rows.min(), rows.max(), columns.min(), columns.max()) == (8, 15, 48, 63)
    assert first.visible.sum() == 32 * 32
    assert second.visible.all()
    for label in labels:
        rows, columns = np.nonzero(label.masks[0])
        assert (rows.min(), rows.max(), columns.min(), columns.max()) == (16, 31, 0, 31)
    assert inputs.shape[-2:] == (64, 64)


def test_refiners_are_built_with_what_they_need(with_fakes):
    refiner, cache = make_refiner("points", sam="fake", cached_embeddings=3, num_points=5)
    assert refiner.settings.num_points == 5
    assert cache is refiner.embed
    refiner, cache = make_refiner("cpi_u", store="somewhere", precision="bf16", under_threshold=0.6)
    assert type(refiner) is type(build_refiner("cpi_u", proposals=Library()))
    assert cache is None
    with pytest.raises(ConfigError, match="bf16 is for CUDA"):
        make_refiner("points", sam="fake", precision="bf16")
    with pytest.raises(ConfigError, match="precision"):
        make_refiner("points", sam="fake", device="cuda", precision="fp16")
    with pytest.raises(ConfigError, match="needs a SAM"):
        make_refiner("points")
    with pytest.raises(ConfigError, match="needs proposals"):
        make_refiner("iom")
    with pytest.raises(ConfigError, match="setting of refiner"):
        make_refiner("none", num_points=3)


def test_sam_computes_in_the_precision_asked_for(monkeypatch):
    asked = []

    def build(name, **options):
        asked.append(options)
        return FakeSam()

    monkeypatch.setattr(semi_student, "build_backend", build)
    make_refiner("points", sam="fake")
    make_refiner("points", sam="fake", device="cuda:1", precision="bf16")
    assert [(each["device"], each["precision"]) for each in asked] == [("cpu", "fp32"), ("cuda:1", "bf16")]
