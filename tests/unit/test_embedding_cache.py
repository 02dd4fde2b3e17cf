"""The cache of SAM embeddings: encodes once, keeps what was used last, never more than its size."""

import numpy as np
import pytest
import torch

from pipeline.errors import ConfigError, InputError
from pipeline.refine.embedding_cache import EmbeddingCache
from tests.fakes import FakeSam


def image(value, size=(4, 6)):
    return np.full((*size, 3), value, np.uint8)


def value_of(embedding):
    return int(embedding.tokens.flatten()[0])


def test_an_image_is_encoded_once():
    sam = FakeSam()
    cache = EmbeddingCache(sam, size=2)
    assert 7 not in cache
    first = cache(7, image(1))
    assert 7 in cache
    assert cache(7, None) is first
    assert cache(7, image(9)) is first
    assert len(sam.embedded) == 1


def test_the_one_used_longest_ago_goes():
    sam = FakeSam()
    cache = EmbeddingCache(sam, size=2)
    cache(1, image(1)), cache(2, image(2))
    cache(1, None)
    assert value_of(cache(3, image(3))) == 3
    assert (1 in cache, 2 in cache, 3 in cache) == (True, False, True)
    assert value_of(cache(2, image(20))) == 20
    assert len(sam.embedded) == 4


def test_a_cache_of_one_works():
    cache = EmbeddingCache(FakeSam(), size=1)
    for number in (1, 2, 1):
        assert value_of(cache(number, image(number))) == number


def test_without_pixels_an_unknown_image_is_an_error_and_not_kept():
    cache = EmbeddingCache(FakeSam(), size=1)
    with pytest.raises(InputError, match="image 5"):
        cache(5, None)
    assert 5 not in cache


class Batches(FakeSam):
    """A device with room for some images at a time; remembers the sizes of batches."""

    def __init__(self, room=64):
        super().__init__()
        self.room, self.batches = room, []

    def embed(self, images):
        self.batches.append(len(images))
        if len(images) > self.room:
            raise torch.OutOfMemoryError("no room")
        return super().embed(images)


def images(*numbers):
    return {number: image(number, size=(4, 5 + number)) for number in numbers}


def test_the_images_of_a_step_are_encoded_as_one_batch():
    sam = Batches()
    cache = EmbeddingCache(sam, size=8)
    cache(2, image(2))
    cache.prepare({**images(1, 3, 4), 2: None})
    assert sam.batches == [1, 3]
    assert [value_of(cache(number, None)) for number in (1, 2, 3, 4)] == [1, 2, 3, 4]
    assert [cache(number, None).size_hw for number in (1, 3, 4)] == [(4, 6), (4, 8), (4, 9)]
    cache.prepare(images(1, 2))
    cache.prepare({})
    assert sam.batches == [1, 3]


def test_a_step_larger_than_the_cache_is_there_until_the_next():
    sam = Batches()
    cache = EmbeddingCache(sam, size=2)
    cache.prepare(images(1, 2, 3))
    cache.prepare(images(3, 4, 5, 6))
    assert sam.batches == [3, 3]  # 3 was kept: it was used first, and then it was of this step
    assert [value_of(cache(number, None)) for number in (6, 5, 4, 3)] == [6, 5, 4, 3]
    assert [number in cache for number in (1, 2)] == [False, False]
    cache.prepare(images(7))
    assert [number in cache for number in (3, 4, 5, 6, 7)] == [True, False, False, False, True]


def test_what_is_kept_of_a_step_does_not_push_out_the_rest_of_it():
    cache = EmbeddingCache(Batches(), size=2)
    cache(1, image(1)), cache(2, image(2))
    cache.prepare({1: None, **images(3)})
    assert [number in cache for number in (1, 2, 3)] == [True, False, True]


def test_where_the_memory_is_not_enough_smaller_batches_are_encoded_from_then_on():
    sam = Batches(room=1)
    cache = EmbeddingCache(sam, size=8)
    cache.prepare(images(1))
    cache.prepare(images(2, 3, 4))
    cache.prepare(images(5, 6))
    assert sam.batches == [1, 3, 1, 1, 1, 1, 1]
    assert [value_of(cache(number, None)) for number in range(1, 7)] == [1, 2, 3, 4, 5, 6]
    with pytest.raises(torch.OutOfMemoryError):
        EmbeddingCache(Batches(room=0), size=8).prepare(images(1))


def test_a_step_without_pixels_of_an_unknown_image_is_an_error_and_nothing_is_kept():
    cache = EmbeddingCache(Batches(), size=8)
    with pytest.raises(InputError, match="image 5"):
        cache.prepare({**images(1), 5: None})
    assert 1 not in cache


@pytest.mark.parametrize("size", [0, -1, 1.5])
def test_a_size_that_keeps_nothing_is_refused(size):
    with pytest.raises(ConfigError, match="cached_embeddings"):
        EmbeddingCache(FakeSam(), size=size)
