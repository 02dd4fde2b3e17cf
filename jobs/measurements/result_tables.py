"""Puts the measured tables of docs/results into the pages that show them: README.md and docs/tables.md.

    python -m jobs.measurements.result_tables [WORK_DIR/s4m_6_10_percent.json ...]

Tables that are named come into docs/results first: ``ablate``, and ``python -m jobs.measurements.nuclei``, write them
into their work directory. In README.md what stands between ``<!-- measured: TABLE -->`` and ``<!-- end -->`` is
replaced by that table over all shares of labels that were measured; docs/tables.md is written anew, with every figure
of every share.
"""

import argparse
import json
import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jobs.ablation.results import markdown_over_shares, markdown_table
from jobs.ablation.tables import TABLES, Table
from jobs.measurements.nuclei import NUCLEI
from pipeline.errors import InputError

ROOT = Path(__file__).parents[2]
_SHOWN = re.compile(r"(<!-- measured: (\S+) -->\n).*?(<!-- end -->)", re.DOTALL)
_PAPERS = {"s4m": "S⁴M", "semires": "SemiRES"}
_TABLES: Mapping[str, Table] = {table.name: table for table in (*TABLES, NUCLEI)}

Measured = Mapping[str, Sequence[Mapping[str, Any]]]
"""Table's name -> its results, smallest share of labels first."""


def read_measured(folder: Path) -> Measured:
    """The results of all tables in the order of the papers; a table without any is left out.

    Raises:
        InputError: a file in which cells are missing.
    """
    found: dict[str, list[Mapping[str, Any]]] = {name: [] for name in _TABLES}
    for path in sorted(path for paper in _PAPERS for path in folder.glob(f"{paper}_*.json")):
        result = json.loads(path.read_bytes())
        if result["missing"]:
            raise InputError(
                "cells of this table are missing", where=path, got=", ".join(result["missing"]), fix="end it: ablate"
            )
        found[result["table"]].append(result)
    return {name: sorted(of, key=lambda one: one["size"]["percent"]) for name, of in found.items() if of}


def published(path: Path, folder: Path) -> tuple[Path, str]:
    """A finished table of a work directory as it is kept in ``folder``: without what names places on its machine.

    Returns:
        Its file there, which is not written, and the content.

    Raises:
        InputError: no such table, cells of it are missing, or another budget's table is there.
    """
    try:
        result = json.loads(path.read_bytes())
        table, missing = result["table"], result["missing"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(
            "not a table of ablate", where=path, expected="WORK_DIR/s4m_*.json or semires_*.json"
        ) from error
    if table not in _TABLES:
        raise InputError("no such table", where=path, expected=", ".join(_TABLES), got=table)
    if path.name.partition("_")[0] not in _PAPERS:
        raise InputError("a table keeps its name", where=path, expected="s4m_*.json or semires_*.json", got=path.name)
    if missing:
        raise InputError("cells of this table are missing", where=path, got=", ".join(missing), fix="end it: ablate")
    result["size"]["folder"] = ""
    result["machine"].pop("command", None)
    kept = folder / path.name
    if kept.is_file() and (there := json.loads(kept.read_bytes())["budget"]) != result["budget"]:
        raise InputError(
            "another budget's table is there", where=kept, expected=there, got=result["budget"], fix="remove that file"
        )
    return kept, json.dumps(result, indent=1) + "\n"


def fill(text: str, measured: Measured) -> str:
    """``text`` with every marked table as it was measured.

    Raises:
        InputError: a mark of a table that is not there, or was not measured; or a measured table without a mark.
    """
    marked = {name for _, name, _ in _SHOWN.findall(text)}
    if marked != set(measured):
        raise InputError(
            "tables that are shown are not those that were measured",
            where="<!-- measured: TABLE -->",
            expected=", ".join(measured),
            got=", ".join(sorted(marked)),
        )

    def table(match: re.Match[str]) -> str:
        name = match[2]
        return f"{match[1]}{markdown_over_shares(_TABLES[name], measured[name])}\n{match[3]}"

    return _SHOWN.sub(table, text)


def page(measured: Measured) -> str:
    """Every table at every share with all its figures, and how it was made."""
    parts = [
        "# Every measured table\n",
        "Written by `python -m jobs.measurements.result_tables` from `docs/results/`; what the figures say is in the",
        "[README](../README.md#tables-of-the-papers). Percent, mean ± deviation over seeds; the last column is the",
        "difference of the first figure to the first row within seeds.\n",
    ]
    for name, results in measured.items():
        table = _TABLES[name]
        parts.append(f"## {_PAPERS[table.paper]}, {_number(name.removeprefix('semires-'))}: {table.title}\n")
        for result in results:
            parts.append(_how_made(result) + "\n")
            if "note" in result:
                parts.append(result["note"] + "\n")
            parts.append(markdown_table(result) + "\n")
    return "\n".join(parts)


def _how_made(result: Mapping[str, Any]) -> str:
    """Data, steps and the command of one table; a ``note`` in its file, written by hand, stands below."""
    name, size, share = result["table"], result["size"], f"{result['size']['percent']:g}"
    options = f"--percent {share} --seeds {len(result['seeds'])}"
    images, command = "scenes", f"s4m-pipeline ablate {name} {options} --budget {result['budget']}"
    if name == NUCLEI.name:
        steps = f"--teacher-steps {size['teacher_steps']} --student-steps {size['student_steps']}"
        images, command = "images", f"python -m jobs.measurements.nuclei COCO_FILE --image-root DIR {options} {steps}"
    return (
        f"{share} % of {size['num_train']} {images} labelled, {size['num_val']} to evaluate on; teachers"
        f" {size['teacher_steps']} steps, students {size['student_steps']}: `{command}`"
    )


def _number(name: str) -> str:
    if name[0] == "F":
        return f"Figure {name[1:]}"
    return f"Table {name}" if name[-1].isdigit() else f"`{name}`"


def main(arguments: Sequence[str] | None = None) -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tables", nargs="*", type=Path, metavar="FILE", help="tables that ablate has finished")
    args = parser.parse_args(arguments)
    try:
        for kept, content in [published(path, ROOT / "docs/results") for path in args.tables]:
            kept.write_text(content)
        _write_pages()
    except InputError as error:
        sys.exit(str(error))


def _write_pages() -> None:
    measured = read_measured(ROOT / "docs/results")
    readme = ROOT / "README.md"
    readme.write_text(fill(readme.read_text(), measured))
    (ROOT / "docs/tables.md").write_text(page(measured))


if __name__ == "__main__":
    main()
