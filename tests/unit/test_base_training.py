"""The small Mask2Former's training: targets and losses."""

import numpy as np
import pytest
import torch

from jobs.embedded.train_scenes_base import build_model
from pipeline.models.base_training import BaseStage, BaseTrainer, ObjectClassifier, recall_at_half, semantic_loss
from pipeline.scenes.cache import draw_arrays
from pipeline.scenes.render import SceneStyle


@pytest.fixture(scope="module")
def scenes():
    return draw_arrays(4, group="start", style=SceneStyle(), seed=8_500_000, workers=1)


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return build_model(10)


def test_semantic_loss_equals_a_slow_loop():
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(1, 4, 2, 2, generator=generator)  # classes 0 to 2 and the ground, 3
    owners, classes = torch.tensor([[[0, 1], [2, 2]]]), torch.tensor([[2, 0]])
    target, weight = torch.tensor([[3, 2], [0, 0]]), [1, 1, 1, 0.1]
    log_probability = logits.log_softmax(1)
    terms = [
        (weight[int(target[r, c])], -float(log_probability[0, int(target[r, c]), r, c]))
        for r in range(2)
        for c in range(2)
    ]
    expected = sum(w * v for w, v in terms) / sum(w for w, _ in terms)
    assert float(semantic_loss(logits, owners, classes)) == pytest.approx(expected, rel=1e-5)


def test_cut_outs_carry_the_class_of_their_object(model, scenes):
    classifier = ObjectClassifier(model, scenes, seed=0)
    images, labels = classifier._draw(6)
    assert images.shape == (6, 3, ObjectClassifier.side, ObjectClassifier.side)
    present = set(scenes.labels[scenes.labels >= 0].tolist())
    assert set(labels.tolist()) <= present


def test_a_crop_step_has_a_finite_gradient(model, scenes):
    trainer = BaseTrainer(model, scenes, seed=0)
    loss, log = trainer.loss(BaseStage(crop=96, steps=1, images=2, learning_rate=1e-3))
    loss.backward()
    assert np.isfinite(list(log.values())).all()
    assert model.backbone.conv1.weight.grad.abs().sum() > 0
    model.zero_grad()


def test_batches_have_no_small_instances_and_matching_owners(model, scenes):
    trainer = BaseTrainer(model, scenes, seed=1)
    _, samples, owners, classes = trainer.draw_batch(BaseStage(crop=96, steps=1, images=3, learning_rate=1e-3))
    for sample, owner, labels in zip(samples, owners, classes, strict=True):
        for mask, label in zip(sample.gt_instances.masks.masks, sample.gt_instances.labels.tolist(), strict=True):
            assert mask.sum() >= 30
            inside = owner[torch.from_numpy(mask.astype(bool))]
            assert len(inside.unique()) == 1
            assert int(labels[int(inside[0]) - 1]) == label


def test_recall_of_an_untrained_network_is_near_zero(model, scenes):
    assert recall_at_half(model.eval(), scenes) < 0.2
