"""What the cells of a table gave: a file for each cell and seed, and the table over seeds as JSON and as text."""

import json
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from jobs.ablation.plan import Job, Step, Study
from jobs.ablation.tables import TITLES, Cell, Table
from jobs.cluster.task_pool import seconds_of
from jobs.labels.summary import SUMMARY
from jobs.provenance import provenance
from jobs.training.run_directory import PROVENANCE, read_done
from pipeline.data.coco import write_json
from pipeline.errors import InputError


def read_cell(job: Job) -> dict[str, Any] | None:
    """What a cell gave; None where it has not ended yet.

    Raises:
        InputError: the file is no cell's, or of a cell with other settings.
    """
    if not job.file.exists():
        return None
    try:
        content: dict[str, Any] = json.loads(job.file.read_bytes())
        digest, metrics = content["digest"], content["metrics"]
    except (ValueError, KeyError, TypeError) as error:
        raise InputError("not a cell of a table", where=job.file, fix="delete it and run again") from error
    if digest != job.digest or not isinstance(metrics, dict):
        raise InputError(
            "this cell was run with other settings",
            where=job.file,
            expected=f"digest {job.digest[:12]} (configs, options, budget)",
            got=f"digest {str(digest)[:12]}, budget {content.get('budget')}",
            fix=f"choose another --work-dir, or delete {job.file.parent} to run the table again",
        )
    return content


def write_cell(job: Job, study: Study) -> dict[str, Any]:
    """Write what a finished cell gave, complete or not at all.

    ``wall_seconds`` are those of each task, over its attempts; a task that cells share counts in each of them.
    ``sources`` are the versions of this project that its trainings were begun with (``provenance``).
    """
    content = {
        "table": study.table.name,
        "cell": job.cell.name,
        "label": job.cell.label,
        "seed": job.seed,
        "budget": study.budget,
        "digest": job.digest,
        "tasks": {step.stage: _about(step) for step in job.steps},
        "provenance": provenance(),
        "sources": sorted({source for step in job.steps if (source := _source_of(step.folder))}),
        "wall_seconds": {step.stage: seconds_of(step.task.log) for step in job.steps},
        "metrics": metrics_of(job, study),
    }
    write_json(content, job.file)
    return content


def _about(step: Step) -> dict[str, Any]:
    options = [
        word for word, before in zip(step.task.words[1:], step.task.words, strict=False) if before == "--cfg-options"
    ]
    return {"config": step.part.config, "config_digest": step.digest, "options": options, "run": step.folder.name}


def _source_of(run: Path) -> str | None:
    try:
        source: str | None = json.loads((run / PROVENANCE).read_bytes()).get("source")
    except (OSError, ValueError, AttributeError):
        return None
    return source


def metrics_of(job: Job, study: Study) -> dict[str, float | None]:
    """AP or oIoU of the last checkpoint of the last network trained, and what is measured of pseudo-labels.

    Of instances those are CA and SQ after refinement, of sentences the counts of Figure 6.

    Raises:
        InputError: a finished task whose file is no result.
    """
    main = "mask_AP" if study.table.paper == "s4m" else "oIoU"
    metrics: dict[str, float | None] = {}
    last = [step for step in job.steps if step.stage != "labels"][-1]
    for step in (last, *(step for step in job.steps if step.stage == "labels")):
        try:
            if step.stage == "labels":
                quality = json.loads((step.folder / SUMMARY).read_bytes())["quality"]
                # Of sentences the corrections alone: the labels' oIoU has the name of the network's.
                metrics |= quality["corrections"] if "corrections" in quality else quality["after"]
            else:
                figures = read_done(step.folder)["validation"]
                metrics |= {main: figures[main], **figures}
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise InputError(
                "a finished run has no result", where=step.folder, fix=f"delete {step.folder} and run again"
            ) from error
    return metrics


