"""A stand-in for mmcv's compiled extension, so that mmdet imports where mmcv has none.

``pip install`` gives mmcv without compiled operators and ``mmdet.models`` then fails to import. Mask2Former
needs one of them, multi-scale deformable attention, and mmcv has that one in PyTorch as well. Import this
module before anything of mmdet; it does nothing where the real extension exists (the Docker image).
"""

import contextlib
import importlib.machinery
import io
import sys
import types
from typing import Any

from pipeline.errors import EnvironmentProblemError


class _MissingOperators(types.ModuleType):
    """Hands out a function for every operator name; calling it says what to do."""

    is_stand_in = True

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)

        def missing(*_args: object, **_kwargs: object) -> None:
            raise EnvironmentProblemError(
                f"mmcv operator {name!r} is not compiled on this machine",
                expected="a model that needs no compiled operator (Mask2Former does not), or a compiled mmcv",
                fix="use the image of docker/Dockerfile, which compiles the operators",
            )

        return missing


def register_stand_in() -> bool:
    """Make ``import mmdet.models`` work; returns whether the stand-in is in use."""
    try:
        import mmcv._ext as extension
    except ImportError:
        extension = _MissingOperators("mmcv._ext")
        extension.__spec__ = importlib.machinery.ModuleSpec("mmcv._ext", loader=None)
        extension.__file__ = __file__
        sys.modules["mmcv._ext"] = extension
    stand_in = bool(getattr(extension, "is_stand_in", False))
    if stand_in:
        _use_pytorch_deformable_attention()
    return stand_in


def _use_pytorch_deformable_attention() -> None:
    """On CUDA mmcv would call the missing kernel; send it to mmcv's own PyTorch version instead."""
    from mmcv.ops import multi_scale_deform_attn as module

    class PyTorchFunction:
        @staticmethod
        def apply(value: Any, shapes: Any, _starts: Any, locations: Any, weights: Any, _step: int) -> Any:
            return module.multi_scale_deformable_attn_pytorch(value, shapes, locations, weights)

    module.MultiScaleDeformableAttnFunction = PyTorchFunction


def _import_data_sets() -> None:
    """Here once and silently: mmdet prints two lines about a plug-in that nobody asked for."""
    with contextlib.redirect_stdout(io.StringIO()):
        import mmdet.datasets  # noqa: F401


USES_STAND_IN = register_stand_in()
_import_data_sets()
