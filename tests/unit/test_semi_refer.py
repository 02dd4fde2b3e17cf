"""SemiRES' step: against the loss written out by hand, and every switch on its own."""

import pipeline.models.mmcv_ops  # noqa: F401  isort: skip  (before mmdet)
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from mmdet.models.data_preprocessors.data_preprocessor import MultiBranchDataPreprocessor
from mmengine.model import ImgDataPreprocessor
from mmengine.optim import OptimWrapper
from PIL import Image
from torch import Tensor, nn

from data_schemas.pseudo_labels import OUTCOMES
from pipeline.data.referring.sample import ReferSample
from pipeline.errors import ConfigError
from pipeline.masks.library import MaskLibrary
from pipeline.masks.overlap import mask_iou
from pipeline.masks.rle import encode_many
from pipeline.models import semi_student
from pipeline.models.referring import semi_refer
from pipeline.models.referring.interface import ReferNetwork, ReferOutput
from pipeline.models.referring.refer_labels import ReferLabel
from pipeline.models.referring.segmentor import ReferSegmentor
from pipeline.models.referring.semi_refer import SemiReferStudent
from pipeline.models.training_hooks import update_average
from tests.fakes import FakeSam

SIDE = 32
MEAN, STD = [120.0, 110.0, 100.0], [50.0, 60.0, 55.0]
SENTENCES = ("red", "the left one", "blue", "green")


class StandInNetwork(ReferNetwork):
    """One convolution of stride 4, moved by the number of letters; with ReLA's two outputs if asked for."""

    pixel_loss_weight = 2.0

    def __init__(self, *, with_regions: bool = False) -> None:
        super().__init__()
        self.patch = nn.Conv2d(3, 4, 4, stride=4)
        self.norm = nn.BatchNorm2d(4)
        self.head = nn.Conv2d(4, 2, 1)
        self.letters = nn.Parameter(torch.tensor([0.0, 0.05]))
        self.with_regions = with_regions
        self.seen: list[tuple[bool, Tensor, list[str]]] = []

    def forward(self, images, sentences):
        self.seen.append((self.training, images.detach().clone(), list(sentences)))
        number = torch.tensor([float(len(sentence)) for sentence in sentences])
        logits = self.head(self.norm(self.patch(images))) + (self.letters * number[:, None])[..., None, None]
        if not self.with_regions:
            return ReferOutput(logits)
        return ReferOutput(logits, logits.flatten(2), logits.mean(dim=(2, 3)))

    def auxiliary_losses(self, output, targets, has_target):
        if output.no_target is None:
            return {}
        small = F.interpolate(targets[:, None].float(), scale_factor=0.25)[:, 0].flatten(1).long()
        return {
            "minimap": 0.1 * F.cross_entropy(output.minimap, small, reduction="none").mean(dim=1),
            "no_target": 0.1 * F.cross_entropy(output.no_target, (~has_target).long(), reduction="none"),
        }

    def upsample(self, logits, size_hw):
        return F.interpolate(logits, size_hw, mode="bilinear", align_corners=True)


def build(*, refiner=None, network=None, jitter=None, seed=0, predict_on="teacher", **settings) -> SemiReferStudent:
    torch.manual_seed(seed)
    model = SemiReferStudent(
        segmentor={"type": ReferSegmentor, "network": {"type": StandInNetwork, **(network or {})}},
        data_preprocessor={
            "type": MultiBranchDataPreprocessor,
            "data_preprocessor": {"type": ImgDataPreprocessor, "mean": MEAN, "std": STD},
        },
        refiner=refiner or {"name": "none"},
        jitter=jitter,
        settings=settings,
        predict_on=predict_on,
    )
    update_average(model.teacher, model.student, decay=0.0)
    return model.train()


def picture(number):
    """Stripes of two colours, one of them red as far as a sentence needs it."""
    rng = np.random.default_rng(number)
    image = np.zeros((SIDE, SIDE, 3), np.uint8)
    image[:, : 8 * (1 + number % 3)] = rng.integers(0, 255, 3)
    image[8:20] = rng.integers(0, 255, 3)
    return image


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    root = tmp_path_factory.mktemp("images")
    for number in range(1, 5):
        Image.fromarray(picture(number)).save(root / f"{number}.png")
    return root


