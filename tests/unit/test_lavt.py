"""PWAM and gates against formulas written out; the backbone against mmdet's own; shapes at the paper's size."""

import math
from pathlib import Path

import pipeline.models.mmcv_ops  # noqa: F401  isort: skip  (before mmdet)
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from mmdet.models.backbones.swin import SwinTransformer
from mmengine.config import Config
from mmengine.optim import build_optim_wrapper
from safetensors.torch import save_file
from toy_refer import SENTENCES, backbone_config, build, lavt_config

from pipeline.errors import CheckpointError
from pipeline.models.referring.language_swin import LanguageSwin
from pipeline.models.referring.lavt import LavtDecoder
from pipeline.models.referring.pwam import LanguageGate, PixelWordAttention
from pipeline.models.referring.text_encoder import TextFeatures

CONFIGS = Path(__file__).parents[2] / "configs/_base_"


def text_features(batch, *, tokens=5, channels=6, seed=0):
    """Every sentence with another number of words."""
    generator = torch.Generator().manual_seed(seed)
    mask = torch.arange(tokens)[None] < (tokens - torch.arange(batch) % tokens)[:, None]
    return TextFeatures(torch.randn(batch, tokens, channels, generator=generator), mask)


def linear(layer, x):
    weight, bias = layer.weight.detach().double().numpy(), layer.bias
    return x @ weight.T + (0 if bias is None else bias.detach().double().numpy())


def gelu(x):
    return 0.5 * x * (1 + np.vectorize(math.erf)(x / np.sqrt(2)))


def normal_over_pixels(x):
    return (x - x.mean(axis=0)) / np.sqrt(x.var(axis=0) + 1e-5)


def written_out(module, pixels, words):
    """PWAM of one image [HW, C] and the words of its sentence [T, Ct], padding left out altogether."""
    query = normal_over_pixels(linear(module.query, pixels))
    key, value = linear(module.key, words), linear(module.value, words)
    logits = query @ key.T / np.sqrt(query.shape[1])
    attention = np.exp(logits - logits.max(axis=1, keepdims=True))
    attention /= attention.sum(axis=1, keepdims=True)
    gathered = normal_over_pixels(linear(module.gathered, attention @ value))
    return gelu(linear(module.fused[0], gelu(linear(module.image[0], pixels)) * gathered))


def test_pixel_word_attention_is_its_formula():
    torch.manual_seed(0)
    module = PixelWordAttention(8, 6)
    pixels, text = torch.randn(3, 12, 8), text_features(3)
    found = module(pixels, text).detach().numpy()
    for image in range(3):
        words = text.tokens[image][text.mask[image]].double().numpy()
        expected = written_out(module, pixels[image].double().numpy(), words)
        np.testing.assert_allclose(found[image], expected, rtol=1e-3, atol=1e-5)


def test_padding_is_never_read():
    torch.manual_seed(0)
    module = PixelWordAttention(8, 6)
    pixels, text = torch.randn(3, 12, 8), text_features(3)
    other = TextFeatures(torch.where(text.mask[..., None], text.tokens, 1e3), text.mask)
    assert torch.equal(module(pixels, text), module(pixels, other))


def test_dropout_of_the_fusion_is_where_it_belongs():
    module = PixelWordAttention(8, 6, dropout=0.5).train()
    pixels, text = torch.randn(3, 12, 8), text_features(3)
    assert (module(pixels, text) == 0).float().mean() > 0.3
    assert torch.equal(module.eval()(pixels, text), module(pixels, text))


