"""Repeat-factor sampling: factors by hand, how often images come, and that a position still says all."""

from itertools import chain, islice

import numpy as np

import pipeline.models.mmcv_ops  # noqa: F401  isort: skip  (before mmdet)
import pytest
from mmengine.dataset.utils import pseudo_collate
from mmengine.registry import init_default_scope
from torch.utils.data import DataLoader

from pipeline.data.instance_dataset import InstanceDataset, StreamDataset, StreamSampler
from pipeline.data.repeat_factor import Passes, classes_of_images, repeat_factors
from pipeline.data.transforms import PackSample
from pipeline.errors import ConfigError
from tests.toy_scenes import small_scenes

COMMON, RARE = 0, 7
CLASSES = [{COMMON}] * 15 + [{COMMON, RARE}]
"""16 images; one shows a class that no other does."""


def one_pass(passes, number=0):
    return [passes.index_at(number * len(passes) + place) for place in range(len(passes))]


class TestFactors:
    def test_by_hand(self):
        factors = repeat_factors([{1}, {1, 2}, {1}, {1, 3}], 0.5)
        # f = 1, 1/4, 1/4: sqrt(0.5 / 0.25) = 1.414 for classes 2 and 3; class 1 is not rare
        np.testing.assert_allclose(factors, [1, np.sqrt(2), 1, np.sqrt(2)])

    def test_an_image_has_the_factor_of_its_rarest_class(self):
        factors = repeat_factors([{1, 2, 3}, {2, 3}, {3}, set()], 3.0)
        # f = 1/4, 2/4, 3/4
        np.testing.assert_allclose(factors, [np.sqrt(12), np.sqrt(6), 2, 1])

    def test_of_the_released_student_nothing_is_common(self):
        np.testing.assert_allclose(repeat_factors(CLASSES, 10.0), [np.sqrt(10)] * 15 + [np.sqrt(160)])

    def test_a_low_threshold_repeats_nothing(self):
        np.testing.assert_array_equal(repeat_factors(CLASSES, 1 / 16), np.ones(16))

    def test_a_class_counts_once_an_image(self):
        np.testing.assert_array_equal(repeat_factors([[1, 1, 1], [2, 2]], 2.0), repeat_factors([[1], [2]], 2.0))

    @pytest.mark.parametrize("threshold", [0, -1.0, float("nan"), float("inf"), "10", True])
    def test_what_is_no_threshold_is_refused(self, threshold):
        with pytest.raises(ConfigError, match="repeat_threshold"):
            repeat_factors(CLASSES, threshold)


class TestPasses:
    def test_without_factors_a_pass_is_the_permutation_that_it_always_was(self):
        passes = Passes([3, 9, 4], 11)
        assert len(passes) == 11
        for number in (0, 1, 5):
            expected = np.random.default_rng([3, 9, 4, number]).permutation(11)
            assert one_pass(passes, number) == expected.tolist()

    def test_factors_of_one_are_a_permutation_too(self):
        passes = Passes([0], 11, factors=np.ones(11))
        assert sorted(one_pass(passes)) == list(range(11))
        assert one_pass(passes) != one_pass(passes, 1)

    def test_whole_factors_are_exact_in_every_pass(self):
        passes = Passes([0], 3, factors=np.array([1.0, 4.0, 2.0]))
        for number in range(20):
            assert np.bincount(one_pass(passes, number)).tolist() == [1, 4, 2]

    def test_counts_are_a_factors_neighbours_and_its_mean(self):
        factors = np.array([1.0, 2.3, 1.6, 3.1, 1.0, 12.65])
        passes = Passes([5], 6, factors=factors)
        assert len(passes) == 22  # 21.65, rounded up
        scaled = factors * 22 / factors.sum()
        counts = np.array([np.bincount(one_pass(passes, number), minlength=6) for number in range(2000)])
        assert ((counts == np.floor(scaled)) | (counts == np.ceil(scaled))).all()
        np.testing.assert_allclose(counts.mean(0), scaled, atol=0.05)

    def test_a_pass_is_shuffled(self):
        passes = Passes([0], 2, factors=np.array([1.0, 50.0]))
        places = [one_pass(passes, number).index(0) for number in range(400)]
        assert 20 < np.mean(places) < 30
        assert len(set(places)) > 40

    def test_positions_need_no_history(self):
        factors = repeat_factors(CLASSES, 10.0)
        forward, straight = Passes([1, 2], 16, factors=factors), Passes([1, 2], 16, factors=factors)
        run = [forward.index_at(position) for position in range(1000)]
        for position in (999, 0, 512, 64, 63, 998):
            assert straight.index_at(position) == run[position]
        other = Passes([1, 3], 16, factors=factors)
        assert [other.index_at(position) for position in range(1000)] != run


