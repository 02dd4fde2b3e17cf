"""Masks from their outlines are, pixel for pixel, those of upsampling everything."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.sam import full_resolution
from pipeline.sam.full_resolution import FullResolution


def upsampled(logits, size_hw):
    return F.interpolate(logits[:, None], size_hw, mode="bilinear", align_corners=False)[:, 0]


def painted(full, logits, size_hw):
    masks = np.zeros((len(logits), size_hw[1] * size_hw[0]), bool)
    mask, spans = full.runs(logits)
    for k, (start, end) in zip(mask.tolist(), spans.tolist(), strict=True):
        assert start < end
        assert not masks[k, start:end].any(), "runs overlap"
        masks[k, start:end] = True
    keys = mask * masks.shape[1] + spans[:, 0]
    assert (keys.diff() > 0).all()
    return masks.reshape(len(logits), size_hw[1], size_hw[0]).transpose(0, 2, 1)


def assert_as_dense(logits, size_hw, offset):
    full = FullResolution(tuple(logits.shape[1:]), size_hw, logits.device)
    dense = upsampled(logits, size_hw)
    expected = (dense > 0).numpy()
    # A pixel whose logit is zero up to rounding may fall on either side.
    is_tie = (dense.abs() < 1e-5).numpy() & (dense != 0).numpy()
    assert not ((painted(full, logits, size_hw) != expected) & ~is_tie).any()
    measures = full.measure(logits, offset)
    for k, mask in enumerate(expected):
        inner, outer = int((dense[k] > offset).sum()), int((dense[k] > -offset).sum())
        near = int(((dense[k].abs() - offset).abs() < 1e-5).sum()) if offset else int(is_tie[k].sum())
        assert abs(measures.stability_score[k] * outer - inner) <= 2 * near + 1e-3
        if is_tie[k].any():
            continue
        rows, columns = np.nonzero(mask)
        assert bool(measures.nonempty[k]) == bool(len(rows))
        box = [columns.min(), rows.min(), columns.max(), rows.max()] if len(rows) else [0, 0, 0, 0]
        assert measures.boxes_xyxy[k].tolist() == box


def blobs(count, height, width, seed, coarse=6):
    generator = torch.Generator().manual_seed(seed)
    seeds = torch.randn(count, 1, min(height, coarse), min(width, coarse), generator=generator)
    return F.interpolate(seeds, (height, width), mode="bicubic")[:, 0] * 5 - 2


SIZES = [(24, 24), (96, 96), (107, 33), (1, 50), (50, 1), (9, 7), (1, 1), (333, 200), (25, 700)]


@pytest.mark.parametrize("size_hw", SIZES)
@pytest.mark.parametrize("logits_hw", [(24, 24), (17, 5), (96, 96), (1, 1)])
def test_blobs_at_every_scale(logits_hw, size_hw):
    assert_as_dense(blobs(4, *logits_hw, seed=1), size_hw, 1.0)


@settings(max_examples=60, deadline=None)
@given(
    height=st.integers(1, 12),
    width=st.integers(1, 12),
    size_hw=st.tuples(st.integers(1, 40), st.integers(1, 40)),
    offset=st.sampled_from([0.0, 0.5, 1.0, 3.0]),
    seed=st.integers(0, 2**16),
    scale=st.sampled_from([0.3, 3.0, 300.0]),
)
def test_noise(height, width, size_hw, offset, seed, scale):
    logits = torch.randn(3, height, width, generator=torch.Generator().manual_seed(seed)) * scale
    assert_as_dense(logits, size_hw, offset)


@pytest.mark.parametrize("size_hw", [(16, 16), (64, 61), (5, 9)])
def test_logits_that_are_exactly_at_the_thresholds(size_hw):
    """A logit of 0 is not in the mask, one of 1 is not above the offset 1."""
    logits = torch.randint(-1, 2, (8, 16, 16), generator=torch.Generator().manual_seed(0)).float()
    assert_as_dense(logits, size_hw, 1.0)
    assert_as_dense(logits, size_hw, 0.0)


@pytest.mark.parametrize("value", [-5.0, -0.5, 0.0, 0.5, 5.0])
def test_a_constant(value):
    assert_as_dense(torch.full((2, 8, 8), value), (64, 61), 1.0)


def test_no_masks():
    full = FullResolution((8, 8), (20, 30), torch.device("cpu"))
    measures = full.measure(torch.zeros(0, 8, 8), 1.0)
    assert measures.boxes_xyxy.shape == (0, 4)
    assert [len(found) for found in full.runs(torch.zeros(0, 8, 8))] == [0, 0]


def test_measures_by_hand():
    logits = torch.full((4, 3, 5), -5.0)
    logits[0, 1, 2:4] = torch.tensor([3.0, 0.5])  # 2 pixels; 1 above 1; 2 above -1
    logits[1, :, :] = 9.0
    logits[3, 2, 0] = -0.5  # empty, yet something above -1
    measures = FullResolution((3, 5), (3, 5), logits.device).measure(logits, 1.0)
    assert measures.stability_score.tolist() == [0.5, 1.0, 0.0, 0.0]
    assert measures.boxes_xyxy.tolist() == [[2, 1, 3, 1], [0, 0, 4, 2], [0, 0, 0, 0], [0, 0, 0, 0]]
    assert measures.nonempty.tolist() == [True, True, False, False]


@pytest.mark.parametrize("max_values", [1, 1000])
def test_parts_change_nothing(monkeypatch, max_values):
    logits, full = blobs(5, 24, 24, seed=2), FullResolution((24, 24), (100, 90), torch.device("cpu"))
    whole, runs = full.measure(logits, 1.0), full.runs(logits)
    monkeypatch.setitem(full_resolution.MAX_VALUES, "cpu", max_values)
    parts = full.measure(logits, 1.0)
    assert torch.equal(parts.stability_score, whole.stability_score)
    assert torch.equal(parts.boxes_xyxy, whole.boxes_xyxy)
    assert all(map(torch.equal, full.runs(logits), runs))


@pytest.mark.parametrize("scale", [4, 16, 64])
def test_a_few_percent_of_the_pixels_are_looked_at_however_large_the_image(monkeypatch, scale):
    """A disc of 15 logits in radius: its outline crosses some 130 of 64 x 64 cells, whatever a cell's size."""
    y, x = torch.meshgrid(torch.arange(64.0), torch.arange(64.0), indexing="ij")
    disc = (15 - torch.hypot(x - 30, y - 33))[None]
    evaluated = []
    values = FullResolution._values

    def watched(self, logits, cells):
        evaluated.append(values(self, logits, cells))
        return evaluated[-1]

    monkeypatch.setattr(FullResolution, "_values", watched)
    FullResolution((64, 64), (64 * scale, 64 * scale), disc.device).runs(disc)
    looked_at = sum(each.numel() for each in evaluated)
    assert 0.02 < looked_at / (64 * scale) ** 2 < 0.05


def test_a_gpu_would_get_few_large_parts():
    """Every part costs launches and waits there: all masks of a batch of 64 clicks go together at SAM 2.1's size."""
    assert full_resolution.MAX_VALUES["cuda"] // 256**2 >= 3 * 64