def test_language_gate_is_its_formula():
    torch.manual_seed(0)
    gate = LanguageGate(8)
    fused = torch.randn(2, 5, 8)
    first, second = (weight.detach().double().numpy() for weight in gate.parameters())
    expected = np.tanh(np.maximum(fused.double().numpy() @ first.T, 0) @ second.T)
    np.testing.assert_allclose(gate(fused).detach().numpy(), expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("released", [False, True])
def test_gates_learn_unless_they_are_zero_as_released(released):
    network = build(lavt_config(backbone=backbone_config(zero_init_gates=released)))
    network(torch.randn(2, 3, 64, 64), SENTENCES[:2]).logits.square().mean().backward()
    gradients = [p.grad.abs().max() for p in network.backbone.gates.parameters()]
    assert len(gradients) == 6, "two matrices in each of three stages"
    assert all(g == 0 for g in gradients) if released else all(g > 0 for g in gradients)


def toy_backbone(**changes):
    torch.manual_seed(0)
    backbone = LanguageSwin(text_channels=6, **backbone_config(**changes))
    backbone.init_weights()
    return backbone.eval()


def test_outputs_are_the_fused_maps_and_the_gated_sum_flows_on():
    """mmdet's own stages and merging, put together by hand."""
    backbone, text = toy_backbone(), text_features(2)
    images = torch.randn(2, 3, 64, 96)
    maps = backbone(images, text)
    x, hw = backbone.patch_embed(images)
    for index, stage in enumerate(backbone.stages):
        merging, stage.downsample = stage.downsample, None
        x, _, _, _ = stage(x, hw)
        stage.downsample = merging
        fused = backbone.fusions[index](x, text)
        expected = F.layer_norm(fused, fused.shape[2:])
        expected = expected.transpose(1, 2).reshape(maps[index].shape)
        torch.testing.assert_close(maps[index], expected, rtol=1e-4, atol=1e-5)
        if merging is not None:
            gate = torch.tanh(
                F.relu(fused @ backbone.gates[index].layers[0].weight.T) @ backbone.gates[index].layers[2].weight.T
            )
            x, hw = merging(x + gate * fused, hw)
    assert [m.shape for m in maps] == [(2, 8, 16, 24), (2, 16, 8, 12), (2, 32, 4, 6), (2, 64, 2, 3)]


def test_with_closed_gates_the_image_flows_as_in_plain_swin():
    backbone, text = toy_backbone(zero_init_gates=True), text_features(2)
    plain = SwinTransformer(**backbone_config())
    plain.eval()  # mmdet's returns nothing
    plain.load_state_dict(backbone.state_dict(), strict=False)
    images = torch.randn(2, 3, 64, 64)
    tokens = []
    hook = plain.stages[3].register_forward_hook(lambda _module, _inputs, output: tokens.append(output[2]))
    plain(images)
    hook.remove()
    fused = backbone.fusions[3](tokens[0], text)
    expected = F.layer_norm(fused, fused.shape[2:]).transpose(1, 2).reshape(2, 64, 2, 2)
    torch.testing.assert_close(backbone(images, text)[3], expected, rtol=1e-4, atol=1e-5)


def test_the_sentence_changes_what_flows_on():
    backbone, images = toy_backbone(), torch.randn(2, 3, 64, 64)
    tokens = []
    backbone.stages[3].blocks[0].register_forward_hook(lambda _module, inputs, _output: tokens.append(inputs[0]))
    backbone(images, text_features(2, seed=1))
    backbone(images, text_features(2, seed=2))
    assert not torch.allclose(tokens[0], tokens[1])


def test_recomputed_blocks_give_the_same_gradients():
    images, text = torch.randn(2, 3, 64, 64), text_features(2)
    gradients = []
    for recompute in (False, True):
        backbone = toy_backbone(with_cp=recompute).train()
        backbone(images, text)[3].square().mean().backward()
        gradients.append(backbone.stages[0].blocks[0].attn.w_msa.qkv.weight.grad)
    torch.testing.assert_close(*gradients)


def test_stochastic_depth_grows_linearly_over_all_blocks():
    backbone = toy_backbone(drop_path_rate=0.4)
    rates = [block.attn.drop.drop_prob for stage in backbone.stages for block in stage.blocks]
    np.testing.assert_allclose(rates, np.linspace(0, 0.4, 5), atol=1e-6)


def published(backbone):
    """Random weights in the names of the Swin authors, with the parts that are not used."""
    generator = torch.Generator().manual_seed(5)
    weights = {}
    for name, value in backbone.state_dict().items():
        if name.startswith(("fusions", "gates", "norm")) or not value.is_floating_point():
            continue
        renamed = name.replace("stages", "layers").replace("attn.w_msa", "attn").replace("projection", "proj")
        renamed = renamed.replace("ffn.layers.0.0", "mlp.fc1").replace("ffn.layers.1", "mlp.fc2")
        weights[renamed] = torch.randn(value.shape, generator=generator)
    extra = {"norm.weight": torch.ones(64), "head.weight": torch.ones(3, 64), "head.bias": torch.ones(3)}
    extra |= {"layers.0.blocks.0.attn.relative_position_index": torch.zeros(9, 9, dtype=torch.int64)}
    return weights | extra | {"layers.0.blocks.0.attn_mask": torch.zeros(4, 9, 9)}


def test_published_swin_weights_merge_patches_in_their_own_order(tmp_path):
    weights = published(toy_backbone())
    save_file(weights, tmp_path / "swin.safetensors")
    backbone = toy_backbone(weights=str(tmp_path / "swin.safetensors"))
    assert torch.equal(backbone.patch_embed.projection.weight, weights["patch_embed.proj.weight"])
    assert torch.equal(backbone.stages[2].blocks[1].ffn.layers[1].bias, weights["layers.2.blocks.1.mlp.fc2.bias"])
    grid = torch.randn(2, 6, 4, 8)
    quarters = [grid[:, 0::2, 0::2], grid[:, 1::2, 0::2], grid[:, 0::2, 1::2], grid[:, 1::2, 1::2]]
    merged = F.layer_norm(torch.cat(quarters, dim=3), (32,))
    merged = merged * weights["layers.0.downsample.norm.weight"] + weights["layers.0.downsample.norm.bias"]
    expected = merged @ weights["layers.0.downsample.reduction.weight"].T
    found, hw = backbone.stages[0].downsample(grid.flatten(1, 2), (6, 4))
    assert hw == (3, 2)
    torch.testing.assert_close(found, expected.flatten(1, 2), rtol=1e-3, atol=1e-3)


def test_the_position_index_is_that_of_the_swin_authors():
    """Row of the bias table for two cells of a window: (dy + 2) * 5 + dx + 2 in a window of 3."""
    cells = torch.tensor([(y, x) for y in range(3) for x in range(3)])
    difference = cells[:, None] - cells[None] + 2
    index = toy_backbone().stages[0].blocks[0].attn.w_msa.relative_position_index
    assert torch.equal(index, difference[..., 0] * 5 + difference[..., 1])


@pytest.mark.parametrize(
    ("name", "value"),
    [("layers.0.blocks.0.attn.relative_position_bias_table", torch.ones(49, 1)), ("layers.9.x", torch.ones(1))],
)
def test_weights_of_another_swin_are_refused(tmp_path, name, value):
    save_file(published(toy_backbone()) | {name: value}, tmp_path / "swin.safetensors")
    with pytest.raises(CheckpointError, match="another Swin"):
        toy_backbone(weights=str(tmp_path / "swin.safetensors"))


def test_swin_weights_with_another_digest_are_refused(tmp_path):
    save_file(published(toy_backbone()), tmp_path / "swin.safetensors")
    with pytest.raises(CheckpointError, match="not the expected file"):
        toy_backbone(weights=str(tmp_path / "swin.safetensors"), weights_sha256="0" * 64)


def test_initialisation_is_swins_in_swin_and_the_default_in_pwam():
    backbone = toy_backbone(embed_dims=48)
    swin = backbone.stages[3].blocks[0].ffn.layers[0][0].weight.detach()
    assert swin.std() == pytest.approx(0.02, rel=0.05)
    gate = backbone.gates[2].layers[0].weight.detach()
    assert gate.std() == pytest.approx(0.02, rel=0.05)
    pwam = backbone.fusions[3].query.weight.detach()  # uniform in +-1 / sqrt(fan in)
    assert pwam.abs().max() <= 384**-0.5
    assert pwam.std() == pytest.approx(384**-0.5 / 3**0.5, rel=0.05)
    assert backbone.stages[0].blocks[0].attn.w_msa.relative_position_bias_table.std() > 0.01


def test_decoder_is_upsample_concatenate_convolve():
    torch.manual_seed(0)
    decoder = LavtDecoder([4, 8, 16, 32], channels=6, norm_cfg={"type": "BN"}).eval()
    for buffer in (m for level in decoder.levels for m in level.modules() if isinstance(m, torch.nn.BatchNorm2d)):
        torch.nn.init.normal_(buffer.running_mean)
        torch.nn.init.uniform_(buffer.running_var, 0.5, 2)
    maps = [torch.randn(2, 4 * 2**i, 16 // 2**i, 24 // 2**i) for i in range(4)]
    x = maps[3]
    for level, finer in zip(decoder.levels, (maps[2], maps[1], maps[0]), strict=True):
        x = torch.cat([F.interpolate(x, finer.shape[2:], mode="bilinear", align_corners=True), finer], dim=1)
        for block in level:
            assert block.conv.bias is None
            x = F.conv2d(x, block.conv.weight, padding=1)
            bn = block.bn
            x = F.relu(F.batch_norm(x, bn.running_mean, bn.running_var, bn.weight, bn.bias, eps=bn.eps))
    expected = F.conv2d(x, decoder.logits.weight, decoder.logits.bias)
    torch.testing.assert_close(decoder(maps), expected)
    assert expected.shape == (2, 2, 16, 24)


@pytest.mark.parametrize("norm", ["BN", "SyncBN", "GN"])
def test_decoder_trains_with_each_norm_on_one_process(norm):
    network = build(lavt_config(norm=norm)).train()
    output = network(torch.randn(2, 3, 64, 64), SENTENCES[:2])
    output.logits.square().mean().backward()
    assert [name for name, p in network.named_parameters() if p.grad is None] == []
    assert output.minimap is output.no_target is None
    assert network.auxiliary_losses(output, torch.zeros(2, 64, 64, dtype=torch.bool), torch.ones(2).bool()) == {}


def test_logits_grow_with_their_corners_in_place():
    network = build(lavt_config())
    logits = torch.arange(8.0).reshape(1, 2, 2, 2)
    grown = network.upsample(logits, (5, 5))
    assert torch.equal(grown[..., ::4, ::4], logits)
    assert grown[0, 0, 0].tolist() == [0, 0.25, 0.5, 0.75, 1]


@pytest.fixture(scope="module")
def swin_b():
    """The config's backbone and decoder without values: only shapes are computed."""
    network = Config.fromfile(CONFIGS / "lavt_swin_b.py").model.network
    settings = {name: value for name, value in network.backbone.items() if name != "weights"}
    backbone = LanguageSwin(text_channels=768, **settings).to("meta")
    return backbone, LavtDecoder(backbone.num_features, **network.decoder).to("meta")


def test_shapes_of_swin_b_at_480_pixels(swin_b):
    backbone, decoder = swin_b
    words = TextFeatures(torch.empty(2, 20, 768, device="meta"), torch.empty(2, 20, device="meta", dtype=torch.bool))
    maps = backbone(torch.empty(2, 3, 480, 480, device="meta"), words)
    assert [m.shape[1:] for m in maps] == [(128, 120, 120), (256, 60, 60), (512, 30, 30), (1024, 15, 15)]
    assert decoder(maps).shape == (2, 2, 120, 120)
    assert [level[0].conv.in_channels for level in decoder.levels] == [1536, 768, 640]
    assert {level[index].conv.out_channels for level in decoder.levels for index in (0, 1)} == {512}
    assert all(isinstance(level[0].bn, torch.nn.SyncBatchNorm) for level in decoder.levels)
    assert [len(stage.blocks) for stage in backbone.stages] == [2, 2, 18, 2]
    assert backbone.stages[2].blocks[0].attn.w_msa.relative_position_index.shape == (144, 144)
    assert backbone.stages[3].blocks[1].attn.drop.drop_prob == pytest.approx(0.3)


def test_parameter_groups_of_the_released_optimizer():
    """Norms and bias tables of the backbone without decay; the decoder and BERT with it, norms included."""
    network = build(lavt_config(text={"name": "tiny-bert", "train_layers": [0]}))
    keys = {"backbone.patch_embed.norm", "norm1", "norm2", "backbone.norm", "downsample.norm"}
    keys |= {"relative_position_bias_table"}
    wrapper = build_optim_wrapper(
        network,
        {
            "optimizer": {"type": "AdamW", "lr": 5e-5, "weight_decay": 0.01},
            "paramwise_cfg": {"custom_keys": {key: {"decay_mult": 0.0} for key in keys}},
        },
    )
    names = {id(p): name for name, p in network.named_parameters() if p.requires_grad}
    groups = [g for g in wrapper.optimizer.param_groups if id(g["params"][0]) in names]
    free = {names[id(g["params"][0])] for g in groups if g["weight_decay"] == 0}
    expected = {
        name
        for name in names.values()
        if name.startswith("backbone.") and ("norm" in name or "relative_position_bias_table" in name)
    }
    assert free == expected
    assert len(groups) == len(names)
    assert {g["lr"] for g in groups} == {5e-5}
