"""Compiled functions give what the plain ones give, and never cost a run."""

import logging
from dataclasses import replace

import pytest
import torch

from jobs.bench.generators import scene
from jobs.bench.stock_generator import assert_same_codes, our_codes
from pipeline.sam import compiled
from pipeline.sam.compiled import Compiled
from pipeline.sam.generator_settings import GeneratorSettings
from pipeline.sam.sam2_backend import build_backend
from pipeline.sam.segment_everything import segment_everything


@pytest.fixture
def no_compiler(monkeypatch):
    """A machine on which the first call of anything compiled fails."""
    calls = []

    def compile_(function):
        def fail(*_args):
            calls.append(function)
            raise RuntimeError("no working C++ compiler\nfound")

        return fail

    monkeypatch.setattr(compiled.torch, "compile", compile_)
    return calls


def test_runs_plain_where_compiling_fails_and_says_so_once(no_compiler, caplog):
    double = Compiled(lambda x: 2 * x, name="doubling")
    with caplog.at_level(logging.WARNING):
        assert [double(torch.tensor(i)).item() for i in (1, 2, 3)] == [2, 4, 6]
    assert caplog.messages == ["doubling runs uncompiled: torch.compile failed: no working C++ compiler found"]
    assert len(no_compiler) == 1


def test_a_wrong_argument_is_not_taken_for_a_missing_compiler(monkeypatch, caplog):
    monkeypatch.setattr(compiled.torch, "compile", lambda function: function)
    root = Compiled(torch.linalg.cholesky, name="root")
    with pytest.raises(torch.linalg.LinAlgError):
        root(-torch.eye(2))
    assert torch.equal(root(torch.eye(2)), torch.eye(2))
    assert not caplog.messages


def test_a_full_gpu_is_left_to_the_caller(monkeypatch):
    def full(_batch):
        raise torch.OutOfMemoryError("no room")

    monkeypatch.setattr(compiled.torch, "compile", lambda _: full)
    decode = Compiled(lambda batch: batch, name="decoding")
    with pytest.raises(torch.OutOfMemoryError):
        decode(torch.zeros(64))


def test_a_sam_without_compiler_finds_the_same(no_compiler):
    plain, asked = build_backend("scenes-nano"), build_backend("scenes-nano", compiled=True)
    image, settings = scene((96, 96)), GeneratorSettings(points_per_side=4, pred_iou_threshold=0.0)
    found = segment_everything(asked, image, settings)
    assert len(found) > 0
    assert found == segment_everything(plain, image, settings)
    assert len(no_compiler) == 1


@pytest.mark.slow
def test_a_compiled_sam_finds_the_same_in_batches_of_any_size():
    plain, quick = build_backend("scenes-nano"), build_backend("scenes-nano", compiled=True)
    image = scene((192, 192))
    lenient = GeneratorSettings(points_per_side=16, pred_iou_threshold=0.5, stability_score_threshold=0.5)
    for settings in (
        lenient,
        replace(lenient, points_per_batch=50),
        replace(lenient, points_per_side=8, crop_n_layers=1, use_m2m=True),
    ):
        found = [our_codes(segment_everything(backend, image, settings)) for backend in (quick, plain)]
        assert_same_codes(*found)