def sample_of(folder, number, *, ori=(SIDE, SIDE), **data):
    homography = np.diag([SIDE / ori[1], SIDE / ori[0], 1.0]).astype(np.float32)
    sample = ReferSample(
        metainfo={
            "img_id": number,
            "img_path": str(folder / f"{number}.png"),
            "ref_id": number,
            "sentence_id": number,
            "sentence": SENTENCES[number - 1],
            "has_target": data.pop("has_target", True),
            "ori_shape": ori,
            "img_shape": (SIDE, SIDE),
            "homography_matrix": homography,
        }
    )
    for name, value in data.items():
        setattr(sample, name, value)
    return sample


def square(top, left, side):
    mask = torch.zeros(SIDE, SIDE, dtype=torch.bool)
    mask[top : top + side, left : left + side] = True
    return mask


def batch(folder, *, hidden=False, ori=(SIDE, SIDE)):
    """Two labelled and two unlabelled images, as the collate function gives them."""
    truth = {"hidden_truth": square(4, 4, 20)} if hidden else {}
    samples = {
        "sup": [sample_of(folder, k, gt_mask=square(4 * k, 2, 9)) for k in (1, 2)],
        "unsup": [sample_of(folder, k, ori=ori, **truth) for k in (3, 4)],
    }
    inputs = {
        "sup": [torch.from_numpy(picture(k)).permute(2, 0, 1) for k in (1, 2)],
        "unsup": [torch.from_numpy(picture(k)).permute(2, 0, 1) for k in (3, 4)],
    }
    return {"inputs": inputs, "data_samples": samples}


def losses_of(model, data):
    torch.manual_seed(0)
    prepared = model.data_preprocessor(data, True)
    return model.loss(prepared["inputs"], prepared["data_samples"])


def teacher_view(model, data):
    """What the teacher says of the weak views: probabilities [B, H, W], written out with a softmax."""
    prepared = model.data_preprocessor(data, True)
    network = model.teacher.network
    with torch.no_grad():
        logits = network(prepared["inputs"]["unsup"], [s.sentence for s in data["data_samples"]["unsup"]]).logits
        return network.upsample(logits, (SIDE, SIDE)).softmax(dim=1)[:, 1]


class Library:
    """Proposals of two images: of image 3 what the teacher saw and one pixel more; image 4 has none."""

    masks: np.ndarray = np.zeros((0, SIDE, SIDE), bool)

    def read_masks(self, image_id):
        masks = self.masks if image_id == 3 else self.masks[:0]
        return MaskLibrary.from_rles(encode_many(masks), size_hw=self.masks.shape[1:])


@pytest.fixture
def library(monkeypatch):
    """SAM and the proposal store without files."""
    held, sam = Library(), FakeSam()
    monkeypatch.setattr(semi_student, "build_backend", lambda *args, **kwargs: sam)
    monkeypatch.setattr(semi_student.ProposalStore, "open", lambda uri, **_: held)
    held.sam = sam
    return held


CPI_U = {"name": "cpi_u", "store": "somewhere"}
NO_JITTER = {"probability": 0.0}


def centred(model):
    """Both networks moved so that about half of what they see is an object."""
    for segmentor in (model.student, model.teacher):
        with torch.no_grad():
            segmentor.network.head.weight *= 4
            segmentor.network.letters.zero_()
            segmentor.network.head.bias.zero_()
    return model


@pytest.mark.parametrize(
    "refiner", [{"name": "none"}, CPI_U, {"name": "iom", "store": "x"}, {"name": "points", "sam": "f"}]
)
def test_a_step_moves_the_student_and_not_the_teacher(folder, library, refiner):
    model = centred(build(refiner=refiner))
    library.masks = (teacher_view(model, batch(folder))[:1] > 0.5).numpy()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    wrapper = OptimWrapper(torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1))
    logged = model.train_step(batch(folder), wrapper)
    assert torch.isfinite(logged["loss"])
    outcomes = {name: float(logged[f"refiner/{name}"]) for name in OUTCOMES}
    assert sum(outcomes.values()) == 2
    assert (outcomes["matched"] > 0) == (refiner["name"] != "none")
    moved = [name for name, value in model.state_dict().items() if not torch.equal(value, before[name])]
    assert moved
    assert all(name.startswith("student.") for name in moved)
    assert all(not p.requires_grad and p.grad is None for p in model.teacher.parameters())
    assert {name.split(".")[0] for name in before} == {"student", "teacher"}


