"""From a table to tasks: which trainings its cells need for each seed, each of them once, and what they are called.

A training is named by a digest of its resolved config, so cells, and tables in one folder, that need the same teacher
share it, and a changed config is another training.
"""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from jobs.ablation.tables import Cell, Paper, Part, Table
from jobs.cluster.task_pool import Task
from jobs.config_files import as_text
from jobs.demo import FULL, LONG, TINY, Size
from jobs.labels.settings import KEYS
from jobs.networks import open_config
from jobs.training.checks import KNOWN_KEYS
from jobs.training.run_directory import DONE
from jobs.training.runs import has_teacher
from pipeline.errors import ConfigError

CONFIGS = Path(__file__).parents[2] / "configs"
BUDGETS: Mapping[Paper, Mapping[str, Size]] = {
    "s4m": {"tiny": TINY, "short": FULL, "full": LONG},
    "semires": {
        "tiny": Size(num_train=12, num_val=2, percent=34, teacher_steps=3, student_steps=3, burn_in=0, num_labelled=2),
        "short": Size(num_train=1000, num_val=60, percent=1, teacher_steps=300, student_steps=400, burn_in=0),
        "full": Size(num_train=1000, num_val=60, percent=1, teacher_steps=600, student_steps=1600, burn_in=0),
    },
}
"""One per cent of few scenes is none: sentences need more of them."""
Stage = Literal["teacher", "student", "labels"]
_NUM_CHECKPOINTS = 4
"""Of a training: what a kill loses at most is one part of so many."""


@dataclass(frozen=True)
class Study:
    """What all cells of a table have in common."""

    table: Table
    budget: str
    num_seeds: int
    work_dir: Path
    """Absolute: workers of Ray run elsewhere. Shared by tables, and by shares of labelled scenes."""
    percent: float | None = None
    """Of the scenes that are labelled; the budget's own where None."""
    configs: Path = CONFIGS

    @property
    def size(self) -> Size:
        """Scenes and steps."""
        size = BUDGETS[self.table.paper][self.budget]
        return size if self.percent is None else replace(size, percent=self.percent)

    @property
    def seeds(self) -> range:
        """1 and on: of the labelled draw and of the training."""
        return range(1, self.num_seeds + 1)

    @property
    def scenes(self) -> Path:
        """The scenes of all seeds."""
        return self.work_dir / "data" / ("scenes" if self.table.paper == "s4m" else "scenes_of_sentences")

    def split(self, seed: int) -> Path:
        """Which scenes are labelled."""
        return self._data(seed) / "split.json"

    def store(self, seed: int) -> Path:
        """Similarity targets of those; of sentences the proposals of all scenes, whatever the seed."""
        return self._data(seed) / "store" if self.table.paper == "s4m" else self.work_dir / "data/proposals"

    def data_options(self, seed: int) -> list[str]:
        """What configs are told about images and labels."""
        return [f"data_root={self.scenes}", f"split_file={self.split(seed)}"]

    def _data(self, seed: int) -> Path:
        return self.scenes.parent / f"{'' if self.table.paper == 's4m' else 'sentences_'}{self.share}" / f"seed_{seed}"

    @property
    def share(self) -> str:
        """How many are labelled, in names of files."""
        return f"{self.size.percent:g}_percent"

    @property
    def name(self) -> str:
        """Of the table's file."""
        name = self.table.name.lower().replace(".", "").replace("-", "_").removeprefix("semires_")
        return f"{self.table.paper}_{name}_{self.share}"

    def cell_file(self, cell: Cell, seed: int) -> Path:
        """What a cell gave."""
        return self.work_dir / "results" / self.table.name / self.share / f"{cell.name}_seed{seed}.json"


@dataclass(frozen=True)
class Step:
    """A task of a cell and what is known of it."""

    stage: Stage
    part: Part
    digest: str
    """Of the resolved config, wherever the folder lies."""
    folder: Path
    task: Task
    num_steps: int
    """Its share of the work, in training steps."""

    @property
    def is_done(self) -> bool:
        """Whether its result is there."""
        return (self.folder / (DONE if self.stage != "labels" else "summary.json")).is_file()


@dataclass(frozen=True)
class Job:
    """A cell with a seed."""

    cell: Cell
    seed: int
    steps: tuple[Step, ...]
    """Teacher first."""
    file: Path

    @property
    def digest(self) -> str:
        """Of everything that was asked for."""
        return hashlib.sha256(" ".join(step.digest for step in self.steps).encode()).hexdigest()


