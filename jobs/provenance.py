"""What a result was made with."""

import hashlib
import os
import platform
import sys
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

_ROOT = Path(__file__).parents[1]
_PARTS = tuple(_ROOT / name for name in ("pipeline", "jobs", "data_schemas"))


def provenance() -> dict[str, Any]:
    """Versions, machine and command of a run, and which source of this project it ran with."""
    from importlib.metadata import version

    names = ("torch", "torchvision", "onedl-mmdetection", "onedl-mmengine", "onedl-mmcv", "rf-sam-2", "numpy")
    return {
        "command": sys.argv,
        "python": platform.python_version(),
        "machine": f"{platform.machine()}, {os.cpu_count()} cores",
        "versions": {name: version(name) for name in names},
        "source": _own_source(),
    }


@cache
def _own_source() -> str:
    return source_digest(_PARTS)


def source_digest(folders: Sequence[Path]) -> str:
    """16 hex digits that tell two versions of this project apart: of its code and its embedded weights.

    Args:
        folders: Packages; their Python files and what lies in an ``assets`` folder count.
    """
    digest = hashlib.sha256()
    for folder in folders:
        files = [path for path in folder.rglob("*") if path.suffix == ".py" or path.parent.name == "assets"]
        for path in sorted(file for file in files if file.is_file()):
            content = hashlib.sha256(path.read_bytes()).hexdigest()
            digest.update(f"{folder.name}/{path.relative_to(folder).as_posix()} {content}\n".encode())
    return digest.hexdigest()[:16]