def test_without_a_weight_unlabelled_images_are_not_even_looked_at(folder):
    def state_after(invert):
        model, data = build(unlabelled_weight=0.0), batch(folder)
        data["inputs"]["unsup"] = [255 - image if invert else image for image in data["inputs"]["unsup"]]
        losses = losses_of(model, data)
        assert all(name.startswith("sup/") for name in losses)
        return losses, model.state_dict()

    (losses, state), (others, other_state) = state_after(False), state_after(True)
    assert {name: float(value) for name, value in losses.items()} == {n: float(v) for n, v in others.items()}
    assert all(torch.equal(state[name], other_state[name]) for name in state)


def test_the_step_is_the_released_one_written_out(folder, library):
    """IOM's script: 10 x labelled + (matched + PWA) / 2, class weights 0.9 and 1.1 in all but the last."""
    model = centred(build(refiner=CPI_U, jitter=NO_JITTER, supervised_weight=10.0, unsup_mix="halves"))
    data = batch(folder)
    probability = teacher_view(model, data)
    own = probability > 0.5
    proposal = own[0].clone()
    proposal[0, :5] = ~proposal[0, :5]
    assert 0 < int(own[0].sum()) < SIDE * SIDE
    library.masks = proposal[None].numpy()
    found = losses_of(model, data)

    prepared = model.data_preprocessor(batch(folder), True)["inputs"]
    images = torch.cat([prepared["sup"], prepared["unsup"]])
    targets = torch.stack([square(4, 2, 9), square(8, 2, 9), proposal, own[1]])
    network = model.student.network
    logits = F.interpolate(network(images, SENTENCES).logits, (SIDE, SIDE), mode="bilinear", align_corners=True)
    weighted = F.cross_entropy(logits, targets.long(), weight=torch.tensor([0.9, 1.1]), reduction="none")
    plain = F.cross_entropy(logits, targets.long(), reduction="none")
    density = torch.exp(-((probability[1] - 0.5) ** 2) / 0.2) / np.sqrt(2 * np.pi * 0.1)
    supervised, matched, pwa = weighted[:2].mean(), weighted[2].mean(), ((1.3 - density) * plain[3]).mean()
    torch.testing.assert_close(found["sup/loss_mask"], 2.0 * 10 * supervised)  # 2: the network's own weight
    torch.testing.assert_close(found["unsup/loss_mask"], 2.0 * (matched + pwa) / 2)
    assert {n: float(v) for n, v in found.items() if "loss" not in n} == {
        "refiner/matched": 1,
        "refiner/kept": 1,
        "refiner/empty": 0,
        "refiner/dropped": 0,
        "pseudo/pwa_share": 0.5,
        "pseudo/unconfident": 0,
    }


def test_labels_go_through_the_canonical_frame_only_where_they_match(folder, library):
    """An image of another size than the view: the matched mask is the proposal seen there, the other the view's own."""
    ori = (24, 64)
    model = centred(build(refiner=CPI_U))
    library.masks = np.zeros((1, *ori), bool)
    library.masks[0, :, 3:] = True  # contains most of anything
    data = batch(folder, ori=ori)
    own = (teacher_view(model, data) > 0.5).numpy()
    prepared = model.data_preprocessor(data, True)
    logits = model.teacher_logits(prepared["inputs"]["unsup"], data["data_samples"]["unsup"])
    labels, log = model.refined_labels(logits, data["data_samples"]["unsup"], np.random.default_rng(0))
    assert [label.outcome for label in labels] == ["matched", "kept"]
    expected = np.zeros((SIDE, SIDE), bool)
    expected[:, 1:] = True  # the centre of column 1 lies on the canonical column 3
    np.testing.assert_array_equal(labels[0].mask, expected)
    np.testing.assert_array_equal(labels[1].mask, own[1])
    for label, mask in zip(labels, own, strict=True):
        np.testing.assert_array_equal(label.own, mask)
    assert labels[0].weights is None
    seen = teacher_view(model, data)[1].numpy()
    np.testing.assert_allclose(labels[1].weights, 1.3 - 1.26157 * np.exp(-5 * (seen - 0.5) ** 2), atol=1e-4)
    assert log["pseudo/pwa_share"] == 0.5


