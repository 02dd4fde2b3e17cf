"""``s4m-pipeline demo``: the whole pipeline on the embedded scenes, ending with a table of what helped and what not.

Every row of one stage has the same budget, start, seed and data; the last checkpoint is scored, nothing is selected
on the evaluation set. A second run reuses what is finished.
"""

import json
import os
import platform
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from jobs import precompute_sam, pseudo_label
from jobs.cluster.side_by_side import Command, run_side_by_side
from jobs.demo_pictures import draw_refinement
from jobs.labels.summary import SUMMARY
from jobs.progress import Progress, say
from jobs.provenance import provenance
from jobs.training.run_directory import is_interrupted, last_checkpoint, read_done
from pipeline.data.coco import load_coco, write_json
from pipeline.data.splits import draw_split, load_split, save_split
from pipeline.errors import CheckpointError, InputError
from pipeline.scenes.dataset import SceneFiles, write_scenes

CONFIGS = Path(__file__).parents[1] / "configs"
RESULTS, TABLE, PICTURE = "results.json", "results.md", "refinement.png"
REFINERS, NUM_PICTURED = ("points", "cpi_u"), 5
MAX_AT_ONCE = 8
"""Trainings at a time; each takes 1 to 2 GB."""
_LABELS_ALL = "split_all.json"


@dataclass(frozen=True)
class Size:
    """How much of everything."""

    num_train: int
    num_val: int
    percent: float
    teacher_steps: int
    student_steps: int
    burn_in: int
    num_labelled: int = 60
    """Unlabelled scenes on which each refiner's work on the teacher's masks is measured."""
    seed: int = 1
    folder: str = ""
    """Where the runs lie in the demo's folder; scenes and store are those of all sizes with as many scenes."""


FULL = Size(num_train=260, num_val=100, percent=10, teacher_steps=220, student_steps=380, burn_in=190)
LONG = Size(num_train=260, num_val=100, percent=10, teacher_steps=600, student_steps=1500, burn_in=750, folder="long")
"""A student learns more slowly than a teacher with labels alone: the papers train it four times as long."""
TINY = Size(num_train=12, num_val=4, percent=34, teacher_steps=3, student_steps=3, burn_in=1, num_labelled=NUM_PICTURED)


@dataclass(frozen=True)
class Row:
    """One line of the table: a training run."""

    name: str
    label: str
    config: str
    """Below configs/, without .py."""
    options: tuple[str, ...] = ()
    teacher: str | None = None
    """Row whose network is the first teacher."""
    is_extra: bool = False
    """Only with --all-rows."""

    @property
    def stage(self) -> Literal["teacher", "student"]:
        """Teacher or student."""
        return "student" if self.teacher else "teacher"


TEACHER = "teacher_structural"
ROWS = (
    Row("teacher_supervised", "teacher, labels only", "teacher/scenes_supervised"),
    Row(TEACHER, "teacher + structural distillation", "teacher/scenes_structural"),
    Row("student_points", "student, points + ARP (S4M)", "student/scenes_points", teacher=TEACHER),
    Row("student_cpi_u", "student, CPI-U + ARP", "student/scenes_cpi_u", teacher=TEACHER),
    Row("student_none", "student, no refinement + ARP", "student/scenes_none", teacher=TEACHER, is_extra=True),
    Row("student_iom", "student, IOM + ARP", "student/scenes_iom", teacher=TEACHER, is_extra=True),
    Row("student_cpi", "student, CPI + ARP", "student/scenes_cpi", teacher=TEACHER, is_extra=True),
    Row("student_no_arp", "student, points, no ARP", "student/scenes_points", ("model.arp=None",), TEACHER, True),
    Row(
        "student_labels",
        "student's schedule, labels only",
        "student/scenes_none",
        ("model.settings.unlabelled_weight=0",),
        TEACHER,
        True,
    ),
    Row("teacher_all_labels", "teacher, all labels", "teacher/scenes_supervised", ("split_file={all}",), None, True),
)


@dataclass(frozen=True)
class Outcome:
    """What one row gave."""

    name: str
    label: str
    steps: int
    figures: Mapping[str, float] = field(default_factory=dict)


