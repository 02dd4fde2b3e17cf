"""ReLA's decoder against its parts put together by hand, its losses against their formula."""

import pipeline.models.mmcv_ops  # noqa: F401  isort: skip  (before mmdet)
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from mmdet.models.layers.msdeformattn_pixel_decoder import MSDeformAttnPixelDecoder
from mmengine.config import Config
from mmengine.optim import build_optim_wrapper
from toy_refer import SENTENCES, backbone_config, build, rela_config

from pipeline.models.referring.interface import ReferOutput
from pipeline.models.referring.rela_decoder import RegionDecoder
from pipeline.models.referring.text_encoder import TextFeatures

CONFIGS = Path(__file__).parents[2] / "configs/_base_"


@pytest.fixture(scope="module")
def network():
    return build(rela_config())


@pytest.fixture
def decoder():
    torch.manual_seed(0)
    made = RegionDecoder(
        text_channels=6, channels=8, grid_hw=(2, 3), num_layers=4, num_heads=2, feedforward_channels=12
    )
    made.init_weights()
    torch.nn.init.normal_(made.words.weight)
    return made.eval()


def inputs(*, batch=2, channels=8, seed=0):
    generator = torch.Generator().manual_seed(seed)
    maps = [torch.randn(batch, channels, 2**i, 3 * 2**i, generator=generator) for i in range(3)]
    mask_features = torch.randn(batch, channels, 8, 12, generator=generator)
    text = TextFeatures(torch.randn(batch, 5, 6, generator=generator), torch.ones(batch, 5, dtype=torch.bool))
    text.mask[1, 3:] = False
    return maps, mask_features, text


def test_outputs_have_the_shapes_of_the_interface(network):
    output = network(torch.randn(3, 3, 96, 64), SENTENCES)
    assert output.logits.shape == (3, 2, 24, 16)
    assert output.minimap.shape == (3, 2, 16)
    assert output.no_target.shape == (3, 2)


def test_a_part_of_the_images_can_be_selected(network):
    output = network(torch.randn(3, 3, 64, 64), SENTENCES)
    part = output.select(slice(1, 3))
    assert torch.equal(part.logits, output.logits[1:])
    assert torch.equal(part.minimap, output.minimap[1:])
    assert torch.equal(part.no_target, output.no_target[1:])
    assert ReferOutput(output.logits).select(slice(0, 1)).minimap is None


def attend(part, x, memory, position, memory_position, hidden=None):
    """Multi-head attention written out for [R, C] and [N, C]; residual and norm."""
    attention, heads = part.attention, part.attention.num_heads
    weights, biases = attention.in_proj_weight.chunk(3), attention.in_proj_bias.chunk(3)
    sources = (x + position, memory + memory_position, memory)
    query, key, value = (
        (source @ w.T + b).reshape(len(source), heads, -1).transpose(0, 1)
        for source, w, b in zip(sources, weights, biases, strict=True)
    )
    logits = query @ key.transpose(1, 2) / query.shape[2] ** 0.5
    if hidden is not None:
        logits = logits.masked_fill(hidden[None], -torch.inf)
    gathered = (logits.softmax(dim=2) @ value).transpose(0, 1).reshape(len(x), -1)
    out = x + gathered @ attention.out_proj.weight.T + attention.out_proj.bias
    return F.layer_norm(out, out.shape[1:], part.norm.weight, part.norm.bias)


def norm(module, x):
    return F.layer_norm(x, x.shape[1:], module.weight, module.bias)


