"""The student's strong view."""

import colorsys

import numpy as np
import pytest
import torch

from pipeline.data.referring.views import JitterSettings, jittered
from pipeline.errors import ConfigError

ALWAYS = {"probability": 1.0}
STILL = {"brightness": 0.0, "contrast": 0.0, "saturation": 0.0, "hue": 0.0}


def pictures(count=6, size=8):
    return torch.rand(count, 3, size, size, generator=torch.Generator().manual_seed(1))


def drawn(images, settings, *, sentences=None, seed=0):
    names = sentences or ["a thing"] * len(images)
    return jittered(images, names, settings, generator=torch.Generator().manual_seed(seed))


def test_half_of_the_images_change_and_all_stay_in_range():
    images = pictures(200, 2)
    views = drawn(images, JitterSettings())
    changed = (views != images).flatten(1).any(1)
    assert 70 < int(changed.sum()) < 130
    assert views.shape == images.shape
    assert float(views.min()) >= 0
    assert float(views.max()) <= 1


def test_draws_are_those_of_the_seed_and_of_the_place_in_the_batch():
    images = pictures()
    settings = JitterSettings(**ALWAYS)
    assert torch.equal(drawn(images, settings), drawn(images, settings))
    assert not torch.equal(drawn(images, settings), drawn(images, settings, seed=1))
    # An image that is spared draws as many numbers as the others: its neighbours do not notice.
    keeping = JitterSettings(**ALWAYS, keep_named_colours=True)
    sentences = ["a red thing", *["a thing"] * 5]
    assert torch.equal(drawn(images, keeping, sentences=sentences)[1:], drawn(images, settings)[1:])


@pytest.mark.parametrize("name", ["brightness", "contrast", "saturation", "hue"])
def test_each_change_is_the_usual_one_and_within_reach(name):
    images = pictures(60, 4)
    views = drawn(images, JitterSettings(**ALWAYS, **{**STILL, name: 0.25}))
    weights = torch.tensor([0.2989, 0.587, 0.114])[:, None, None]
    shifts = []
    for image, view in zip(images, views, strict=True):
        if name == "hue":
            before, after = (colorsys.rgb_to_hsv(*p[:, 0, 0].tolist()) for p in (image, view))
            assert np.allclose(before[1:], after[1:], atol=1e-4)
            shifts.append((after[0] - before[0] + 0.5) % 1 - 0.5)
            continue
        grey = (image * weights).sum(0, keepdim=True)
        pivot = {"brightness": torch.zeros(1), "contrast": grey.mean(), "saturation": grey}[name]
        inside = (view > 0.001) & (view < 0.999) & ((image - pivot).abs() > 0.05)
        factors = ((view - pivot) / (image - pivot))[inside]
        assert float(factors.std()) < 1e-3
        shifts.append(float(factors.mean()) - 1)
    assert max(abs(shift) for shift in shifts) < 0.2502
    assert min(shifts) < -0.15
    assert max(shifts) > 0.15


def test_a_named_colour_keeps_its_hue():
    red = torch.zeros(40, 3, 2, 2)
    red[:, 0] = 0.8
    keeping = JitterSettings(**ALWAYS, keep_named_colours=True)
    kept = drawn(red, keeping, sentences=["the red star"] * 40)
    assert bool((kept[:, 0] > kept[:, 1:].amax(1)).all())
    assert bool((kept != red).flatten(1).any(1).all())
    told = drawn(red, keeping, sentences=["the star on the left"] * 40)
    assert torch.equal(told, drawn(red, JitterSettings(**ALWAYS)))
    # Hues go up to a quarter of the circle, to green or violet.
    assert bool((told[:, 0] < told[:, 1:].amax(1)).any())


def test_bytes_are_rounded_once():
    images = (pictures() * 255).round().to(torch.uint8)
    settings = JitterSettings(**ALWAYS)
    views = drawn(images, settings)
    assert views.dtype == torch.uint8
    assert torch.equal(views, (drawn(images.float() / 255, settings) * 255).round().to(torch.uint8))
    assert torch.equal(drawn(images, JitterSettings(probability=0.0)), images)


def test_a_normalised_tensor_saturates_as_released():
    images = (pictures() - 0.45) / 0.22
    views = drawn(images, JitterSettings(**ALWAYS, **{**STILL, "brightness": 0.25}))
    dark = images <= 0
    assert float(dark.float().mean()) > 0.4
    assert float(views[dark].max()) < 1e-5
    assert float(views.min()) >= 0
    assert float(views.max()) <= 1


@pytest.mark.parametrize("wrong", [{"probability": 1.5}, {"hue": 0.6}, {"contrast": -0.1}])
def test_out_of_range(wrong):
    with pytest.raises(ConfigError, match="colour jitter"):
        JitterSettings(**wrong)
