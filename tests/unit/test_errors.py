"""An error keeps its words wherever it was raised."""

import pickle

import pytest
import torch

from pipeline import errors
from pipeline.errors import PipelineError

KINDS = [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, PipelineError)]


class Failing(torch.utils.data.Dataset):
    def __init__(self, error):
        self.error = error

    def __len__(self):
        return 2

    def __getitem__(self, index):
        try:
            raise KeyError("the reason")
        except KeyError as reason:
            raise self.error from reason


def error_of(kind):
    return kind("two\nlines", where="images/a.png", expected="RGB: 8 bits", got=16, fix="rescale it")


@pytest.mark.parametrize("kind", KINDS)
def test_the_words_survive_another_process(kind):
    error = error_of(kind)
    again = pickle.loads(pickle.dumps(error))
    assert (type(again), str(again), again.where, again.got) == (kind, str(error), "images/a.png", 16)


@pytest.mark.parametrize("kind", KINDS)
def test_a_reading_process_tells_no_traceback(kind):
    error = error_of(kind)
    loader = torch.utils.data.DataLoader(Failing(error), num_workers=1)
    with pytest.raises(kind) as caught:
        next(iter(loader))
    assert str(caught.value) == str(error)
