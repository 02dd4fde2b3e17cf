"""The embedded SAM's training: its losses against literal loops, its decoding against the backend."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from pipeline.sam.nano_training import (
    IMAGE_SIZE,
    SCENE_SIZE,
    MatrixOptimizer,
    NanoTrainer,
    Prompts,
    Stage,
    decode,
    encode,
    learning_rate,
    mask_loss,
    normalise,
    recoloured,
)
from pipeline.sam.sam2_backend import Sam2Backend, build_model
from pipeline.scenes.cache import draw_arrays
from pipeline.scenes.render import SceneStyle


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return build_model("pipeline/assets/scenes_nano.yaml")


@pytest.fixture(scope="module")
def scenes():
    return draw_arrays(3, group="all", style=SceneStyle(size=SCENE_SIZE), seed=6_500_000, workers=1)


def test_mask_loss_equals_a_slow_loop():
    generator = torch.Generator().manual_seed(0)
    masks, soft = torch.randn(3, 4, 6, 6, generator=generator), torch.rand(3, 6, 6, generator=generator)
    ious, hit = torch.rand(3, 4, generator=generator), torch.tensor([True, True, False])
    expected_segment, expected_head = 0.0, 0.0
    for p in range(3):
        each = []
        for k in range(4):
            probability, target = masks[p, k].sigmoid(), soft[p]
            entropy = F.binary_cross_entropy(probability, target, reduction="none")
            focal = ((probability - target).abs() ** 2 * entropy).mean()
            dice = 1 - (2 * (probability * target).sum() + 1) / (probability.sum() + target.sum() + 1)
            each.append(float(4 * entropy.mean() + 8 * focal + dice))
            found, wanted = masks[p, k] > 0, target > 0.5
            actual = float((found & wanted).sum() / (found | wanted).sum().clamp(min=1)) if hit[p] else 0.0
            expected_head += (float(ious[p, k]) - actual) ** 2 / 12
        expected_segment += (each[0] + min(each[1:])) / 2 if hit[p] else 0.0
    loss, log = mask_loss(masks, ious, soft, hit)
    assert float(loss) == pytest.approx(expected_segment + 2 * expected_head, rel=1e-4)
    assert log["iou_head"] == pytest.approx(expected_head, rel=1e-4)


def test_decoding_equals_the_backends(model, scenes):
    """What is trained is what runs: same masks and IoUs as the backend for the same click."""
    backend = Sam2Backend(model, name="test", sha256="0" * 64)
    image = scenes.images[0]
    xy = torch.tensor([[[60.5, 40.5]]])
    asked = backend.decode_points(backend.embed([image])[0], xy, torch.ones(1, 1, dtype=torch.int32))
    features = encode(model, normalise(torch.from_numpy(image).permute(2, 0, 1)[None].float() / 255))
    # The backend passes x * S / W - 0.5 to an encoder that adds 0.5; training leaves the half pixel in.
    prompts = Prompts(xy * (IMAGE_SIZE / SCENE_SIZE) - 0.5, torch.ones(1, 1, dtype=torch.int32))
    with torch.no_grad():
        masks, ious = decode(model, features, prompts, place=(0, 0))
    torch.testing.assert_close(masks[:, 1:], asked.logits, rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(ious[:, 1:], asked.predicted_iou, rtol=1e-3, atol=1e-3)


def test_a_step_has_a_gradient_and_is_reproducible(scenes):
    losses = []
    for _ in range(2):
        torch.manual_seed(0)
        trainer = NanoTrainer(build_model("pipeline/assets/scenes_nano.yaml"), scenes, seed=3)
        loss, _ = trainer.loss(Stage(crop=96, steps=1, images=2, prompts=2, learning_rate=1e-3))
        loss.backward()
        losses.append(float(loss.detach()))
        norm = sum(float(p.grad.abs().sum()) for p in trainer.model.parameters() if p.grad is not None)
        assert np.isfinite(norm)
        assert norm > 0
    assert losses[0] == losses[1]


def test_every_parameter_has_one_optimizer_and_a_step_changes_it(scenes):
    torch.manual_seed(0)
    model = build_model("pipeline/assets/scenes_nano.yaml")
    trainer = NanoTrainer(model, scenes, seed=3)
    optimizer = MatrixOptimizer([model, trainer.dense_head], weight_decay=0.0, betas=(0.9, 0.98))
    adam, muon = ({id(p) for group in part.param_groups for p in group["params"]} for part in optimizer.parts)
    assert not adam & muon
    everything = [*model.named_parameters(), *trainer.dense_head.named_parameters()]
    assert adam | muon == {id(p) for _, p in everything}
    inside = {name for name, p in everything if id(p) in muon}
    assert "sam_mask_decoder.transformer.layers.1.cross_attn_image_to_token.q_proj.weight" in inside
    assert not any("embed" in name or "bias" in name for name in inside)
    before = {name: p.detach().clone() for name, p in everything}
    loss, _ = trainer.loss(Stage(crop=96, steps=1, images=2, prompts=2, learning_rate=1e-3))
    norm = optimizer.step(loss, rate=1e-2)
    assert np.isfinite(norm)
    assert norm > 0
    used = [name for name, p in everything if p.grad is not None and p.grad.abs().sum() > 0]
    unchanged = [name for name, p in everything if name in used and torch.equal(p, before[name])]
    assert len(used) > 150
    assert unchanged == []


def test_recoloured_images_differ_in_kind_and_stay_in_range():
    random = torch.Generator().manual_seed(0)
    image = torch.rand(3, 12, 10, generator=random) * 255
    before = image.clone()
    drawn = [recoloured(image, random) for _ in range(200)]
    assert torch.equal(image, before)
    assert all(d.shape == image.shape and d.min() >= 0 and d.max() <= 1 for d in drawn)
    assert 10 < sum(torch.equal(d[0], d[1]) for d in drawn) < 60  # grey
    assert sum(float(d.std()) < 0.15 for d in drawn) > 5  # flat or dark
    same = torch.Generator().manual_seed(7)
    again = torch.Generator().manual_seed(7)
    assert torch.equal(recoloured(image, same), recoloured(image, again))


def test_clicks_hit_what_they_ask_for(model, scenes):
    trainer = NanoTrainer(model, scenes, seed=0)
    owner = torch.from_numpy(scenes.owners[:1]).long()
    prompts, targets, hit = trainer.draw_prompts(owner, torch.zeros(2), 40)
    for points, labels, target, on_object in zip(prompts.points_xy, prompts.labels, targets, hit, strict=True):
        cells = (points[labels == 1] / (IMAGE_SIZE / SCENE_SIZE)).long()
        values = target[cells[:, 1], cells[:, 0]]
        assert (values == 1).all() if on_object else (owner[0][cells[:, 1], cells[:, 0]] == 0).all()
        assert bool(target.any()) == bool(on_object)


def test_learning_rate_warms_up_and_decays():
    rates = [learning_rate(step, 1000, 1.0) for step in range(1000)]
    assert rates[0] < 0.01
    assert max(rates) > 0.9
    assert rates[-1] < 0.03