@pytest.mark.parametrize("scope", ["unmatched", "off"])
def test_a_match_between_the_pixels_of_the_view_is_as_none(folder, library, scope):
    """A column of a wide image that no pixel of the view has its centre on."""
    ori = (24, 64)
    model = centred(build(refiner=CPI_U | {"pixel_weights": scope, "under_threshold": 0.0}))
    library.masks = np.zeros((1, *ori), bool)
    library.masks[0, :, ::2] = True
    data = batch(folder, ori=ori)
    prepared = model.data_preprocessor(data, True)
    logits = model.teacher_logits(prepared["inputs"]["unsup"], data["data_samples"]["unsup"])
    labels, _ = model.refined_labels(logits, data["data_samples"]["unsup"], np.random.default_rng(0))
    assert [label.outcome for label in labels] == ["kept", "kept"]
    np.testing.assert_array_equal(labels[0].mask, labels[0].own)
    seen = logits[0].sigmoid().numpy()
    if scope == "off":
        assert labels[0].weights is None
    else:
        np.testing.assert_allclose(labels[0].weights, 1.3 - 1.26157 * np.exp(-5 * (seen - 0.5) ** 2), atol=1e-4)


@pytest.mark.parametrize(("mix", "expected"), [("halves", (2 + 9) / 2), ("per_image", (1 + 3 + 9) / 3)])
def test_two_matched_and_one_other_are_mixed_as_asked(mix, expected, monkeypatch):
    model = build(unsup_mix=mix)
    each = torch.tensor([1.0, 3.0, 9.0])
    monkeypatch.setattr(model, "_each", lambda *args: {"loss_mask": each})
    mask = square(0, 0, 4).numpy()
    labels = [ReferLabel(mask, None, outcome, mask, 0.9) for outcome in ("matched", "matched", "kept")]
    learnt = torch.ones(3, dtype=torch.bool)
    found = model.unlabelled_losses(ReferOutput(torch.zeros(3, 2, 8, 8)), labels, learnt, each)
    assert float(found["unsup/loss_mask"]) == pytest.approx(expected)


@pytest.mark.parametrize(("scope", "share"), [("off", 0.0), ("unmatched", 1.0), ("all", 1.0)])
def test_pwa_where_the_scope_says(folder, scope, share):
    """Table 5's row "PWA without refine" has scope all and no refiner."""
    model = centred(build(refiner={"name": "none", "pixel_weights": scope}, jitter=NO_JITTER))
    found = losses_of(model, batch(folder))
    assert float(found["pseudo/pwa_share"]) == share
    with_classes = centred(
        build(refiner={"name": "none", "pixel_weights": scope}, jitter=NO_JITTER, pwa_class_weights=(3, 3))
    )
    ratio = losses_of(with_classes, batch(folder))["unsup/loss_mask"] / found["unsup/loss_mask"]
    assert float(ratio.detach()) == pytest.approx(3.0 if share else 1.0)


def silent(model):
    """The teacher sees nothing anywhere."""
    with torch.no_grad():
        model.teacher.network.head.bias.copy_(torch.tensor([50.0, -50.0]))
    return model


@pytest.mark.parametrize("learn_empty", [True, False])
def test_empty_pseudo_labels_are_counted_and_learnt_if_wanted(folder, learn_empty):
    found = losses_of(silent(build(learn_empty=learn_empty)), batch(folder))
    assert float(found["refiner/empty"]) == 2
    assert (float(found["unsup/loss_mask"].detach()) > 0) == learn_empty
    found["unsup/loss_mask"].backward()  # other workers wait for this gradient


