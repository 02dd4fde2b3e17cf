"""Who may import whom. LAYERS is the documentation of it; the test reads every import statement there is.

A file belongs to the most specific entry. It may import from its own entry and from all below, never from above.
"""

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

LAYERS: list[tuple[str, ...]] = [
    ("jobs",),
    ("pipeline.models",),
    ("pipeline.sam.nano_training",),
    ("pipeline.evaluation", "pipeline.scenes"),
    ("pipeline.data",),
    ("pipeline.refine", "pipeline.distill"),
    ("pipeline.sam", "pipeline.stores"),
    ("pipeline.masks", "pipeline.images", "pipeline.full_disk"),
    ("pipeline.errors",),
    ("data_schemas",),
]

SOLE_IMPORTERS: dict[str, set[str]] = {
    "ray": {"jobs/cluster/ray_runner.py", "jobs/training/ray_workers.py"},
    "sam2": {"pipeline/sam/sam2_backend.py", "jobs/bench/stock_generator.py"},
    "pycocotools": {"pipeline/masks/rle.py", "pipeline/evaluation/coco_ap.py"},
}
"""Library -> the only files that may import it."""

SCHEMA_LIBRARIES = {"numpy", "pyarrow"}
"""All that data_schemas may import beside the standard library."""

NOBODY_IMPORTS = ("configs", "tests")
"""Configurations are loaded by path."""


def violations(root: Path) -> list[str]:
    """Everything that crosses a rule, as ``file:line: what``."""
    found = []
    for folder in ("pipeline", "jobs", "data_schemas"):
        for path in sorted((root / folder).rglob("*.py")):
            name = path.relative_to(root).as_posix()
            for line, module in imports(path, root):
                found += [f"{name}:{line}: {problem}" for problem in problems(name, module)]
    return found


def problems(name: str, module: str) -> Iterator[str]:
    """What is wrong with ``module`` being imported in the file ``name``."""
    library = module.split(".")[0]
    if library in SOLE_IMPORTERS and name not in SOLE_IMPORTERS[library]:
        yield f"imports {library}, which only {' and '.join(sorted(SOLE_IMPORTERS[library]))} may"
    if library in NOBODY_IMPORTS:
        yield f"imports {library}, which nobody may"
    importer = name.removesuffix(".py").replace("/", ".")
    own, other = layer(importer), layer(module)
    if own is not None and other is not None:
        if other < own:
            yield f"imports {module}, which is above it"
        elif other == own and entry(importer) != entry(module):
            yield f"imports {module}, which is beside it"
    free = {*SCHEMA_LIBRARIES, *sys.stdlib_module_names, "data_schemas"}
    if name.startswith("data_schemas/") and library not in free:
        yield f"imports {library}; schemas use {' and '.join(sorted(SCHEMA_LIBRARIES))} only"


def layer(module: str) -> int | None:
    """Index into LAYERS, None for what is not ours (or the bare package, which holds nothing)."""
    return next((i for i, entries in enumerate(LAYERS) if entry(module) in entries), None)


def entry(module: str) -> str | None:
    """The most specific entry of LAYERS that a module belongs to."""
    found = [e for entries in LAYERS for e in entries if f"{module}.".startswith(f"{e}.")]
    return max(found, key=len, default=None)


def imports(path: Path, root: Path) -> Iterator[tuple[int, str]]:
    """Line and absolute name of every module imported in a file, at any depth; also by ``import_module("...")``."""
    package = path.relative_to(root).parent.as_posix().split("/")
    for node in ast.walk(ast.parse(path.read_text(), filename=str(path))):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            module = ".".join([*base, *([node.module] if node.module else [])])
            # "from pipeline import sam" imports pipeline.sam.
            yield from (
                (node.lineno, f"{module}.{alias.name}" if alias.name != "*" else module) for alias in node.names
            )
        elif isinstance(node, ast.Call) and ast.unparse(node.func).split(".")[-1] in ("import_module", "__import__"):
            first = node.args[0] if node.args else None
            if isinstance(first, ast.Constant) and isinstance(first.value, str):
                yield node.lineno, first.value


