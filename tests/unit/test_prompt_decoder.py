"""The decoder for many prompts equals the package's, in double precision, whatever its shape."""

import pytest
import torch
from sam2.modeling.sam.mask_decoder import MaskDecoder
from sam2.modeling.sam.transformer import TwoWayTransformer

from pipeline.sam.prompt_decoder import PromptDecoder

GRID = (5, 7)


def stock(channels, heads, *, depth=2, high_resolution=True, object_scores=False):
    transformer = TwoWayTransformer(depth=depth, embedding_dim=channels, num_heads=heads, mlp_dim=32)
    decoder = MaskDecoder(
        transformer_dim=channels,
        transformer=transformer,
        iou_head_hidden_dim=16,
        use_high_res_features=high_resolution,
        iou_prediction_use_sigmoid=True,
        pred_obj_scores=object_scores,
    )
    torch.manual_seed(0)
    for parameter in decoder.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return decoder.double().eval()


def drawn(*shape):
    return torch.randn(*shape, dtype=torch.float64)


def prompt_tokens(decoder, points):
    own = [decoder.iou_token.weight, decoder.mask_tokens.weight]
    own = [decoder.obj_score_token.weight, *own] if decoder.pred_obj_scores else own
    return torch.cat([torch.cat(own).expand(len(points), -1, -1), points], 1)


@pytest.mark.parametrize("object_scores", [False, True])
@pytest.mark.parametrize("high_resolution", [False, True])
@pytest.mark.parametrize("depth", [1, 2, 3])
@pytest.mark.parametrize(
    ("channels", "heads"),
    [pytest.param(64, 1, id="few heads: projections move"), pytest.param(64, 8, id="many heads: they stay")],
)
@torch.no_grad()
def test_equals_the_stock_decoder(channels, heads, depth, high_resolution, object_scores):
    decoder = stock(channels, heads, depth=depth, high_resolution=high_resolution, object_scores=object_scores)
    image, position, points = drawn(1, channels, *GRID), drawn(1, channels, *GRID), drawn(6, 2, channels)
    skips = ()
    if high_resolution:
        skips = (drawn(1, channels // 8, 20, 28), drawn(1, channels // 4, 10, 14))
    masks, ious, _, _ = decoder.predict_masks(
        image, position, points, torch.zeros_like(image), repeat_image=True, high_res_features=list(skips)
    )
    ours = PromptDecoder(decoder, position)
    tokens = prompt_tokens(decoder, points)
    decoded = ours.attend(image, tokens)
    expected = decoder.transformer(image.expand(6, -1, -1, -1), position.expand(6, -1, -1, -1), tokens)
    assert masks.std() > 0.1
    torch.testing.assert_close(decoded.queries, expected[0], atol=1e-10, rtol=0)
    torch.testing.assert_close(decoded.image_tokens, expected[1], atol=1e-10, rtol=0)
    torch.testing.assert_close(ours.masks(decoded, skips), masks[:, 1:], atol=1e-10, rtol=0)
    # The quality head is read in float32, whatever the rest is in.
    single = PromptDecoder(decoder.float(), position.float())
    torch.testing.assert_close(single.predicted_iou(decoded).double(), ious[:, 1:], atol=1e-5, rtol=0)


@torch.no_grad()
def test_some_prompts_give_what_they_give_among_all():
    decoder, position = stock(32, 4), drawn(1, 32, *GRID)
    ours = PromptDecoder(decoder, position)
    skips = (drawn(1, 4, 20, 28), drawn(1, 8, 10, 14))
    decoded = ours.attend(drawn(1, 32, *GRID), prompt_tokens(decoder, drawn(6, 3, 32)))
    some = torch.tensor([4, 1])
    torch.testing.assert_close(ours.masks(decoded[some], skips), ours.masks(decoded, skips)[some], atol=1e-12, rtol=0)


@torch.no_grad()
def test_no_prompts_give_no_masks():
    for channels, heads in ((64, 1), (32, 4)):
        decoder, position = stock(channels, heads), drawn(1, channels, *GRID)
        skips = (drawn(1, channels // 8, 20, 28), drawn(1, channels // 4, 10, 14))
        ours = PromptDecoder(decoder, position)
        decoded = ours.attend(drawn(1, channels, *GRID), prompt_tokens(decoder, drawn(0, 2, channels)))
        assert ours.masks(decoded, skips).shape == (0, 3, 20, 28)