@pytest.mark.parametrize("learn_empty", [True, False])
def test_a_label_that_the_library_does_not_bear_out_is_not_learnt_if_asked(folder, library, learn_empty):
    library.masks = np.zeros((0, SIDE, SIDE), bool)
    found = losses_of(centred(build(refiner=CPI_U | {"unmatched": "drop"}, learn_empty=learn_empty)), batch(folder))
    assert float(found["refiner/dropped"]) == 2
    assert float(found["unsup/loss_mask"].detach()) == 0
    found["unsup/loss_mask"].backward()


def test_the_least_confident_are_dropped(folder):
    model = centred(build(drop_share=0.5, confidence_window=8, jitter=NO_JITTER))
    learnt = [float(losses_of(model, batch(folder))["pseudo/unconfident"]) for _ in range(4)]
    # Two of each step, the same each time: the first step only fills the window.
    assert learnt[0] == 0
    assert learnt[1:] == [1, 1, 1]
    assert "confidence.history" in model.state_dict()
    again = build(drop_share=0.5, confidence_window=8)
    again.load_state_dict(model.state_dict())
    assert torch.equal(again.confidence.history, model.confidence.history)


def test_what_is_dropped_is_not_learnt(folder):
    model = centred(build(drop_share=0.5, confidence_window=8, jitter=NO_JITTER))
    losses_of(model, batch(folder))  # fills the window
    given = []
    learnt = model._learnt
    model._learnt = lambda labels: given.append((labels, learnt(labels))) or given[-1][1]
    found = losses_of(model, batch(folder))
    ((labels, (mask, dropped)),) = given
    assert dropped == 1
    assert mask.tolist() == [label.confidence == max(each.confidence for each in labels) for label in labels]
    everything = centred(build(jitter=NO_JITTER))
    losses_of(everything, batch(folder))
    assert float(found["unsup/loss_mask"]) != float(losses_of(everything, batch(folder))["unsup/loss_mask"])


def test_quality_before_and_after_where_the_truth_is_hidden(folder, library):
    model = centred(build(refiner=CPI_U))
    data = batch(folder, hidden=True)
    own = (teacher_view(model, data) > 0.5).numpy()
    library.masks = own[:1] | square(0, 0, 6).numpy()
    found = losses_of(model, data)
    truth = square(4, 4, 20).numpy()
    before = [mask_iou(mask, truth) for mask in own]
    assert float(found["quality/teacher_iou"]) == pytest.approx(np.mean(before), abs=1e-6)
    after = [mask_iou(library.masks[0], truth), before[1]]
    assert float(found["quality/refined_iou"]) == pytest.approx(np.mean(after), abs=1e-6)
    assert after[0] != before[0]
    assert not any(name.startswith("quality") for name in losses_of(model, batch(folder)))
    silenced = centred(build(watch_quality=False))
    assert not any(name.startswith("quality") for name in losses_of(silenced, data))


def test_regions_learn_the_refined_mask_and_that_there_is_a_target(folder, library):
    model = centred(build(refiner=CPI_U, network={"with_regions": True}, jitter=NO_JITTER, unlabelled_weight=0.5))
    data = batch(folder)
    data["data_samples"]["sup"][0].set_metainfo({"has_target": False})
    found = losses_of(model, data)
    output = model.student.network(model.student.network.seen[-1][1], SENTENCES)
    label = torch.tensor([1, 0, 0, 0])
    each = 0.1 * F.cross_entropy(output.no_target, label, reduction="none")
    torch.testing.assert_close(found["sup/loss_no_target"], each[:2].mean())
    torch.testing.assert_close(found["unsup/loss_no_target"], 0.5 * each[2:].mean())
    assert float(found["unsup/loss_minimap"].detach()) > 0


def seen_by(model):
    return {name: getattr(model, name).network.seen for name in ("student", "teacher")}


