"""The stand-in for mmcv's compiled operators: enough for mmdet, and clear where it is not."""

import importlib.util
import subprocess
import sys

import pytest
import torch

from pipeline.errors import EnvironmentProblemError
from pipeline.models import mmcv_ops

needs_stand_in = pytest.mark.skipif(not mmcv_ops.USES_STAND_IN, reason="mmcv has its compiled operators here")


@needs_stand_in
def test_mmdet_models_import_in_a_fresh_process_after_it_only():
    def run(*lines):
        return subprocess.run(
            [sys.executable, "-W", "ignore", "-c", "\n".join(lines)], capture_output=True, check=False
        )

    without = run("import importlib", "importlib.import_module('mmcv._ext')")
    assert without.returncode != 0
    assert b"No module named 'mmcv._ext'" in without.stderr
    with_it = run("import pipeline.models.mmcv_ops", "import mmdet.models", "print(len(dir(mmdet.models)) > 10)")
    assert with_it.returncode == 0, with_it.stderr[-500:]
    assert b"True" in with_it.stdout


@needs_stand_in
def test_a_missing_operator_says_what_to_do_when_called():
    operator = sys.modules["mmcv._ext"].nms_rotated
    with pytest.raises(EnvironmentProblemError, match=r"nms_rotated.*\n.*\n.*docker/Dockerfile"):
        operator(1, keyword=2)


@needs_stand_in
def test_the_stand_in_looks_like_a_module():
    assert importlib.util.find_spec("mmcv._ext") is not None
    assert sys.modules["mmcv._ext"].__file__
    with pytest.raises(AttributeError):
        sys.modules["mmcv._ext"].__path__  # noqa: B018


@needs_stand_in
def test_the_cuda_function_computes_deformable_attention_in_pytorch():
    """One head, one level, one sampling point on a pixel centre: the attention reads that pixel."""
    from mmcv.ops import multi_scale_deform_attn as module

    value = torch.arange(12.0).reshape(1, 12, 1, 1)  # 3 x 4 map
    shapes, starts = torch.tensor([[3, 4]]), torch.tensor([0])
    locations = torch.tensor([[(2 + 0.5) / 4, (1 + 0.5) / 3]]).reshape(1, 1, 1, 1, 1, 2)
    out = module.MultiScaleDeformableAttnFunction.apply(value, shapes, starts, locations, torch.ones(1, 1, 1, 1, 1), 64)
    assert out.shape == (1, 1, 1)
    assert float(out) == pytest.approx(1 * 4 + 2)


def test_registering_again_changes_nothing():
    before = sys.modules["mmcv._ext"]
    assert mmcv_ops.register_stand_in() == mmcv_ops.USES_STAND_IN
    assert sys.modules["mmcv._ext"] is before