def run(
    work_dir: Path, *, tiny: bool = False, all_rows: bool = False, long: bool = False, overwrite: bool = False
) -> None:
    """Do the demo.

    Args:
        work_dir: Everything is written here; what is finished there is reused.
        tiny: A dozen scenes and a few steps.
        all_rows: Also the rows of the longer table.
        long: Longer training, in a folder of its own; not with ``tiny``.
        overwrite: Delete the folder first.

    Raises:
        PipelineError: see the commands it runs.
    """
    if overwrite and work_dir.exists():
        _remove(work_dir)
    size = TINY if tiny else LONG if long else FULL
    runs = work_dir / size.folder
    rows = [row for row in ROWS if all_rows or not row.is_extra]
    total = 5
    say(f"[1/{total}] scenes: {size.num_train} to train on, {size.num_val} to evaluate on")
    scenes = _write_data(work_dir, size)
    say(f"[2/{total}] precompute-sam: similarity targets and proposal library")
    precompute_sam.run(CONFIGS / "sam/scenes.py", cfg_options=_sam_options(work_dir, scenes))
    at_once = min(os.cpu_count() or 1, MAX_AT_ONCE)
    say(f"[3/{total}] train-teacher, train-student: {len(rows)} runs, {at_once} at a time, one thread each")
    run_side_by_side([_command(row, size, work_dir, runs) for row in rows], at_once=at_once)
    say(f"[4/{total}] pseudo-label: the structural teacher's masks, before and after each refiner")
    labelled = {name: _label(name, size, work_dir, runs, scenes) for name in REFINERS}
    say(f"[{total}/{total}] results")
    _draw(labelled, runs, scenes)
    _report([_outcome(row, size, runs) for row in rows], quality_rows(labelled), size, runs)
    say(f"stores:  {work_dir / 'store'}; runs (TensorBoard): {runs}/*_*/")


def _remove(work_dir: Path) -> None:
    """Delete a demo's folder, and no other."""
    if not (work_dir / "scenes/scenes.json").is_file():
        raise InputError(
            "--overwrite would delete a folder that is no demo's",
            where=work_dir,
            expected="scenes/scenes.json in it",
            fix="choose another --work-dir",
        )
    shutil.rmtree(work_dir)


def _write_data(work_dir: Path, size: Size) -> SceneFiles:
    """Scenes and both splits."""
    with Progress("scenes", size.num_train + size.num_val) as bar:
        scenes = write_scenes(
            work_dir / "scenes",
            num_train=size.num_train,
            num_val=size.num_val,
            seed=size.seed,
            progress=lambda done, _total: bar.advance(done - bar.done),
        )
    coco = load_coco(scenes.annotations("train"), scenes.image_root)
    for name, percent in (("split.json", size.percent), (_LABELS_ALL, 100.0)):
        path = scenes.root / name
        if path.exists():
            load_split(path, coco)
        else:
            save_split(draw_split(coco, percent=percent, seed=size.seed), path)
    return scenes


def _sam_options(work_dir: Path, scenes: SceneFiles) -> list[str]:
    return [
        f"images={scenes.annotations('train')}",
        f"image_root={scenes.image_root}",
        f"split={scenes.root / 'split.json'}",
        f"store={work_dir / 'store'}",
    ]


def _command(row: Row, size: Size, work_dir: Path, runs: Path) -> Command:
    """The call that runs a row, or goes on with it, or finds that it is finished."""
    folder = runs / row.name
    options = [
        f"data_root={work_dir / 'scenes'}",
        f"max_iters={_steps(row, size)}",
        f"seed={size.seed}",
        *(option.replace("{all}", str(work_dir / "scenes" / _LABELS_ALL)) for option in row.options),
    ]
    if "supervised" not in row.config:
        options.append(f"store={work_dir / 'store'}")
    if row.teacher:
        options += [f"teacher_checkpoint={runs / row.teacher}", f"burn_in={size.burn_in}"]
    words = [f"train-{row.stage}", str(CONFIGS / f"{row.config}.py"), "--work-dir", str(folder)]
    words += ["--resume"] if is_interrupted(folder) else []
    words += [word for option in options for word in ("--cfg-options", option)]
    return Command(row.name, tuple(words), (row.teacher,) if row.teacher else ())


def _steps(row: Row, size: Size) -> int:
    return size.student_steps if row.teacher else size.teacher_steps


