"""``s4m-pipeline demo``: the whole pipeline on the embedded scenes, ending with a table of what helped and what not.

Every row of one stage has the same budget, start, seed and data; the last checkpoint is scored, nothing is selected
on the evaluation set. A second run reuses what is finished.
"""

import json
import platform
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from jobs import precompute_sam, pseudo_label, training
from jobs.demo_pictures import draw_refinement
from jobs.launch import launch
from jobs.progress import Progress
from pipeline.data.coco import load_coco, write_json
from pipeline.data.splits import draw_split, load_split, save_split
from pipeline.errors import CheckpointError, InputError
from pipeline.scenes.dataset import SceneFiles, write_scenes

CONFIGS = Path(__file__).parents[1] / "configs"
RESULTS, TABLE, PICTURE = "results.json", "results.md", "refinement.png"
PICTURED, NUM_PICTURED = ("points", "cpi_u"), 5
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
    seed: int = 1
    folder: str = ""
    """Where the runs lie in the demo's folder; scenes and store are those of all sizes with as many scenes."""


FULL = Size(num_train=260, num_val=100, percent=10, teacher_steps=220, student_steps=380, burn_in=190)
LONG = Size(
    num_train=260, num_val=100, percent=10, teacher_steps=600, student_steps=1500, burn_in=750, folder="all_rows"
)
"""A student learns more slowly than a teacher with labels alone: the papers train it four times as long."""
TINY = Size(num_train=12, num_val=4, percent=34, teacher_steps=3, student_steps=3, burn_in=1)


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
    Row("teacher_all_labels", "teacher, all labels", "teacher/scenes_supervised", ("split_file={all}",), None, True),
)


@dataclass(frozen=True)
class Outcome:
    """What one row gave."""

    name: str
    label: str
    steps: int
    figures: Mapping[str, float] = field(default_factory=dict)


def run(work_dir: Path, *, tiny: bool = False, all_rows: bool = False, overwrite: bool = False) -> None:
    """Do the demo.

    Args:
        work_dir: Everything is written here; what is finished there is reused.
        tiny: A dozen scenes and a few steps.
        all_rows: Also the rows of the longer table, and longer training.
        overwrite: Delete the folder first.

    Raises:
        PipelineError: see the commands it runs.
    """
    if overwrite and work_dir.exists():
        _remove(work_dir)
    size = TINY if tiny else LONG if all_rows else FULL
    runs = work_dir / size.folder
    rows = [row for row in ROWS if all_rows or not row.is_extra]
    total = 3 + len(rows)
    training.say(f"[1/{total}] scenes: {size.num_train} to train on, {size.num_val} to evaluate on")
    scenes = _write_data(work_dir, size)
    training.say(f"[2/{total}] precompute-sam: similarity targets and proposal library")
    precompute_sam.run(CONFIGS / "sam/scenes.py", cfg_options=_sam_options(work_dir, scenes))
    outcomes = []
    for number, row in enumerate(rows, start=3):
        training.say(f"[{number}/{total}] {row.name}: {row.label}")
        outcomes.append(_train(row, size, work_dir, runs))
    training.say(f"[{total}/{total}] results")
    _draw(work_dir, runs, scenes)
    _report(outcomes, size, runs)
    training.say(f"stores:  {work_dir / 'store'}; runs (TensorBoard): {runs}/*_*/")


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


def _train(row: Row, size: Size, work_dir: Path, runs: Path) -> Outcome:
    """Run a row, or read it where it is finished."""
    folder = runs / row.name
    steps = size.student_steps if row.teacher else size.teacher_steps
    options = [
        f"data_root={work_dir / 'scenes'}",
        f"max_iters={steps}",
        f"seed={size.seed}",
        *(option.replace("{all}", str(work_dir / "scenes" / _LABELS_ALL)) for option in row.options),
    ]
    if "supervised" not in row.config:
        options.append(f"store={work_dir / 'store'}")
    if row.teacher:
        options += [f"teacher_checkpoint={_checkpoint_of(runs / row.teacher)}", f"burn_in={size.burn_in}"]
    figures = launch(
        CONFIGS / f"{row.config}.py",
        stage=row.stage,
        cfg_options=options,
        work_dir=folder,
        resume=training.is_interrupted(folder),
    )
    return Outcome(row.name, row.label, steps, figures)


def _checkpoint_of(folder: Path) -> Path:
    """The last checkpoint of a finished run."""
    found = training.last_checkpoint(folder)
    if found is None:
        raise CheckpointError("a finished run has no checkpoint", where=folder, fix=f"delete {folder} and run again")
    return found


def _draw(work_dir: Path, runs: Path, scenes: SceneFiles) -> None:
    """Label a few unlabelled scenes with the teacher and each refiner, and draw them side by side."""
    labelled = {name: runs / f"pseudo_labels_{name}" for name in PICTURED}
    for name, folder in labelled.items():
        pseudo_label.run(
            CONFIGS / f"student/scenes_{name}.py",
            _checkpoint_of(runs / TEACHER),
            cfg_options=[f"data_root={scenes.root}", f"store={work_dir / 'store'}"],
            work_dir=folder,
            limit=NUM_PICTURED,
        )
    coco = load_coco(scenes.annotations("train"), scenes.image_root)
    unlabelled = load_split(scenes.root / "split.json", coco).unlabelled[:NUM_PICTURED]
    draw_refinement(coco, unlabelled, labelled, runs / PICTURE)


def _report(outcomes: Sequence[Outcome], size: Size, runs: Path) -> None:
    """Write results.json and results.md, print the table and where everything is."""
    results = {
        "size": asdict(size),
        "machine": {**training.provenance(), "processor": platform.processor() or platform.machine()},
        "rows": [asdict(outcome) for outcome in outcomes],
    }
    write_json(results, runs / RESULTS)
    table = markdown_table(results)
    (runs / TABLE).write_text(table + "\n")
    training.say(f"\n{table}\n")
    training.say(f"results: {runs / RESULTS}, {runs / TABLE}")
    training.say(f"picture: {runs / PICTURE}")


def markdown_table(results: Mapping[str, Any]) -> str:
    """The results as a Markdown table, one line a row, in percent."""
    lines = ["| row | steps | mask AP | AP50 | AP75 |", "|---|---|---|---|---|"]
    for row in results["rows"]:
        figures = [f"{100 * row['figures'].get(name, 0):.1f}" for name in ("mask_AP", "mask_AP50", "mask_AP75")]
        lines.append(f"| {row['label']} | {row['steps']} | {' | '.join(figures)} |")
    return "\n".join(lines)


def read_results(path: Path) -> dict[str, Any]:
    """A results.json that was written by the demo."""
    results: dict[str, Any] = json.loads(path.read_text())
    return results