@dataclass
class Planner:
    """Makes jobs; configs that were read once are not read again."""

    study: Study
    _read: dict[tuple[Any, ...], Step] = field(default_factory=dict)

    def jobs(self) -> list[Job]:
        """Every cell with every seed, all of one seed together: a whole table is there after each seed.

        Raises:
            ConfigError: configs that are not there (all are named), or one that cannot be used.
        """
        refuse_missing(self.study)
        return [self._job(cell, seed) for seed in self.study.seeds for cell in self.study.table.cells]

    def _job(self, cell: Cell, seed: int) -> Job:
        teacher = self._step("teacher", cell.teacher, seed)
        steps = [teacher]
        if cell.student is not None:
            steps.append(self._step("student", cell.student, seed, teacher))
        if cell.labels is not None:
            steps.append(self._step("labels", cell.labels, seed, teacher))
        return Job(cell, seed, tuple(steps), self.study.cell_file(cell, seed))

    def _step(self, stage: Stage, part: Part, seed: int, teacher: Step | None = None) -> Step:
        key = (stage, part, seed, teacher.task.name if teacher else None)
        if key not in self._read:
            self._read[key] = self._make(stage, part, seed, teacher)
        return self._read[key]

    def _make(self, stage: Stage, part: Part, seed: int, teacher: Step | None) -> Step:
        file = self.study.configs / f"{part.config}.py"
        options = self._options(stage, part, seed, teacher)
        config = open_config(file, options, also_known=KEYS if stage == "labels" else KNOWN_KEYS)
        if stage != "labels" and has_teacher(config) != (stage == "student"):
            raise ConfigError(f"a table wants a {stage} here", where=file, got="a config of the other stage")
        text = as_text(config).replace(str(self.study.work_dir), "WORK_DIR")
        digest = hashlib.sha256(f"{stage} {teacher.digest if teacher else ''} {text}".encode()).hexdigest()
        name = f"{stage}_{file.stem}_{digest[:8]}_seed{seed}"
        folder = self.study.work_dir / "runs" / name
        words = self._words(stage, file, folder, teacher)
        words += [word for option in options for word in ("--cfg-options", option)]
        task = Task(
            name,
            tuple(words),
            self.study.work_dir / "logs" / f"{name}.log",
            after=(teacher.task.name,) if teacher else (),
            run_dir=None if stage == "labels" else folder,
        )
        return Step(stage, part, digest, folder, task, _work(stage, self.study.size))

    def _options(self, stage: Stage, part: Part, seed: int, teacher: Step | None) -> list[str]:
        size, study = self.study.size, self.study
        options = study.data_options(seed)
        bare = open_config(study.configs / f"{part.config}.py", ())
        if "store" in bare._cfg_dict:
            options.append(f"store={study.store(seed)}")
        if stage != "labels":
            steps = size.teacher_steps if stage == "teacher" else size.student_steps
            options += [f"max_iters={steps}", f"seed={seed}"]
            options.append(f"checkpoint_interval={max(1, steps // _NUM_CHECKPOINTS)}")
        else:
            options.append(f"pseudo_label.seed={seed}")
        if stage == "student" and teacher is not None:
            options.append(f"teacher_checkpoint={teacher.folder}")
        if bare._cfg_dict.get("burn_in") and stage == "student":  # a config without one stays without
            options.append(f"burn_in={size.burn_in}")
        return [*options, *part.options]

    def _words(self, stage: Stage, file: Path, folder: Path, teacher: Step | None) -> list[str]:
        if stage != "labels" or teacher is None:
            return [f"train-{stage}", str(file), "--work-dir", str(folder)]
        size = self.study.size
        checkpoint = teacher.folder / f"iter_{size.teacher_steps}.pth"
        some = ["--limit", str(size.num_labelled)] if self.study.table.paper == "semires" else []
        return ["pseudo-label", str(file), str(checkpoint), "--work-dir", str(folder), *some]


def tasks_of(jobs: Sequence[Job]) -> list[Task]:
    """What is still to run for these jobs, each task once; nothing waits for what is done."""
    steps = {step.task.name: step for job in jobs for step in job.steps}
    left = {name for name, step in steps.items() if not step.is_done}
    return [
        replace(steps[name].task, after=tuple(n for n in steps[name].task.after if n in left))
        for name in steps
        if name in left
    ]


def missing_configs(study: Study) -> dict[str, list[str]]:
    """Config of the table that is not there -> labels of the cells that name it."""
    missing: dict[str, list[str]] = {}
    for cell in study.table.cells:
        named = [part.config for part in (cell.teacher, cell.student, cell.labels) if part is not None]
        for name in dict.fromkeys(named):
            if not (study.configs / f"{name}.py").is_file():
                missing.setdefault(name, []).append(cell.label)
    return missing


def refuse_missing(study: Study) -> None:
    """ConfigError where a cell names a config that is not there."""
    missing = missing_configs(study)
    if missing:
        cells = [f"\n    - configs/{name}.py, of: {'; '.join(labels)}" for name, labels in missing.items()]
        raise ConfigError(
            f"table {study.table.name} names configs that are not there",
            where=study.configs,
            got="".join(cells),
            fix="write them, or correct jobs/ablation/tables.py",
        )


def _work(stage: Stage, size: Size) -> int:
    # A student's step is about two of a teacher's: two batches, two networks, SAM. Labelling is short.
    return {"teacher": size.teacher_steps, "student": 2 * size.student_steps, "labels": size.teacher_steps // 4 + 1}[
        stage
    ]