def test_no_layer_is_crossed():
    assert violations(ROOT) == []


def test_every_module_has_a_layer():
    folders = [p for p in (ROOT / "pipeline").iterdir() if p.is_dir() and list(p.glob("*.py"))]
    modules = [p.stem for p in (ROOT / "pipeline").glob("*.py") if p.stem != "__init__"]
    names = [f"pipeline.{name}" for name in [*(p.name for p in folders), *modules]]
    assert [name for name in names if layer(name) is None] == []


def test_packages_export_nothing():
    """One import path for each name: an ``__init__.py`` holds a docstring and nothing else."""
    for path in [p for f in ("pipeline", "jobs", "data_schemas") for p in (ROOT / f).rglob("__init__.py")]:
        body = ast.parse(path.read_text()).body
        assert len(body) == 1, path
        assert isinstance(body[0], ast.Expr), path


@pytest.mark.parametrize(
    ("file", "text", "expected"),
    [
        ("pipeline/masks/x.py", "from pipeline.sam.interface import SamBackend", "SamBackend, which is above it"),
        ("pipeline/masks/x.py", "def f():\n    import pipeline.models.y", "pipeline.models.y, which is above it"),
        ("pipeline/masks/x.py", "from pipeline import refine", "pipeline.refine, which is above it"),
        ("pipeline/masks/x.py", "from ..stores import shards", "pipeline.stores.shards, which is above it"),
        ("pipeline/masks/x.py", "from pipeline.images import read_image", "read_image, which is beside it"),
        ("pipeline/refine/x.py", "import pipeline.distill.y", "pipeline.distill.y, which is beside it"),
        ("pipeline/sam/x.py", "import pipeline.sam.nano_training", "nano_training, which is above it"),
        ("pipeline/models/x.py", "from importlib import import_module as i\nimport jobs", "jobs, which is above it"),
        (
            "pipeline/models/x.py",
            "import importlib\nimportlib.import_module('jobs.cli')",
            "jobs.cli, which is above it",
        ),
        ("pipeline/errors.py", "from pipeline.masks import rle", "pipeline.masks.rle, which is above it"),
        ("data_schemas/x.py", "from pipeline.errors import InputError", "InputError, which is above it"),
        ("data_schemas/x.py", "import torch", "imports torch; schemas use numpy and pyarrow only"),
        (
            "pipeline/data/x.py",
            "import ray",
            "imports ray, which only jobs/cluster/ray_runner.py and jobs/training/ray_workers.py may",
        ),
        ("jobs/x.py", "from ray.data import from_items", "imports ray, which only"),
        ("pipeline/sam/x.py", "from sam2.build_sam import build_sam2", "imports sam2, which only"),
        ("pipeline/data/x.py", "import pycocotools.mask as m", "imports pycocotools, which only"),
        ("jobs/x.py", "from configs.sam.scenes import store", "imports configs, which nobody may"),
    ],
)
def test_the_checker_sees_each_kind_of_crossing(tmp_path, file, text, expected):
    (tmp_path / file).parent.mkdir(parents=True)
    (tmp_path / file).write_text(f'"""Module."""\n\n{text}\n')
    found = [line for line in violations(tmp_path) if expected in line]
    assert found, violations(tmp_path)
    assert found[0].startswith(f"{file}:")


def test_the_checker_lets_pass_what_is_allowed(tmp_path):
    allowed = {
        "jobs/cluster/ray_runner.py": "import ray\nfrom jobs.settings import x\nimport pipeline.models.y",
        "jobs/cli.py": "import pipeline.errors",
        "pipeline/models/a.py": "from pipeline.data.coco import b\nfrom . import c\nfrom .c import d\nimport torch",
        "pipeline/sam/sam2_backend.py": "import sam2\nfrom pipeline.masks import rle\nimport data_schemas.proposals",
        "data_schemas/a.py": "import json\nimport numpy as np\nimport pyarrow as pa\nfrom data_schemas.b import c",
    }
    for file, text in allowed.items():
        (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / file).write_text(text + "\n")
    assert violations(tmp_path) == []
