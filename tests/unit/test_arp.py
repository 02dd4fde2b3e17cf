"""Properties of pasting, on images in which every pixel tells where it comes from."""

import numpy as np
import pytest

from pipeline.data.arp import ArpSettings, Sample, augment_batch, mix_pair, pair_up, paste
from pipeline.errors import ConfigError


def telling_image(height, width, identity):
    """Channel 0 is the row, 1 the column, 2 the image."""
    image = np.zeros((height, width, 3), dtype=np.uint8)
    image[..., 0], image[..., 1], image[..., 2] = np.arange(height)[:, None], np.arange(width), identity
    return image


def random_sample(seed, *, height=40, width=50, count=4, weighted=False):
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:height, :width]
    masks = np.zeros((count, height, width), dtype=bool)
    for mask in masks:
        (cy, cx), (ry, rx) = rng.random(2) * [height, width], rng.uniform(2, 12, size=2)
        mask[:] = ((y - cy) / ry) ** 2 + ((x - cx) / rx) ** 2 < 1
    labels = np.arange(count) + 100 * seed  # a label names the sample and the instance
    weights = tuple(rng.random((height, width), dtype=np.float32) for _ in range(count)) if weighted else None
    return Sample(telling_image(height, width, seed), masks, labels, weights)


def boxes(*tops_lefts_sides, height=40, width=50):
    masks = np.zeros((len(tops_lefts_sides), height, width), dtype=bool)
    for mask, (top, left, side) in zip(masks, tops_lefts_sides, strict=True):
        mask[top : top + side, left : left + side] = True
    return masks


def sample_of(masks, identity):
    return Sample(telling_image(*masks.shape[1:], identity), masks, np.arange(len(masks)) + 100 * identity)


def paste_seeded(source, receiver, seed=0, **settings):
    return paste(source, receiver, ArpSettings(**settings), np.random.default_rng(seed))


def test_static_paste_is_equation_4():
    source, receiver = random_sample(1), random_sample(2)
    mixed = paste_seeded(source, receiver)
    union = source.masks[source.masks.sum((1, 2)) >= 16].any(axis=0)
    assert union.any()
    np.testing.assert_array_equal(mixed.image, np.where(union[..., None], source.image, receiver.image))


def test_hand_made_static_paste():
    source = sample_of(boxes((5, 5, 10), (20, 20, 5)), 1)
    receiver = sample_of(boxes((10, 10, 10), (30, 30, 8)), 2)
    mixed = paste_seeded(source, receiver)
    assert mixed.labels.tolist() == [200, 201, 100, 101]
    cut = receiver.masks[0].copy()
    cut[10:15, 10:15] = False
    np.testing.assert_array_equal(mixed.masks, np.stack([cut, receiver.masks[1], *source.masks]))