def _outcome(row: Row, size: Size, runs: Path) -> Outcome:
    """What a finished row gave."""
    return Outcome(row.name, row.label, _steps(row, size), read_done(runs / row.name)["validation"])


def _checkpoint_of(folder: Path) -> Path:
    """The last checkpoint of a finished run."""
    found = last_checkpoint(folder)
    if found is None:
        raise CheckpointError("a finished run has no checkpoint", where=folder, fix=f"delete {folder} and run again")
    return found


def _label(refiner: str, size: Size, work_dir: Path, runs: Path, scenes: SceneFiles) -> Path:
    """Label unlabelled scenes with the structural teacher and a refiner; the run's folder."""
    folder = runs / f"pseudo_labels_{refiner}"
    pseudo_label.run(
        CONFIGS / f"student/scenes_{refiner}.py",
        _checkpoint_of(runs / TEACHER),
        cfg_options=[f"data_root={scenes.root}", f"store={work_dir / 'store'}"],
        work_dir=folder,
        limit=size.num_labelled,
    )
    return folder


def _draw(labelled: Mapping[str, Path], runs: Path, scenes: SceneFiles) -> None:
    """A few unlabelled scenes with the teacher's masks and each refiner's side by side."""
    coco = load_coco(scenes.annotations("train"), scenes.image_root)
    unlabelled = load_split(scenes.root / "split.json", coco).unlabelled[:NUM_PICTURED]
    draw_refinement(coco, unlabelled, labelled, runs / PICTURE)


def quality_rows(labelled: Mapping[str, Path]) -> list[dict[str, Any]]:
    """Quality of pseudo-labels: the teacher's, then after each refiner.

    Args:
        labelled: Refiner's name -> folder of its finished pseudo-label run; all of one teacher and the same scenes.

    Returns:
        ``label``, ``outcomes`` of the refiner (None for the teacher) and ``quality`` as in ``summary.json``.
    """
    summaries = {name: json.loads((folder / SUMMARY).read_bytes()) for name, folder in labelled.items()}
    before = next(iter(summaries.values()))["quality"]["before"]
    rows: list[dict[str, Any]] = [{"label": "teacher", "outcomes": None, "quality": before}]
    for name, summary in summaries.items():
        rows.append({"label": f"after {name}", "outcomes": summary["outcomes"], "quality": summary["quality"]["after"]})
    return rows


def _report(outcomes: Sequence[Outcome], quality: Sequence[Mapping[str, Any]], size: Size, runs: Path) -> None:
    """Write results.json and results.md, print the tables and where everything is."""
    results = {
        "size": asdict(size),
        "machine": {**provenance(), "processor": platform.processor() or platform.machine()},
        "rows": [asdict(outcome) for outcome in outcomes],
        "pseudo_labels": quality,
    }
    write_json(results, runs / RESULTS)
    tables = f"{markdown_table(results)}\n\n{quality_table(results)}"
    (runs / TABLE).write_text(tables + "\n")
    say(f"\n{tables}\n")
    say(f"results: {runs / RESULTS}, {runs / TABLE}")
    say(f"picture: {runs / PICTURE}")


def markdown_table(results: Mapping[str, Any]) -> str:
    """The results as a Markdown table, one line a row, in percent."""
    lines = ["| row | steps | mask AP | AP50 | AP75 |", "|---|---|---|---|---|"]
    for row in results["rows"]:
        figures = [f"{100 * row['figures'].get(name, 0):.1f}" for name in ("mask_AP", "mask_AP50", "mask_AP75")]
        lines.append(f"| {row['label']} | {row['steps']} | {' | '.join(figures)} |")
    return "\n".join(lines)


def quality_table(results: Mapping[str, Any]) -> str:
    """Quality of the pseudo-labels as a Markdown table, in percent."""
    lines = [
        "| pseudo-labels | an image | precision | recall | right class (CA) | mean IoU (SQ) |",
        "|---|---|---|---|---|---|",
    ]
    for row in results["pseudo_labels"]:
        quality = row["quality"]
        shares = ("matched_share", "found_share", "class_accuracy", "segmentation_quality")
        figures = ["-" if quality[name] is None else f"{100 * quality[name]:.1f}" for name in shares]
        number = quality["num_pseudo_labels"] / results["size"]["num_labelled"]
        lines.append(f"| {row['label']} | {number:.1f} | {' | '.join(figures)} |")
    return "\n".join(lines)
