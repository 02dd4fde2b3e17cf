"""From an equation to the line: README's table and the ``Eq: ...`` slugs in the code must agree, both ways."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SLUGS = {
    "S4M/self-similarity",
    "S4M/structural-loss",
    "S4M/point-sampling",
    "S4M/refine",
    "S4M/arp",
    "S4M/ema",
    "SemiRES/iom",
    "SemiRES/cpi-u",
    "SemiRES/cpi-o",
    "SemiRES/pwa",
}
"""What this project implements; more may come with a row of their own."""
_SLUG = r"(?:S4M|SemiRES)/[a-z][a-z-]*[a-z]"
_ROW = re.compile(rf"^\|\s*`?({_SLUG})`?\s*\|(.*)\|\s*$")
_PLACE = re.compile(r"`([\w./]+\.py)::([\w.]+)`")


def index_of(readme: str) -> dict[str, list[tuple[str, str]]]:
    """Slug -> (file, symbol) of its row in the table; a row may name several places."""
    rows: dict[str, list[tuple[str, str]]] = {}
    for line in readme.splitlines():
        if row := _ROW.match(line):
            rows.setdefault(row[1], []).extend((place[1], place[2]) for place in _PLACE.finditer(row[2]))
    return rows


def slugs_in(text: str | None) -> set[str]:
    """Slugs behind ``Eq:``, also several: ``Eq: SemiRES/cpi-u, SemiRES/cpi-o``."""
    lists = re.findall(rf"Eq:\s*({_SLUG}(?:(?:\s*,\s*|\s+and\s+){_SLUG})*)", text or "")
    return {slug for entry in lists for slug in re.findall(_SLUG, entry)}


def docstrings(path: Path) -> dict[str, set[str]]:
    """Dotted symbol -> slugs of its docstring."""
    found: dict[str, set[str]] = {}

    def visit(node: ast.AST, prefix: str) -> None:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.FunctionDef | ast.ClassDef):
                name = f"{prefix}{child.name}"
                found[name] = slugs_in(ast.get_docstring(child))
                visit(child, f"{name}.")

    visit(ast.parse(path.read_text()), "")
    return found


def disagreements(root: Path, index: dict[str, list[tuple[str, str]]]) -> list[str]:
    """Rows that lead nowhere or to a place that does not say its slug, and slugs without a row."""
    wrong = [f"{slug}: no row in README with a `file.py::symbol`" for slug in sorted(SLUGS) if not index.get(slug)]
    for slug, places in index.items():
        for file, symbol in places:
            path = root / file
            known = docstrings(path) if path.is_file() else {}
            if symbol not in known:
                wrong.append(f"{slug}: {file}::{symbol} does not exist")
                continue
            said = known[symbol]
            if slug not in said:
                wrong.append(f"{slug}: the docstring of {file}::{symbol} does not say 'Eq: {slug}'")
            lines = path.read_text().splitlines()
            if not any(slug in slugs_in(line.partition("#")[2]) for line in lines):
                wrong.append(f"{slug}: no line of {file} says '# Eq: {slug}'")
    for path in sorted((root / "pipeline").rglob("*.py")):
        file = path.relative_to(root).as_posix()
        unknown = slugs_in(path.read_text()) - set(index)
        wrong += [f"{slug}: said in {file}, but no row in README" for slug in sorted(unknown)]
    return wrong


def test_the_table_leads_to_the_lines_and_the_lines_to_the_table():
    readme = ROOT / "README.md"
    assert readme.is_file(), "README.md with the table of equations does not exist"
    assert disagreements(ROOT, index_of(readme.read_text())) == []


@pytest.fixture
def project(tmp_path):
    (tmp_path / "pipeline").mkdir()
    lines = []
    for number, slug in enumerate(sorted(SLUGS)):
        lines += [f"class C{number}:", "    def f(self, x):", f'        """Doubles. Eq: {slug}."""']
        lines += [f"        return 2 * x  # Eq: {slug}", ""]
    (tmp_path / "pipeline/m.py").write_text("\n".join(lines))
    rows = [f"| `{slug}` | 1 | - | `pipeline/m.py::C{n}.f` |" for n, slug in enumerate(sorted(SLUGS))]
    return tmp_path, rows


def test_the_checker_is_content_with_a_true_table(project):
    root, rows = project
    assert disagreements(root, index_of("\n".join(rows))) == []


@pytest.mark.parametrize(
    ("break_it", "expected"),
    [
        (lambda root, rows: rows.pop(0), "S4M/arp: no row in README with"),
        (lambda root, rows: edit(root, "class C0:", "class Renamed:"), "pipeline/m.py::C0.f does not exist"),
        (lambda root, rows: edit(root, "Doubles. Eq: S4M/arp.", "Doubles."), "the docstring of pipeline/m.py::C0.f"),
        (lambda root, rows: edit(root, "# Eq: S4M/arp", "# twice"), "no line of pipeline/m.py says '# Eq: S4M/arp'"),
        (
            lambda root, rows: edit(root, "class C1", "# Eq: S4M/new-one\nclass C1"),
            "S4M/new-one: said in pipeline/m.py",
        ),
    ],
)
def test_the_checker_sees_every_kind_of_disagreement(project, break_it, expected):
    root, rows = project
    break_it(root, rows)
    assert any(expected in line for line in disagreements(root, index_of("\n".join(rows))))


def edit(root: Path, old: str, new: str) -> None:
    path = root / "pipeline/m.py"
    assert old in path.read_text()
    path.write_text(path.read_text().replace(old, new))


def test_several_slugs_may_share_one_mention():
    assert slugs_in("Eq: SemiRES/cpi-u, SemiRES/cpi-o; see the paper") == {"SemiRES/cpi-u", "SemiRES/cpi-o"}
    assert slugs_in("Eq: S4M/arp. Then SemiRES/pwa without the word") == {"S4M/arp"}