@pytest.mark.parametrize("mode", ["static", "moved"])
@pytest.mark.parametrize("seed", range(12))
def test_properties(mode, seed):
    source = random_sample(2 * seed + 1, count=seed % 6, weighted=seed % 2 == 0)
    receiver = random_sample(2 * seed + 2, count=(seed + 3) % 6, weighted=seed % 3 == 0)
    copies = [(sample.image.copy(), sample.masks.copy(), sample.labels.copy()) for sample in (source, receiver)]
    mixed = paste_seeded(source, receiver, seed, mode=mode)

    is_pasted = mixed.labels // 100 == 2 * seed + 1
    own, pasted = mixed.masks[~is_pasted], mixed.masks[is_pasted]
    # Exclusive: no receiver instance owns a pasted pixel; moved patches do not share pixels either.
    assert not (own.any(axis=0) & pasted.any(axis=0)).any()
    if mode == "moved":
        assert pasted.sum(axis=0).max(initial=0) <= 1
    # Nothing empty, nothing pasted that is a sliver.
    assert (mixed.masks.sum((1, 2)) > 0).all()
    assert (pasted.sum((1, 2)) >= 16).all()
    # Labels aligned: every pixel of a pasted instance shows a source pixel of that very instance.
    for mask, label in zip(pasted, mixed.labels[is_pasted], strict=True):
        rows, columns, identity = np.moveaxis(mixed.image[mask].astype(int), -1, 0)
        assert (identity == 2 * seed + 1).all()
        assert source.masks[label - 100 * (2 * seed + 1), rows, columns].all()
    for mask, label in zip(own, mixed.labels[~is_pasted], strict=True):
        before = receiver.masks[label - 100 * (2 * seed + 2)]
        assert (mixed.image[mask] == receiver.image[mask]).all()
        shows_source = mixed.image[..., 2] == 2 * seed + 1
        np.testing.assert_array_equal(mask, before & ~shows_source)
    # Order kept, inputs untouched, weights for everyone or no one.
    assert sorted(mixed.labels[is_pasted]) == mixed.labels[is_pasted].tolist()
    assert sorted(mixed.labels[~is_pasted]) == mixed.labels[~is_pasted].tolist()
    assert mixed.weights is None or len(mixed.weights) == len(mixed.labels)
    for sample, (image, masks, labels) in zip((source, receiver), copies, strict=True):
        np.testing.assert_array_equal(sample.image, image)
        np.testing.assert_array_equal(sample.masks, masks)
        np.testing.assert_array_equal(sample.labels, labels)


def test_own_overlaps_are_not_cut():
    receiver = sample_of(boxes((5, 5, 20), (10, 10, 20)), 2)
    mixed = paste_seeded(sample_of(boxes((0, 30, 6)), 1), receiver)
    np.testing.assert_array_equal(mixed.masks[:2] & ~boxes((0, 30, 6))[0], receiver.masks & ~boxes((0, 30, 6))[0])
    assert (mixed.masks[0] & mixed.masks[1]).sum() == 15 * 15


def test_covered_instances_are_dropped_by_pixels_and_by_share():
    receiver = sample_of(boxes((10, 10, 10), (25, 25, 4)), 2)
    cover = boxes((10, 10, 10))
    cover[0, 10:12, 10:20] = False  # leaves 20 of 100 pixels
    source = sample_of(cover, 1)
    assert paste_seeded(source, receiver).labels.tolist() == [200, 201, 100]
    assert paste_seeded(source, receiver, min_visible_pixels=21).labels.tolist() == [201, 100]
    assert paste_seeded(source, receiver, min_visible_share=0.21).labels.tolist() == [201, 100]
    assert paste_seeded(sample_of(boxes((8, 8, 14)), 1), receiver).labels.tolist() == [201, 100]  # covered wholly


def test_small_untouched_instances_of_the_receiver_stay():
    receiver = sample_of(boxes((10, 10, 2), (30, 30, 2)), 2)
    mixed = paste_seeded(sample_of(boxes((11, 11, 6)), 1), receiver)
    assert mixed.labels.tolist() == [201, 100]  # the touched one kept 3 of 4 pixels: a sliver


def test_small_and_empty_instances_are_not_pasted():
    source = sample_of(boxes((30, 30, 3), (5, 5, 10), (0, 0, 0), (20, 20, 6)), 1)
    receiver = sample_of(np.zeros((0, 40, 50), dtype=bool), 2)
    mixed = paste_seeded(source, receiver)
    assert mixed.labels.tolist() == [101, 103]
    assert not (mixed.image[30:33, 30:33, 2] == 1).any()  # no pixels without a label
    assert paste_seeded(source, receiver, min_source_area=37).labels.tolist() == [101]
    assert paste_seeded(source, receiver, min_visible_pixels=1).labels.tolist() == [100, 101, 103]


def test_empty_masks_of_the_receiver_are_dropped():
    mixed = paste_seeded(sample_of(boxes((5, 5, 10)), 1), sample_of(boxes((0, 0, 0), (30, 30, 5)), 2))
    assert mixed.labels.tolist() == [201, 100]


