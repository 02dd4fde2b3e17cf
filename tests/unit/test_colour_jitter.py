"""Colour jitter: what each change does to known pixels, and that nothing else is touched."""

import numpy as np
import pytest

from pipeline.data.colour_jitter import ColourJitter, _with_hue, _with_saturation
from pipeline.data.instance_dataset import seeded
from pipeline.errors import ConfigError

NOTHING = {"brightness": 0, "contrast": (1.0, 1.0), "saturation": (1.0, 1.0), "hue": 0}


def picture(seed=0):
    return np.random.default_rng(seed).integers(0, 256, (16, 24, 3), np.uint8)


def jittered(image, seed=0, **settings):
    with seeded([seed]):
        return ColourJitter(**settings)({"img": image, "img_id": 3})["img"]


def test_without_a_chance_nothing_changes():
    image = picture()
    assert (jittered(image, prob=0) == image).all()


def test_the_same_seed_gives_the_same_and_another_one_another_picture():
    image, before = picture(), picture()
    first = jittered(image, 1, prob=1)
    assert first.dtype == np.uint8
    assert first.shape == image.shape
    assert (first == jittered(image, 1, prob=1)).all()
    assert (first != jittered(image, 2, prob=1)).any()
    assert (image == before).all()


def test_brightness_adds_one_number_and_cuts_off():
    image = picture()
    changed = jittered(image, prob=1, **{**NOTHING, "brightness": 32}).astype(int)
    grey = jittered(np.full((2, 2, 3), 128, np.uint8), prob=1, **{**NOTHING, "brightness": 32}).astype(int)
    step = int(grey[0, 0, 0]) - 128
    assert 0 < abs(step) <= 32
    # saturation and hue go to the colour wheel and back, which costs a level or two
    assert np.abs(changed - np.clip(image.astype(int) + step, 0, 255)).max() <= 6


def test_contrast_scales_all_levels():
    grey = np.arange(0, 240, 10, np.uint8).reshape(1, -1, 1).repeat(3, axis=2)
    changed = jittered(grey, prob=1, **{**NOTHING, "contrast": (0.5, 0.5)})
    assert (changed == grey // 2).all()


def test_without_saturation_a_picture_is_grey_and_a_third_of_the_wheel_makes_red_green():
    grey = _with_saturation(picture(), 0.0)
    assert (grey.max(axis=2) == grey.min(axis=2)).all()
    red = np.zeros((1, 1, 3), np.uint8)
    red[..., 0] = 200
    assert _with_hue(red, 60)[0, 0].tolist() == [0, 200, 0]
    assert _with_hue(red, -60)[0, 0].tolist() == [0, 0, 200]


def test_half_of_the_changes_happen():
    image = np.full((1, 1, 3), 100, np.uint8)
    settings = {**NOTHING, "brightness": 32}
    share = np.mean([(jittered(image, seed, prob=0.5, **settings) != image).any() for seed in range(400)])
    assert 0.4 < share < 0.6


@pytest.mark.parametrize("wrong", [{"prob": 2}, {"prob": "a"}, {"contrast": (2, 1)}, {"hue": 100}, {"brightness": -1}])
def test_a_range_that_is_none_is_refused(wrong):
    with pytest.raises(ConfigError, match="out of range"):
        ColourJitter(**wrong)