@pytest.fixture(scope="module")
def scenes(tmp_path_factory):
    init_default_scope("mmdet")
    return small_scenes(tmp_path_factory.mktemp("data") / "scenes", num_train=7, percent=45)


def stream(scenes, **settings):
    data = {
        "type": InstanceDataset,
        "annotation_file": str(scenes.annotations("train")),
        "image_root": str(scenes.image_root),
        "pipeline": [{"type": PackSample}],
    }
    return StreamDataset(data, seed=4, name="labelled", **settings)


def ids(batches):
    return [sample.img_id for batch in batches for sample in batch["data_samples"]]


def loaded(data, *, num_steps, rank=0, world_size=1, first_step=0, num_workers=0):
    """Image ids of one process' batches of 2."""
    sampler = StreamSampler(data, batch_size=2)
    sampler.rank, sampler.world_size, sampler.first_step = rank, world_size, first_step
    loader = DataLoader(data, batch_size=2, sampler=sampler, num_workers=num_workers, collate_fn=pseudo_collate)
    return ids(islice(loader, num_steps))


class TestStream:
    def test_off_is_the_order_that_it_always_was(self, scenes):
        data = stream(scenes)
        name = [ord(letter) for letter in "labelled"]
        order = [np.random.default_rng([4, *name, epoch]).permutation(7).tolist() for epoch in range(3)]
        assert [data.index_at(position) for position in range(21)] == [*chain(*order)]
        assert (len(data), len(stream(scenes, repeat_threshold=None))) == (7, 7)

    def test_classes_are_those_of_the_objects_that_are_taught(self, scenes):
        data = stream(scenes)
        for index, classes in enumerate(classes_of_images(data.dataset.coco)):
            assert classes == set(data.dataset.annotations(index)["gt_bboxes_labels"].tolist())

    def test_rare_classes_come_more_often(self, scenes):
        data = stream(scenes, repeat_threshold=10.0)
        factors = repeat_factors(classes_of_images(data.dataset.coco), 10.0)
        assert factors.max() > factors.min()
        drawn = np.bincount([data.index_at(position) for position in range(50 * len(data))], minlength=7)
        np.testing.assert_allclose(drawn / drawn.sum(), factors / factors.sum(), atol=0.01)

    def test_reading_processes_change_nothing(self, scenes):
        data = stream(scenes, repeat_threshold=10.0)
        assert loaded(data, num_steps=12) == loaded(data, num_steps=12, num_workers=2)

    def test_resumed_is_uninterrupted(self, scenes):
        whole = loaded(stream(scenes, repeat_threshold=10.0), num_steps=30)
        assert loaded(stream(scenes, repeat_threshold=10.0), num_steps=10, first_step=20) == whole[40:]

    def test_ranks_share_one_order(self, scenes):
        whole = loaded(stream(scenes, repeat_threshold=10.0), num_steps=18)
        ranks = [
            loaded(stream(scenes, repeat_threshold=10.0), num_steps=6, rank=rank, world_size=3) for rank in range(3)
        ]
        together = [image for step in range(6) for rank in ranks for image in rank[2 * step : 2 * step + 2]]
        assert together == whole
