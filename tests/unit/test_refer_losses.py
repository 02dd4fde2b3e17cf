"""One loss per image, against torch's own and against hand-made numbers."""

import numpy as np
import pytest
import torch
from torch.nn import functional

from pipeline.models.referring.refer_losses import CLASS_WEIGHTS, pixel_cross_entropy, unlabelled_loss
from pipeline.refine.pixel_weight import pixel_weights

WEIGHTS = torch.tensor(CLASS_WEIGHTS)


@pytest.fixture
def case():
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(3, 2, 5, 7, generator=generator)
    return logits, torch.rand(3, 5, 7, generator=generator) > 0.7


def test_normalised_by_weights_is_torch_of_one_image(case):
    logits, targets = case
    expected = [
        functional.cross_entropy(logits[i : i + 1], targets[i : i + 1].long(), weight=WEIGHTS) for i in range(3)
    ]
    torch.testing.assert_close(pixel_cross_entropy(logits, targets, normalise="weights"), torch.stack(expected))


def test_normalised_by_pixels_is_the_plain_mean_of_torch(case):
    logits, targets = case
    every = functional.cross_entropy(logits, targets.long(), weight=WEIGHTS, reduction="none")
    torch.testing.assert_close(pixel_cross_entropy(logits, targets), every.mean(dim=(1, 2)))
    plain = functional.cross_entropy(logits, targets.long())
    for normalise in ("pixels", "weights"):
        found = pixel_cross_entropy(logits, targets, class_weights=None, normalise=normalise)
        torch.testing.assert_close(found.mean(), plain)


def test_pwa_is_the_mean_of_weight_times_cross_entropy_with_hard_targets():
    """The specification's vector: target [p > 0.5], no class weights, plain mean."""
    teacher = np.array([[[0.9, 0.2], [0.6, 0.5]]], np.float32)
    student = torch.tensor([[0.7, 0.4], [0.5, 0.1]])
    logits = torch.stack([torch.zeros(2, 2), student.logit()])[None]
    found = pixel_cross_entropy(
        logits,
        torch.from_numpy(teacher > 0.5),
        class_weights=None,
        pixel_weights=torch.from_numpy(pixel_weights(teacher)),
    )
    by_hand = (0.733131 * -np.log(0.7) + 0.495588 * -np.log(0.6) + 0.1 * -np.log(0.5) + 0.038434 * -np.log(0.9)) / 4
    assert float(found) == pytest.approx(by_hand, abs=2e-5)


def test_pixel_and_class_weights_multiply(case):
    logits, targets = case
    weights = torch.rand(3, 5, 7, generator=torch.Generator().manual_seed(1))
    every = functional.cross_entropy(logits, targets.long(), weight=WEIGHTS, reduction="none") * weights
    both = weights * torch.where(targets, CLASS_WEIGHTS[1], CLASS_WEIGHTS[0])
    found = pixel_cross_entropy(logits, targets, pixel_weights=weights)
    torch.testing.assert_close(found, every.mean(dim=(1, 2)))
    found = pixel_cross_entropy(logits, targets, pixel_weights=weights, normalise="weights")
    torch.testing.assert_close(found, every.sum(dim=(1, 2)) / both.sum(dim=(1, 2)))


def test_images_do_not_see_each_other(case):
    logits, targets = case
    alone = torch.cat([pixel_cross_entropy(logits[i : i + 1], targets[i : i + 1]) for i in range(3)])
    torch.testing.assert_close(pixel_cross_entropy(logits, targets), alone)


def test_weights_of_zero_and_half_precision_are_harmless(case):
    logits, targets = case
    logits = (logits * 40).half().requires_grad_()
    for normalise in ("pixels", "weights"):
        nothing = pixel_cross_entropy(logits, targets, pixel_weights=torch.zeros(3, 5, 7), normalise=normalise)
        assert nothing.tolist() == [0, 0, 0]
    found = pixel_cross_entropy(logits, targets)
    assert found.dtype == torch.float32
    assert torch.isfinite(found).all()
    found.sum().backward()
    assert torch.isfinite(logits.grad).all()


EACH = torch.tensor([1.0, 3.0, 8.0])
TWO_MATCHED = torch.tensor([True, True, False])
ALL = torch.tensor([True, True, True])


@pytest.mark.parametrize(
    ("mix", "matched", "learnt", "expected"),
    [
        ("halves", TWO_MATCHED, ALL, (2.0 + 8.0) / 2),  # the specification's vector: 2 matched, 1 unmatched
        ("halves", ALL, ALL, 4.0),
        ("halves", ~ALL, ALL, 4.0),
        ("halves", TWO_MATCHED, torch.tensor([True, False, True]), (1.0 + 8.0) / 2),
        ("halves", TWO_MATCHED, torch.tensor([False, False, True]), 8.0),
        ("per_image", TWO_MATCHED, ALL, 4.0),
        ("per_image", TWO_MATCHED, torch.tensor([True, False, True]), 4.5),
        ("per_image", TWO_MATCHED, ~ALL, 0.0),
        ("halves", TWO_MATCHED, ~ALL, 0.0),
    ],
)
def test_how_images_are_mixed(mix, matched, learnt, expected):
    losses = EACH.clone().requires_grad_()
    total = unlabelled_loss(losses, matched, learnt, mix=mix)
    assert float(total.detach()) == pytest.approx(expected)
    total.backward()  # attached even where nothing is learnt: other workers wait for the gradient
    assert (losses.grad[~learnt] == 0).all()
    assert (losses.grad[learnt] > 0).all()


def test_what_is_not_learnt_may_be_broken():
    """A loss that is not finite and not learnt must not poison the sum."""
    losses = torch.tensor([1.0, float("nan")])
    for mix in ("per_image", "halves"):
        assert float(unlabelled_loss(losses, ALL[:2], torch.tensor([True, False]), mix=mix)) == 1.0