@torch.no_grad()
def written_out(decoder, maps, mask_features, tokens):
    """One image; ``tokens`` without padding."""
    regions, position = decoder.region_embed.weight, decoder.position_embed.weight
    for index, layer in enumerate(decoder.layers):
        level = maps[index % 3]
        hw = level.shape[1:]
        where = decoder.positions(torch.zeros(1, *hw, dtype=torch.bool))[0].flatten(1).T
        memory = level.flatten(1).T + decoder.level_embed.weight[index % 3]
        masks = torch.einsum("rc,chw->rhw", decoder.mask_head(norm(decoder.norm, regions)), mask_features)
        small = F.interpolate(masks[None], hw, mode="bilinear", align_corners=False)[0].flatten(1)
        hidden = small < 0
        hidden[hidden.all(dim=1)] = False
        regions = attend(layer.look, regions, memory, position, where, hidden)
        if index == 0:
            said = attend(decoder.word_attention, regions, tokens @ decoder.words.weight.T, 0, 0)
            regions = regions + 0.1 * torch.sigmoid(decoder.word_weight) * said
        regions = attend(layer.exchange, regions, regions, position, position)
        regions = norm(layer.norm, regions + layer.feedforward(regions))
    regions = norm(decoder.norm, regions)
    minimap = decoder.minimap_head(regions)
    masks = torch.einsum("rc,chw->rhw", decoder.mask_head(regions), mask_features)
    logits = torch.einsum("rk,rhw->khw", minimap, masks)
    return logits, minimap.T, decoder.no_target_head(regions).mean(dim=0)


def test_decoder_is_its_parts_put_together_by_hand(decoder):
    maps, mask_features, text = inputs()
    with torch.no_grad():
        decoder.word_weight.fill_(1.5)
    output = decoder(maps, mask_features, text)
    for image in range(2):
        tokens = text.tokens[image][text.mask[image]]
        expected = written_out(decoder, [m[image] for m in maps], mask_features[image], tokens)
        found = (output.logits[image], output.minimap[image], output.no_target[image])
        for a, b in zip(found, expected, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-4)


def test_padding_is_read_only_as_released(decoder):
    maps, mask_features, text = inputs()
    other = TextFeatures(torch.where(text.mask[..., None], text.tokens, 5.0), text.mask)
    same = [decoder(maps, mask_features, words).logits for words in (text, other)]
    assert torch.equal(*same)
    decoder.attend_to_padding = True
    released = [decoder(maps, mask_features, words).logits for words in (text, other)]
    assert torch.equal(released[0][0], released[1][0])
    assert not torch.allclose(released[0][1], released[1][1])


def test_a_region_without_a_mask_looks_everywhere(decoder):
    _, mask_features, _ = inputs()
    regions = decoder.region_embed.weight.expand(2, -1, -1)
    assert decoder._hidden_from(regions, torch.zeros_like(mask_features) - 0.0, (2, 3)).sum() == 0
    for sign in (1, -1):
        with torch.no_grad():
            decoder.mask_head[-1].weight.zero_()
            decoder.mask_head[-1].bias.fill_(sign)
        hidden = decoder._hidden_from(regions, torch.ones_like(mask_features), (2, 3))
        assert hidden.shape == (2 * 2, 6, 6)
        assert not hidden.any(), "all inside, or nothing inside"


def test_words_start_silent_and_then_learn():
    torch.manual_seed(0)
    made = RegionDecoder(
        text_channels=6, channels=8, grid_hw=(2, 3), num_layers=1, num_heads=2, feedforward_channels=12
    )
    made.init_weights()
    maps, mask_features, text = inputs()
    made(maps, mask_features, text).logits.square().mean().backward()
    assert made.words.weight.abs().max() == 0
    assert made.words.weight.grad.abs().max() > 0


def test_everything_trains(network):
    images, targets = torch.randn(2, 3, 64, 64), torch.zeros(2, 64, 64, dtype=torch.bool)
    output = network.train()(images, SENTENCES[:2])
    losses = network.auxiliary_losses(output, targets, torch.ones(2, dtype=torch.bool))
    (output.logits.square().mean() + sum(losses.values()).mean()).backward()
    assert [name for name, p in network.named_parameters() if p.grad is None] == []
    network.zero_grad(set_to_none=True)
    network.eval()


