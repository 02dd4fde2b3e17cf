"""The cache of SAM embeddings: encodes once, keeps what was used last, never more than its size."""

import numpy as np
import pytest

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


@pytest.mark.parametrize("size", [0, -1, 1.5])
def test_a_size_that_keeps_nothing_is_refused(size):
    with pytest.raises(ConfigError, match="cached_embeddings"):
        EmbeddingCache(FakeSam(), size=size)