def test_teacher_sees_the_weak_view_and_the_student_both(folder):
    model = build(jitter={"probability": 1.0})
    losses_of(model, batch(folder))
    seen = seen_by(model)
    ((was_training, weak, sentences),) = seen["teacher"]
    assert not was_training
    assert sentences == list(SENTENCES[2:])
    prepared = model.data_preprocessor(batch(folder), True)["inputs"]
    torch.testing.assert_close(weak, prepared["unsup"])
    ((was_training, images, sentences),) = seen["student"]
    assert was_training
    assert sentences == list(SENTENCES)
    torch.testing.assert_close(images[:2], prepared["sup"])
    assert not torch.allclose(images[2:], weak)
    pixels = images[2:] * torch.tensor(STD)[:, None, None] + torch.tensor(MEAN)[:, None, None]
    assert pixels.sub(127.5).abs().max() < 127.51


def test_two_forwards_keep_batch_statistics_apart(folder):
    together, apart = build(jitter=NO_JITTER), build(jitter=NO_JITTER, one_forward=False)
    losses = [losses_of(model, batch(folder)) for model in (together, apart)]
    assert [len(images) for _, images, _ in seen_by(apart)["student"]] == [2, 2]
    assert [len(images) for _, images, _ in seen_by(together)["student"]] == [4]
    assert float(losses[0]["sup/loss_mask"]) != pytest.approx(float(losses[1]["sup/loss_mask"]))


def test_without_jitter_the_strong_view_is_the_weak_one_and_released_is_normalised_twice(folder):
    for legacy in (False, True):
        model = build(jitter=NO_JITTER, legacy_double_norm=legacy)
        losses_of(model, batch(folder))
        weak = seen_by(model)["teacher"][0][1]
        mean, std = (torch.tensor(v)[:, None, None] / 255 for v in (MEAN, STD))
        torch.testing.assert_close(seen_by(model)["student"][0][1][2:], (weak - mean) / std if legacy else weak)


def test_equal_steps_are_equal_and_others_differ(folder):
    def views(step):
        model = build(jitter={"probability": 1.0})
        model.step_key = (step, 0)
        losses_of(model, batch(folder))
        return seen_by(model)["student"][0][1][2:]

    torch.testing.assert_close(views(3), views(3))
    assert not torch.allclose(views(3), views(4))


def test_only_what_is_learnt_is_in_half_precision(folder):
    model, dtypes = build(), {}
    for name in ("teacher", "student"):
        patch = getattr(model, name).network.patch
        patch.register_forward_hook(lambda _m, _i, output, name=name: dtypes.update({name: output.dtype}))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        losses_of(model, batch(folder))
    assert dtypes == {"teacher": torch.float32, "student": torch.bfloat16}


def test_sam_encodes_every_unlabelled_image_once(folder, library, monkeypatch):
    model, read = centred(build(refiner={"name": "points", "sam": "fake"})), []
    monkeypatch.setattr(semi_refer, "read_image", lambda path: read.append(path) or picture(3))
    for _ in range(3):
        losses_of(model, batch(folder))
    assert len(read) == 2
    assert library.sam.embedded == [(SIDE, SIDE)] * 2


@pytest.mark.parametrize("who", ["teacher", "student"])
def test_who_predicts(folder, who):
    model = build(predict_on=who).eval()
    with torch.no_grad():
        model.student.network.head.bias += 1.0
    data = {"inputs": batch(folder)["inputs"]["unsup"], "data_samples": batch(folder)["data_samples"]["unsup"]}
    predicted = model.val_step(data)
    assert [len(calls) for calls in seen_by(model).values()] == ([1, 0] if who == "student" else [0, 1])
    assert [tuple(sample.pred_mask.shape) for sample in predicted] == [(SIDE, SIDE)] * 2


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"predict_on": "both"}, "teacher | student"),
        ({"unsup_mix": "thirds"}, "halves"),
        ({"drop_share": 1.0}, "drop_share"),
        ({"class_weights": (1, 1, 1)}, "two class weights"),
        ({"class_weights": (1, -1)}, "two class weights"),
        ({"supervised_weight": -1}, "weights >= 0"),
        ({"confidence_window": 0}, "confidence_window"),
        ({"refiner": {"name": "cpy_u"}}, "did you mean cpi_u"),
    ],
)
def test_bad_settings_are_refused(settings, says):
    with pytest.raises(ConfigError) as caught:
        build(**settings)
    assert says in str(caught.value)