def test_nothing_on_either_side():
    none = sample_of(np.zeros((0, 40, 50), dtype=bool), 1)
    for mode in ("static", "moved"):
        mixed = paste_seeded(none, sample_of(boxes((5, 5, 10)), 2), mode=mode)
        assert mixed.labels.tolist() == [200]
        assert paste_seeded(none, none, mode=mode).masks.shape == (0, 40, 50)


def test_static_between_different_sizes_cuts_off_what_lies_outside():
    source = sample_of(boxes((5, 5, 10), (30, 42, 8), height=40, width=50), 1)
    receiver = sample_of(np.zeros((0, 60, 45), dtype=bool), 2)
    mixed = paste_seeded(source, receiver)
    expected = np.zeros((2, 60, 45), dtype=bool)
    expected[:, :40] = source.masks[:, :, :45]
    np.testing.assert_array_equal(mixed.masks, expected)


def test_moved_scales_and_moves_within_bounds():
    source = sample_of(boxes((3, 4, 10)), 1)
    receiver = sample_of(np.zeros((0, 40, 50), dtype=bool), 2)
    sides, corners = set(), set()
    for seed in range(60):
        mask = paste_seeded(source, receiver, seed, mode="moved").masks[0]
        rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
        assert mask.sum() == len(rows) * len(columns)
        assert len(rows) == len(columns)
        sides.add(len(rows))
        corners.add((rows[0], columns[0]))
    assert sides == {8, 9, 10, 11, 12}
    assert len(corners) > 50
    assert max(row for row, _ in corners) > 25
    assert max(column for _, column in corners) > 35


def test_moved_object_larger_than_the_receiver_shows_a_window_of_itself():
    source = sample_of(boxes((0, 0, 40)), 1)
    receiver = sample_of(np.zeros((0, 12, 14), dtype=bool), 2)
    windows = set()
    for seed in range(10):
        mixed = paste_seeded(source, receiver, seed, mode="moved")
        assert mixed.masks.all()
        windows.add(tuple(mixed.image[0, 0]))
    assert len(windows) > 5


def test_moved_takes_the_nearest_source_pixel():
    source = sample_of(boxes((3, 4, 10)), 1)
    mixed = paste_seeded(source, sample_of(boxes((0, 0, 0)), 2), mode="moved", scale_range=(0.8, 0.8))
    pixels = mixed.image[mixed.masks[0]].reshape(8, 8, 3)
    nearest = [0, 1, 3, 4, 5, 6, 8, 9]  # floor((i + 0.5) * 10 / 8)
    np.testing.assert_array_equal(pixels[:, 0, 0], np.add(nearest, 3))
    np.testing.assert_array_equal(pixels[0, :, 1], np.add(nearest, 4))


def test_moved_without_scaling_copies_every_pixel():
    source = sample_of(boxes((3, 4, 10)), 1)
    mixed = paste_seeded(source, sample_of(boxes((0, 0, 0)), 2), mode="moved", scale_range=(1.0, 1.0))
    np.testing.assert_array_equal(mixed.image[mixed.masks[0]], source.image[source.masks[0]])


def test_weights_follow_their_instance():
    weight = np.full((40, 50), 0.3, dtype=np.float32)
    source = Sample(telling_image(40, 50, 1), boxes((5, 5, 10), (20, 20, 6)), np.array([100, 101]), (weight, None))
    receiver = Sample(telling_image(40, 50, 2), boxes((10, 10, 20)), np.array([200]), (weight * 2,))
    mixed = paste_seeded(source, receiver)
    pasted = source.masks.any(axis=0)
    np.testing.assert_array_equal(mixed.weights[0], np.where(pasted, 1, np.float32(0.6)))
    np.testing.assert_array_equal(mixed.weights[1], np.where(source.masks[0], np.float32(0.3), 1))
    assert mixed.weights[2] is None
    moved = paste_seeded(source, receiver, mode="moved", seed=3)
    index = moved.labels.tolist().index(100)
    np.testing.assert_array_equal(moved.weights[index], np.where(moved.masks[index], np.float32(0.3), 1))
    plain = sample_of(boxes((5, 5, 10)), 1)
    assert paste_seeded(plain, plain).weights is None


