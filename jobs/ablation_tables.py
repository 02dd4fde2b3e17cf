"""The tables of the S4M paper (arXiv 2504.05301) that ``s4m-pipeline ablate`` runs on the embedded scenes.

A table is a list of cells; a cell says what is trained and what is measured. Nothing here says how long, on which
scenes or with which seeds: that is the same for all cells of a table and comes from the command.
"""

from dataclasses import dataclass

from jobs.config_files import nearest
from pipeline.errors import InputError

AP = ("mask_AP", "mask_AP50", "mask_AP75")
LABELS = ("class_accuracy", "segmentation_quality", "matched_share", "found_share")
TITLES = {
    "mask_AP": "mask AP",
    "mask_AP50": "AP50",
    "mask_AP75": "AP75",
    "class_accuracy": "right class (CA)",
    "segmentation_quality": "mean IoU (SQ)",
    "matched_share": "on an object",
    "found_share": "objects found",
}
"""Figure -> head of its column; all are shares."""


@dataclass(frozen=True)
class Part:
    """A config and what is changed of it."""

    config: str
    """Below configs/, without .py."""
    options: tuple[str, ...] = ()
    """``key=value``."""


@dataclass(frozen=True)
class Cell:
    """One line of a table: trainings, and what is measured of them."""

    name: str
    """Of its result files."""
    label: str
    teacher: Part
    student: Part | None = None
    """Learns from ``teacher``; its own network is scored, the teacher's where there is none."""
    labels: Part | None = None
    """A student's config whose refiner is set on the masks of ``teacher``, to measure CA and SQ of what comes out."""


@dataclass(frozen=True)
class Table:
    """One table of the paper."""

    name: str
    title: str
    """What the paper's table shows."""
    cells: tuple[Cell, ...]
    figures: tuple[str, ...] = AP
    """Columns, of :data:`TITLES`."""


SUPERVISED, STRUCTURAL = Part("teacher/scenes_supervised"), Part("teacher/scenes_structural")
_NO_ARP, _NO_LABELS = "model.arp=None", "model.settings.unlabelled_weight=0"
_POINTS, _NONE = Part("student/scenes_points"), Part("student/scenes_none")


def _teachers(*rows: tuple[str, str, Part]) -> tuple[Cell, ...]:
    return tuple(Cell(name, label, part) for name, label, part in rows)


TABLES = (
    Table(
        "3",
        "Structural distillation: the teacher without and with it",
        _teachers(("off", "labels only", SUPERVISED), ("on", "+ structural distillation", STRUCTURAL)),
    ),
    Table(
        "4",
        "Which of the network's features imitate SAM, encoder's or decoder's, and by which loss",
        _teachers(
            ("none", "no distillation", SUPERVISED),
            ("encoder_feature", "encoder, feature loss", Part("ablation/sd_encoder_feature")),
            ("encoder_structural", "encoder, structural loss", Part("ablation/sd_encoder_structural")),
            ("decoder_feature", "decoder, feature loss", Part("ablation/sd_decoder_feature")),
            ("decoder_structural", "decoder, structural loss (S4M)", Part("ablation/sd_live_teacher")),
            ("store", "the same from precomputed targets", STRUCTURAL),
        ),
    ),
    Table(
        "5",
        "In which stage the network is distilled: the teacher's, the student's, both",
        (
            Cell("none", "neither", SUPERVISED, _POINTS),
            Cell("teacher", "teacher (S4M)", STRUCTURAL, _POINTS),
            Cell("student", "student", SUPERVISED, Part("ablation/sd_student")),
            Cell("both", "both", STRUCTURAL, Part("ablation/sd_student")),
        ),
    ),
    Table(
        "6",
        "Parts of S4M: what each adds to a student; all students have the same schedule",
        (
            Cell("I", "I supervised", SUPERVISED, Part("student/scenes_none", (_NO_ARP, _NO_LABELS))),
            Cell("II", "II mean teacher, no SAM", SUPERVISED, Part("student/scenes_none", (_NO_ARP,))),
            Cell("III", "III = II + structural distillation", STRUCTURAL, Part("student/scenes_none", (_NO_ARP,))),
            Cell("IV", "IV = II + point refinement", SUPERVISED, Part("student/scenes_points", (_NO_ARP,))),
            Cell("V", "V = IV + ARP", SUPERVISED, _POINTS),
            Cell("VI", "VI all (S4M)", STRUCTURAL, _POINTS),
        ),
    ),
    Table(
        "A.1",
        "Quality of pseudo-labels: class accuracy (CA) and segmentation quality (SQ)",
        (
            Cell("supervised", "teacher, labels only", SUPERVISED, labels=_NONE),
            Cell("supervised_points", "teacher, labels only, + points", SUPERVISED, labels=_POINTS),
            Cell("structural", "teacher + structural distillation", STRUCTURAL, labels=_NONE),
            Cell("structural_points", "teacher + structural distillation, + points", STRUCTURAL, labels=_POINTS),
        ),
        figures=LABELS,
    ),
    Table(
        "A.2",
        "How SAM is asked for the refined mask: kinds of prompts",
        tuple(
            Cell(name, label, STRUCTURAL, Part(config), labels=Part(config))
            for name, label, config in (
                ("none", "no refinement", "student/scenes_none"),
                ("point", "1 point", "ablation/prompt_point"),
                ("points", "3 points (S4M)", "student/scenes_points"),
                ("points_5", "5 points", "ablation/prompt_points_5"),
                ("points_10", "10 points", "ablation/prompt_points_10"),
                ("box", "box", "ablation/prompt_box"),
                ("mask", "mask", "ablation/prompt_mask"),
            )
        ),
        figures=("mask_AP", "mask_AP50", *LABELS),
    ),
)


def find_table(name: str) -> Table:
    """The table of that name, in capitals or not, with or without the dot.

    Raises:
        InputError: there is none.
    """

    def plain(text: str) -> str:
        return text.lower().replace(".", "")

    for table in TABLES:
        if plain(table.name) == plain(name):
            return table
    names = [table.name for table in TABLES]
    raise InputError(
        "no such table",
        where="TABLE",
        expected=" | ".join(names),
        got=f"{name}{nearest(name, names)}",
        fix="s4m-pipeline ablate --help says what each table shows",
    )