def rows_of(table: Table, found: Mapping[tuple[str, int], Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Lines of a table.

    Args:
        table: Which.
        found: (cell's name, seed) -> what its file holds; cells may be missing.

    Returns:
        ``cell``, ``label``, ``seeds`` (seed -> metrics), ``sources`` (versions of this project that its trainings were
        begun with, where they are known), ``mean`` and ``std`` over seeds by figure, and ``gain``, mean and deviation
        of the first figure's differences to the first row, each within a seed: seeds differ in their labels more than
        rows do. Deviations are those of a sample (n - 1), None for one seed; figures that were not
        measured (None) do not count.
    """
    rows = []
    for cell in table.cells:
        there = {seed: content for (name, seed), content in found.items() if name == cell.name}
        sources = {source for content in there.values() for source in content.get("sources", ())}
        row = _row(table, cell, {seed: content["metrics"] for seed, content in there.items()})
        rows.append(row | {"sources": sorted(sources)})
    return [row | {"gain": _gain(row, rows[0], table.figures[0])} for row in rows]


def _gain(row: Mapping[str, Any], first: Mapping[str, Any], figure: str) -> dict[str, float | None]:
    pairs = [
        (row["seeds"][seed].get(figure), first["seeds"][seed].get(figure))
        for seed in row["seeds"]
        if seed in first["seeds"]
    ]
    differences = [value - start for value, start in pairs if value is not None and start is not None]
    if row is first or not differences:
        return {"mean": None, "std": None}
    return {
        "mean": statistics.fmean(differences),
        "std": statistics.stdev(differences) if len(differences) > 1 else None,
    }


def _row(table: Table, cell: Cell, by_seed: Mapping[int, Mapping[str, float | None]]) -> dict[str, Any]:
    mean: dict[str, float | None] = {}
    std: dict[str, float | None] = {}
    for figure in table.figures:
        values = [value for metrics in by_seed.values() if (value := metrics.get(figure)) is not None]
        mean[figure] = statistics.fmean(values) if values else None
        std[figure] = statistics.stdev(values) if len(values) > 1 else None
    seeds = {str(seed): dict(by_seed[seed]) for seed in sorted(by_seed)}
    return {"cell": cell.name, "label": cell.label, "seeds": seeds, "mean": mean, "std": std}


def write_table(study: Study, rows: Sequence[Mapping[str, Any]], missing: Sequence[str]) -> Path:
    """Write ``<paper>_<table>_<share>_percent.json`` into the work directory, and say where it is."""
    path = study.work_dir / f"{study.name}.json"
    content = {
        "table": study.table.name,
        "title": study.table.title,
        "budget": study.budget,
        "size": asdict(study.size),
        "seeds": list(study.seeds),
        "machine": provenance(),
        "rows": list(rows),
        "missing": list(missing),
    }
    write_json(content, path)
    return path


def markdown_table(results: Mapping[str, Any]) -> str:
    """The content of :func:`write_table`'s file as a Markdown table: mean ± deviation over seeds, in percent."""
    figures = list(results["rows"][0]["mean"])
    lines = [
        "| " + " | ".join(["row", "seeds", *(TITLES[figure] for figure in figures), "against the first row"]) + " |",
        "|" + "---|" * (len(figures) + 3),
    ]
    for row in results["rows"]:
        cells = [_percent(row["mean"][figure], row["std"][figure]) for figure in figures]
        cells.append(_signed(row["gain"]))
        lines.append("| " + " | ".join([row["label"], str(len(row["seeds"])), *cells]) + " |")
    return "\n".join(lines)


def markdown_over_shares(table: Table, results: Sequence[Mapping[str, Any]]) -> str:
    """A table at several shares of labels in one Markdown table, by its headlines and in percent.

    Args:
        table: Which.
        results: The contents of :func:`write_table`'s files, one of each share.

    Returns:
        A column for each headline and share, smallest share first: mean ± deviation over seeds, and in parentheses the
        difference to the first row within seeds.
    """
    results = sorted(results, key=lambda result: result["size"]["percent"])
    columns = [(figure, result) for figure in table.headlines or table.figures[:1] for result in results]
    lines = [
        "| " + " | ".join(["row", *(_head(figure, result) for figure, result in columns)]) + " |",
        "|" + "---|" * (len(columns) + 1),
    ]
    for index, row in enumerate(results[0]["rows"]):
        cells = [_with_gain(result["rows"], index, figure) for figure, result in columns]
        lines.append("| " + " | ".join([row["label"], *cells]) + " |")
    return "\n".join(lines)


def _head(figure: str, result: Mapping[str, Any]) -> str:
    seeds = len(result["seeds"])
    return f"{TITLES[figure]}, {result['size']['percent']:g} % ({seeds} seed{'s' if seeds > 1 else ''})"


def _with_gain(rows: Sequence[Mapping[str, Any]], index: int, figure: str) -> str:
    text = _percent(rows[index]["mean"][figure], rows[index]["std"][figure])
    gain = _gain(rows[index], rows[0], figure)
    return text if gain["mean"] is None else f"{text} ({_signed(gain)})"


def _signed(gain: Mapping[str, float | None]) -> str:
    mean = gain["mean"]
    return "" if mean is None else ("+" if mean >= 0 else "") + _percent(mean, gain["std"])


def _percent(mean: float | None, std: float | None) -> str:
    if mean is None:
        return "-"
    return f"{100 * mean:.1f}" + (f" ± {100 * std:.1f}" if std is not None else "")
