"""Operations and bytes of our decoder against the package's, at SAM 2.1's geometry; counted, not timed."""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from pipeline.sam.prompt_decoder import PromptDecoder
from tests.unit.test_prompt_decoder import prompt_tokens, stock

PROMPTS, GRID, CHANNELS = 4, 64, 256


class ByteCounter(TorchDispatchMode):
    """Sums what every operation reads and writes; views cost nothing."""

    def __init__(self):
        super().__init__()
        self.total = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        if not function.is_view:
            tensors = [each for each in tree_leaves((args, kwargs, result)) if isinstance(each, torch.Tensor)]
            # An expanded tensor is read as often as it is long, but it lies in memory once.
            self.total += sum(
                each.untyped_storage().nbytes() if 0 in each.stride() else each.nbytes for each in tensors
            )
        return result


@pytest.fixture(scope="module")
def geometry():
    """Decoder, image, position, prompt tokens and skip features of SAM 2.1's sizes."""
    decoder = stock(CHANNELS, 8, object_scores=True).float()
    image, position = torch.randn(1, CHANNELS, GRID, GRID), torch.randn(1, CHANNELS, GRID, GRID)
    skips = torch.randn(1, CHANNELS // 8, 4 * GRID, 4 * GRID), torch.randn(1, CHANNELS // 4, 2 * GRID, 2 * GRID)
    with torch.no_grad():
        tokens = prompt_tokens(decoder, torch.randn(PROMPTS, 2, CHANNELS))
    return decoder, image, position, tokens, skips


def counted(call):
    with FlopCounterMode(display=False) as operations:
        call()
    with ByteCounter() as moved:
        call()
    return operations.get_total_flops() / PROMPTS, moved.total / PROMPTS


@torch.no_grad()
def test_fewer_operations_and_fewer_bytes_than_the_stock_decoder(geometry):
    decoder, image, position, tokens, skips = geometry
    ours = PromptDecoder(decoder, position)

    def stock_way():
        points = tokens[:, -2:]
        decoder.predict_masks(
            image, position, points, torch.zeros_like(image), repeat_image=True, high_res_features=list(skips)
        )

    def all_masks():
        ours.masks(ours.attend(image, tokens), skips)

    def no_mask():
        ours.attend(image, tokens)

    stock_flops, stock_bytes = counted(stock_way)
    flops, moved = counted(all_masks)
    token_flops, token_bytes = counted(no_mask)
    print(f"a prompt: stock {stock_flops / 1e9:.2f} GFLOP, {stock_bytes / 1e6:.0f} MB; ours {flops / 1e9:.2f} GFLOP, ")
    print(f"{moved / 1e6:.0f} MB; tokens alone {token_flops / 1e9:.2f} GFLOP, {token_bytes / 1e6:.0f} MB")
    assert flops < 0.75 * stock_flops
    assert moved < 0.65 * stock_bytes
    assert token_flops < 0.5 * stock_flops
    assert token_bytes < 0.35 * stock_bytes