def test_losses_are_those_of_the_released_criterion(network):
    """Batch-normalised cross entropies with weights 0.9 and 1.1; five times everything, the auxiliary ones a tenth."""
    generator = torch.Generator().manual_seed(1)
    minimap, no_target = torch.randn(3, 2, 16, generator=generator), torch.randn(3, 2, generator=generator)
    output = ReferOutput(torch.zeros(3, 2, 8, 8), minimap, no_target)
    targets = torch.zeros(3, 40, 40, dtype=torch.bool)
    targets[0, :15, :15] = True  # cells of 10 pixels, centres between pixels 4 and 5, 14 and 15
    has_target = torch.tensor([True, True, False])
    losses = network.auxiliary_losses(output, targets, has_target)
    cells = torch.zeros(3, 4, 4, dtype=torch.int64)
    cells[0, 0, 0] = 1  # the centre of the next cell has only two pixels inside: 0.5, which is cut to 0
    weight = torch.tensor([0.9, 1.1])
    expected = 0.5 * F.cross_entropy(minimap, cells.flatten(1), weight=weight)
    torch.testing.assert_close(losses["minimap"].mean(), expected)
    expected = 0.5 * F.cross_entropy(no_target, torch.tensor([0, 0, 1]), weight=weight)
    torch.testing.assert_close(losses["no_target"].mean(), expected)
    assert losses["minimap"].shape == losses["no_target"].shape == (3,)
    assert network.pixel_loss_weight == 5


def test_logits_grow_edge_to_edge(network):
    logits = torch.randn(1, 2, 3, 3)
    expected = F.interpolate(logits, (7, 9), mode="bilinear", align_corners=False)
    assert torch.equal(network.upsample(logits, (7, 9)), expected)


@pytest.mark.parametrize("released", [False, True])
def test_gates_open_unless_they_are_zero_as_released(released):
    network = build(rela_config(backbone=backbone_config(zero_init_gates=released)))
    network(torch.randn(2, 3, 64, 64), SENTENCES[:2]).logits.square().mean().backward()
    gradients = [p.grad.abs().max() for p in network.backbone.gates.parameters()]
    assert all(g == 0 for g in gradients) if released else all(g > 0 for g in gradients)


def test_parameter_groups_of_the_released_optimizer(network):
    """No decay for norms and embeddings outside BERT, whose own norms have it."""
    embeddings = ("region_embed", "position_embed", "level_embed", "level_encoding")
    owners = {"level_encoding": "pixel_decoder"}
    keys = [f"{owners.get(name, 'region_decoder')}.{name}" for name in embeddings]
    keys = {key: {"decay_mult": 0.0} for key in ("relative_position_bias_table", *keys)}
    wrapper = build_optim_wrapper(
        network,
        {
            "optimizer": {"type": "AdamW", "lr": 1e-5, "weight_decay": 0.05},
            "paramwise_cfg": {"norm_decay_mult": 0.0, "custom_keys": keys | {"text_encoder": {"decay_mult": 1.0}}},
        },
    )
    names = {id(p): name for name, p in network.named_parameters()}
    free = {names[id(g["params"][0])] for g in wrapper.optimizer.param_groups if g["weight_decay"] == 0}
    norms = {
        f"{owner}.{name}"
        for owner, module in network.named_modules()
        if isinstance(module, torch.nn.LayerNorm | torch.nn.GroupNorm) and not owner.startswith("text_encoder")
        for name, _ in module.named_parameters()
    }
    others = {name for name in names.values() if name.rpartition(".")[0].rpartition(".")[2] in embeddings}
    tables = {name for name in names.values() if name.endswith("relative_position_bias_table")}
    assert len(others) == 4
    assert free == norms | others | tables


def test_shapes_at_480_pixels_and_the_papers_sizes(network):
    with torch.no_grad():
        output = network(torch.randn(1, 3, 480, 480), SENTENCES[:1])
    assert output.logits.shape == (1, 2, 120, 120)
    paper = Config.fromfile(CONFIGS / "rela_swin_b.py").model.network
    decoder = RegionDecoder(text_channels=768, **paper.region_decoder)
    assert decoder.words.weight.shape == (256, 768)
    assert decoder.region_embed.weight.shape == (100, 256)
    assert len(decoder.layers) == 9
    assert decoder.layers[0].feedforward[0].out_features == 2048
    pixels = MSDeformAttnPixelDecoder(in_channels=[128, 256, 512, 1024], **paper.pixel_decoder)
    assert len(pixels.encoder.layers) == 6
    assert pixels.mask_feature.out_channels == 256
    assert {conv.norm_name for conv in pixels.input_convs} == {"gn"}
