"""The MMEngine model around a referring network: losses, and masks in two frames."""

import pipeline.models.mmcv_ops  # noqa: F401  isort: skip  (before mmdet)
from pathlib import Path

import pytest
import torch
from mmengine.config import Config
from mmengine.registry import MODELS
from toy_refer import MEAN, SENTENCES, STD, build_segmentor, lavt_config, rela_config, sample_of

from pipeline.errors import ConfigError
from pipeline.models.referring.interface import ReferNetwork, ReferOutput
from pipeline.models.referring.refer_losses import pixel_cross_entropy

CONFIGS = Path(__file__).parents[2] / "configs/_base_"


class Painted(ReferNetwork):
    """Says what it was told to say."""

    pixel_loss_weight = 3.0

    def __init__(self):
        super().__init__()
        self.output, self.seen = None, None

    def forward(self, images, sentences):
        self.seen = images, list(sentences)
        return self.output

    def auxiliary_losses(self, output, targets, has_target):
        return {"extra": targets.flatten(1).any(dim=1).float() + 10 * has_target.float()}

    def upsample(self, logits, size_hw):
        return torch.nn.functional.interpolate(logits, size_hw, mode="nearest")


def painted(objects, *, no_target=None, **changes):
    """A model whose object logits are ``objects`` [B, h, w] and whose background logits are 1."""
    model = build_segmentor({"type": Painted}, **changes)
    objects = torch.as_tensor(objects, dtype=torch.float32)
    model.network.output = ReferOutput(torch.stack([torch.ones_like(objects), objects], dim=1), None, no_target)
    return model


def quarter(size, box):
    top, left, bottom, right = box
    mask = torch.zeros(size, dtype=torch.bool)
    mask[top:bottom, left:right] = True
    return mask


def test_images_are_normalised_and_sentences_handed_on():
    model = painted(torch.zeros(2, 8, 8))
    images = [torch.full((3, 32, 64), value, dtype=torch.uint8) for value in (10, 200)]
    data = {"inputs": images, "data_samples": [sample_of(s, view=(32, 64)) for s in SENTENCES[:2]]}
    model.val_step(data)
    seen, sentences = model.network.seen
    expected = (torch.tensor([10.0, 200.0])[:, None] - torch.tensor(MEAN)) / torch.tensor(STD)
    assert seen.shape == (2, 3, 32, 64)
    torch.testing.assert_close(seen[:, :, 0, 0], expected)
    assert sentences == SENTENCES[:2]


def test_losses_are_the_pixels_and_the_networks_own():
    model = painted(torch.randn(2, 8, 8), class_weights=[1.0, 3.0], normalise="pixels")
    masks = [quarter((32, 32), (0, 0, 16, 8)), torch.zeros(32, 32, dtype=torch.bool)]
    samples = [sample_of(mask=m, has_target=t) for m, t in zip(masks, (True, False), strict=True)]
    losses = model(torch.zeros(2, 3, 32, 32), samples, mode="loss")
    logits = model.network.upsample(model.network.output.logits, (32, 32))
    pixels = pixel_cross_entropy(logits, torch.stack(masks), class_weights=(1.0, 3.0), normalise="pixels")
    assert set(losses) == {"loss_mask", "loss_extra"}
    torch.testing.assert_close(losses["loss_mask"], 3 * pixels.mean())
    assert losses["loss_extra"] == (1 + 10 + 0 + 0) / 2


def test_mode_tensor_gives_logits_at_the_size_of_the_image():
    logits = painted(torch.zeros(1, 8, 16))(torch.zeros(1, 3, 32, 64), [sample_of()])
    assert logits.shape == (1, 2, 32, 64)