def test_both_directions_start_from_the_unchanged_state():
    first, second = random_sample(1), random_sample(2)
    settings = ArpSettings()
    mixed_first, mixed_second = mix_pair(first, second, settings, np.random.default_rng(0))
    alone_first, alone_second = paste_seeded(second, first), paste_seeded(first, second)
    np.testing.assert_array_equal(mixed_first.image, alone_first.image)
    np.testing.assert_array_equal(mixed_second.image, alone_second.image)
    np.testing.assert_array_equal(mixed_second.masks, alone_second.masks)


@pytest.mark.parametrize(
    ("batch_size", "fraction", "num_pairs"),
    [(2, 1.0, 1), (3, 1.0, 1), (4, 1.0, 2), (5, 1.0, 2), (16, 1.0, 8), (4, 0.0, 0), (1, 1.0, 0), (0, 1.0, 0)]
    + [(size, 0.5, max(1, size // 4)) for size in range(2, 17)],
)
def test_number_of_pairs(batch_size, fraction, num_pairs):
    pairs = pair_up(batch_size, fraction, np.random.default_rng(0))
    assert len(pairs) == num_pairs
    members = [index for pair in pairs for index in pair]
    assert len(set(members)) == 2 * num_pairs
    assert all(0 <= index < batch_size for index in members)


def test_pairs_are_random():
    rng = np.random.default_rng(0)
    partners = {frozenset(pair_up(4, 0.5, rng)[0]) for _ in range(100)}
    assert len(partners) == 6


@pytest.mark.parametrize("mode", ["static", "moved"])
def test_batch_is_mixed_in_place_order_and_reproducibly(mode):
    samples = [random_sample(seed) for seed in range(1, 6)]
    settings = ArpSettings(mode=mode)
    first = augment_batch(samples, settings, np.random.default_rng(3))
    second = augment_batch(samples, settings, np.random.default_rng(3))
    untouched = 0
    for before, after, again in zip(samples, first, second, strict=True):
        np.testing.assert_array_equal(after.image, again.image)
        np.testing.assert_array_equal(after.masks, again.masks)
        identity = before.image[0, 0, 2]
        assert (after.image[..., 2] == identity).sum() > 400  # the receiver stays what it is
        assert len(set(np.unique(after.image[..., 2])) - {identity}) == (after is not before)
        untouched += after is before
    assert untouched == 1


@pytest.mark.parametrize(
    "settings",
    [
        {"mode": "dynamic"},
        {"min_source_area": -1},
        {"scale_range": (1.2, 0.8)},
        {"scale_range": (0.0, 1.0)},
        {"min_visible_pixels": 0},
        {"min_visible_share": 1.5},
        {"pair_fraction": -0.1},
    ],
)
def test_settings_out_of_range_are_refused_by_name(settings):
    with pytest.raises(ConfigError, match=next(iter(settings))):
        ArpSettings(**settings)


def test_samples_of_odd_shapes_are_refused():
    with pytest.raises(ValueError, match="do not belong together"):
        Sample(telling_image(4, 5, 0), np.zeros((2, 4, 5), bool), np.zeros(1, int))
    with pytest.raises(ValueError, match="do not belong together"):
        Sample(telling_image(4, 5, 0), np.zeros((2, 5, 4), bool), np.zeros(2, int))
    with pytest.raises(ValueError, match="do not belong together"):
        Sample(telling_image(4, 5, 0), np.zeros((2, 4, 5), bool), np.zeros(2, int), (None,))