def test_masks_come_in_the_view_and_at_native_size():
    objects = torch.zeros(2, 16, 16)
    objects[0, 4:8, 0:8] = 2.0  # a quarter of the rows, half of the columns
    objects[1] = 1.0  # a tie is background
    samples = [sample_of(original=(32, 128), view=(64, 64)), sample_of(original=(10, 20), view=(64, 64))]
    found = painted(objects)(torch.zeros(2, 3, 64, 64), samples, mode="predict")
    assert torch.equal(found[0].pred_view_mask, quarter((64, 64), (16, 0, 32, 32)))
    assert torch.equal(found[0].pred_mask, quarter((32, 128), (8, 0, 16, 64)))
    assert found[1].pred_mask.shape == (10, 20)
    assert not found[1].pred_mask.any()
    assert found[0].pred_mask.dtype == torch.bool


def test_no_target_is_the_heads_probability_or_an_empty_mask():
    objects = torch.zeros(2, 8, 8)
    objects[0, 0, 0] = 5.0
    plain = painted(objects)(torch.zeros(2, 3, 32, 32), [sample_of(view=(32, 32)) for _ in range(2)], mode="predict")
    assert [s.pred_no_target for s in plain] == [0.0, 1.0]
    head = torch.tensor([[0.0, 0.0], [0.0, 3.0]])
    told = painted(objects, no_target=head)
    samples = [sample_of(view=(32, 32)) for _ in range(2)]
    found = [s.pred_no_target for s in told(torch.zeros(2, 3, 32, 32), samples, mode="predict")]
    assert found == pytest.approx([0.5, torch.sigmoid(torch.tensor(3.0)).item()])


def test_sizes_that_do_not_fit_the_strides_are_refused():
    with pytest.raises(ConfigError, match="multiples of 32"):
        painted(torch.zeros(1, 8, 8))(torch.zeros(1, 3, 64, 100), [sample_of()])


def test_an_unknown_normalisation_is_refused():
    with pytest.raises(ConfigError, match="pixels"):
        painted(torch.zeros(1, 8, 8), normalise="images")


@pytest.mark.parametrize("config", [lavt_config, rela_config], ids=["lavt", "rela"])
def test_a_network_learns_one_pair_by_heart(config):
    torch.manual_seed(0)
    model = build_segmentor(config()).train()
    images = torch.randn(2, 3, 64, 64)
    masks = [quarter((64, 64), (0, 0, 32, 32)), quarter((64, 64), (32, 32, 64, 64))]
    samples = [sample_of(s, mask=m) for s, m in zip(SENTENCES, masks, strict=False)]
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3)
    seen = []
    for _ in range(12):
        total = sum(model(images, samples, mode="loss").values())
        optimizer.zero_grad()
        total.backward()
        optimizer.step()
        seen.append(float(total.detach()))
    assert seen[-1] < 0.5 * seen[0]


@pytest.mark.parametrize("name", ["lavt", "rela"])
def test_the_scenes_config_builds_and_predicts(name):
    config = Config.fromfile(CONFIGS / f"{name}_scenes.py").model
    model = MODELS.build(config).eval()
    sample = sample_of(original=(192, 192), view=(192, 192))
    found = model.test_step({"inputs": [torch.zeros(3, 192, 192, dtype=torch.uint8)], "data_samples": [sample]})
    assert found[0].pred_mask.shape == (192, 192)
    assert sum(p.numel() for p in model.parameters()) < 4e6, "8 MB in half precision"


@pytest.mark.parametrize("name", ["lavt", "rela"])
def test_the_papers_config_and_the_scenes_one_have_the_same_settings(name):
    """Only sizes, files, names of BERT and norms differ."""
    scenes, paper = (Config.fromfile(CONFIGS / f"{name}_{size}.py").model for size in ("scenes", "swin_b"))
    paper.network.backbone.pop("weights")
    for part in ("text_encoder", "backbone"):
        assert set(scenes.network[part]) == set(paper.network[part])
    assert set(scenes.network) == set(paper.network)
    assert (scenes.class_weights, scenes.normalise) == (paper.class_weights, paper.normalise)
