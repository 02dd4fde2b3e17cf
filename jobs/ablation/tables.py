"""The tables of S4M (arXiv 2504.05301) and SemiRES (ICML 2024) that ``s4m-pipeline ablate`` runs on the scenes.

A table is a list of cells; a cell says what is trained and what is measured. Nothing here says how long, on which
scenes or with which seeds: that is the same for all cells of a table and comes from the command.
"""

from dataclasses import dataclass, replace
from typing import Literal

from jobs.config_files import nearest
from pipeline.errors import InputError

Paper = Literal["s4m", "semires"]
AP = ("mask_AP", "mask_AP50", "mask_AP75")
IOU = ("oIoU", "mIoU", "Pr@0.5")
PSEUDO_LABEL_FIGURES = ("class_accuracy", "segmentation_quality", "matched_share", "found_share")
TITLES = {
    "mask_AP": "mask AP",
    "mask_AP50": "AP50",
    "mask_AP75": "AP75",
    "class_accuracy": "right class (CA)",
    "segmentation_quality": "mean IoU (SQ)",
    "matched_share": "precision",
    "found_share": "recall",
    "oIoU": "oIoU",
    "mIoU": "mIoU",
    "Pr@0.5": "Pr@0.5",
    "share_positive": "better",
    "share_negative": "worse",
    "share_equal": "equal",
    "share_uncorrected": "not corrected",
    "mean_iou_before": "IoU before",
    "mean_iou_after": "IoU after",
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
    paper: Paper = "s4m"
    """Whose: of instances, or of sentences."""
    headlines: tuple[str, ...] = ()
    """Of ``figures``, those that a table over several shares of labels shows; the first where none is named."""


SUPERVISED, STRUCTURAL = Part("teacher/scenes_supervised"), Part("teacher/scenes_structural")
_NO_ARP, _NO_LABELS = "model.arp=None", "model.settings.unlabelled_weight=0"
_POINTS, _NONE = Part("student/scenes_points"), Part("student/scenes_none")
_POINTS_ALONE = Part("student/scenes_points", (_NO_ARP,))
_LABELS_ALONE = Part("student/scenes_none", (_NO_ARP, _NO_LABELS))
_GUIDED = Part("student/scenes_none", (_NO_ARP,))
"""What ``scenes_guided`` is, with the teacher that a cell names."""
_WEIGHT_10 = "model.structural_weight=10"
_BACKBONE_ALONE = ("init_skip=^panoptic_head",)
"""``scenes-base`` has learnt masks, and with them what tells objects apart; ImageNet's networks have not."""
_ANEW = ("init_checkpoint=scenes-base", "init_skip=None")
"""The student does not go on from its teacher."""


def _teachers(*rows: tuple[str, str, Part]) -> tuple[Cell, ...]:
    return tuple(Cell(name, label, part) for name, label, part in rows)


def _begun_anew(student: Part | None) -> Part | None:
    return student and Part(student.config, (*student.options, *_ANEW))


_PARTS = (
    Cell("I", "I supervised", SUPERVISED, _LABELS_ALONE),
    Cell("II", "II Guided Distillation, no SAM", SUPERVISED, _GUIDED),
    Cell("III", "III = II + structural distillation", STRUCTURAL, _GUIDED),
    Cell("IV", "IV = II + point refinement", SUPERVISED, _POINTS_ALONE),
    Cell("V", "V = IV + ARP", SUPERVISED, _POINTS),
    Cell("VI", "VI all (S4M)", STRUCTURAL, _POINTS),
)

_S4M = (
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
    Table("6", "Parts of S4M: what each adds to a student; all students have the same schedule", _PARTS),
    Table(
        "A.1",
        "Quality of pseudo-labels: class accuracy (CA) and segmentation quality (SQ)",
        (
            Cell("supervised", "teacher, labels only", SUPERVISED, labels=_NONE),
            Cell("supervised_points", "teacher, labels only, + points", SUPERVISED, labels=_POINTS),
            Cell("structural", "teacher + structural distillation", STRUCTURAL, labels=_NONE),
            Cell("structural_points", "teacher + structural distillation, + points", STRUCTURAL, labels=_POINTS),
        ),
        figures=PSEUDO_LABEL_FIGURES,
        headlines=("class_accuracy", "segmentation_quality"),
    ),
    Table(
        "A.2",
        "How SAM is asked for the refined mask: kinds of prompts",
        tuple(
            Cell(name, label, STRUCTURAL, Part(config), labels=Part(config))
            for name, label, config in (
                ("none", "no refinement", "student/scenes_none"),
                ("point", "1 point", "ablation/prompt_points_1"),
                ("points", "3 points (S4M)", "student/scenes_points"),
                ("points_5", "5 points", "ablation/prompt_points_5"),
                ("points_10", "10 points", "ablation/prompt_points_10"),
                ("box", "box", "ablation/prompt_box"),
                ("mask", "mask", "ablation/prompt_mask"),
            )
        ),
        figures=("mask_AP", "mask_AP50", *PSEUDO_LABEL_FIGURES),
        headlines=("mask_AP", "class_accuracy", "segmentation_quality"),
    ),
    Table(
        "anew",
        "Table 6 with students that begin anew, as in the papers; all students have the same schedule",
        tuple(replace(cell, student=_begun_anew(cell.student)) for cell in _PARTS),
    ),
    Table(
        "baselines",
        "What S4M is compared with; all students have the same number of steps",
        (
            Cell("supervised", "labels only", SUPERVISED, _LABELS_ALONE),
            Cell("mean_teacher", "plain mean teacher", SUPERVISED, Part("student/scenes_mean_teacher")),
            Cell("guided", "Guided Distillation", SUPERVISED, _GUIDED),
            Cell("s4m", "S4M", STRUCTURAL, _POINTS),
        ),
    ),
    Table(
        "backbone",
        "Table 3 with a start of the backbone alone, as in the paper",
        _teachers(
            ("off", "labels only", Part(SUPERVISED.config, _BACKBONE_ALONE)),
            ("on", "+ structural distillation", Part(STRUCTURAL.config, _BACKBONE_ALONE)),
            ("on_10", "+ structural distillation, weight 10", Part(STRUCTURAL.config, (*_BACKBONE_ALONE, _WEIGHT_10))),
        ),
    ),
    Table(
        "own",
        "What the paper leaves open: the teacher at the end of the burn-in, a gate for SAM's answers, repeated masks",
        tuple(
            Cell(name, label, STRUCTURAL, Part("student/scenes_points", options))
            for name, label, options in (
                ("keep", "as the configs have it: the teacher stays", ()),
                ("copy", "the teacher becomes the student", ("at_burn_in_end=copy",)),
                ("gate", "SAM's answer only if IoU with the mask ≥ 0.5", ("model.refiner.min_iou_with_teacher=0.5",)),
                ("sure", "only if SAM predicts an IoU ≥ 0.7", ("model.refiner.min_predicted_iou=0.7",)),
                ("softmax", "points by a softmax over the map", ("model.refiner.sampling=softmax",)),
                ("repeats", "second masks of one object are kept", ("model.pseudo_labels.nms_iou_threshold=None",)),
                ("no_arp", "without ARP", (_NO_ARP,)),
            )
        ),
    ),
)

BURN_IN, BURN_IN_RELA = Part("teacher/refer_scenes_lavt"), Part("teacher/refer_scenes_rela")
_MUTUAL = Part("student/refer_scenes_none")
_LONGER = Part("student/refer_scenes_none", ("model.settings.unlabelled_weight=0",))
# Nothing overlaps by more than all of it: every pseudo-label stays the teacher's, with weights.
_PWA_ALONE = Part("student/refer_scenes_iom", ("model.refiner.iou_threshold=1.0",))
_UNVARIED = ("model.jitter.probability=0", "train_dataloader.dataset.unlabelled.dataset.pipeline.2.probability=0")


_THRESHOLDS = {"iom": 0.5, "cpi": 0.7, "cpi_u": 0.7}
"""The refiners' own, which are not said again: such a row is another table's, and is trained once for both."""


def _matched(name: str, *options: str) -> Part:
    return Part(f"student/refer_scenes_{name}", options)


def _sentences(name: str, title: str, *rows: tuple[str, str, Part | None]) -> Table:
    cells = tuple(Cell(cell, label, BURN_IN, student) for cell, label, student in rows)
    return Table(f"semires-{name}", title, cells, IOU, "semires")


_SEMIRES = (
    _sentences(
        "1",
        "Labels alone, mutual learning, and SemiRES; students and the second row have the same schedule",
        ("supervised", "labels only (burn-in)", None),
        ("longer", "labels only, as many steps more", _LONGER),
        ("baseline", "mutual learning, no SAM", _MUTUAL),
        ("semires", "SemiRES (CPI-U)", _matched("cpi_u")),
    ),
    _sentences(
        "2",
        "How the library is matched",
        *((name, name.upper().replace("_", "-"), _matched(name)) for name in ("iom", "cpi_o", "cpi_u", "cpi")),
    ),
    _sentences(
        "3",
        "Thresholds of matching",
        *(
            (f"{name}_{round(10 * at)}", f"{name.upper().replace('_', '-')}, {at}", _matched(name, *options))
            for name, keys in (
                ("iom", ("iou_threshold",)),
                ("cpi", ("under_threshold", "over_threshold")),
                ("cpi_u", ("under_threshold",)),
            )
            for at in (0.7, 0.6, 0.5)
            for options in [tuple(f"model.refiner.{key}={at}" for key in keys if at != _THRESHOLDS[name])]
        ),
    ),
    _sentences(
        "4",
        "What is done about unsure pseudo-labels, without SAM",
        ("nothing", "all are learnt", _MUTUAL),
        ("filter", "the least sure 5 % are dropped", Part(_MUTUAL.config, ("model.settings.drop_share=0.05",))),
        ("pwa", "pixels are weighted (PWA)", _PWA_ALONE),
    ),
    _sentences(
        "5",
        "Parts of SemiRES: what each adds",
        ("unvaried", "mutual learning, one view for both", Part(_MUTUAL.config, _UNVARIED)),
        ("baseline", "+ weak and strong views", _MUTUAL),
        ("pwa", "+ PWA", _PWA_ALONE),
        ("refine", "+ CPI-U, no PWA", _matched("cpi_u", "model.refiner.pixel_weights=off")),
        ("semires", "+ CPI-U and PWA (SemiRES)", _matched("cpi_u")),
    ),
    Table(
        "semires-7",
        "The same with ReLA",
        (
            Cell("supervised", "labels only (burn-in)", BURN_IN_RELA),
            Cell(
                "baseline", "mutual learning, no SAM", BURN_IN_RELA, _matched("rela_cpi_u", "model.refiner.name=none")
            ),
            Cell("semires", "SemiRES (CPI-U)", BURN_IN_RELA, _matched("rela_cpi_u")),
        ),
        IOU,
        "semires",
    ),
    Table(
        "semires-F6",
        "What matching does to the burn-in's masks (Figure 6)",
        tuple(
            Cell(name, name.upper().replace("_", "-"), BURN_IN, labels=_matched(name))
            for name in ("iom", "cpi_o", "cpi_u", "cpi")
        ),
        ("share_positive", "share_negative", "share_equal", "share_uncorrected", "mean_iou_before", "mean_iou_after"),
        "semires",
        headlines=("share_positive", "share_negative"),
    ),
    _sentences(
        "own",
        "What this project adds to the views: flips with the words for sides exchanged, hues that the words name kept",
        ("semires", "SemiRES (CPI-U)", _matched("cpi_u")),
        ("flip", "+ flips", _matched("cpi_u", "flip=0.5")),
        ("colours", "+ named colours kept", _matched("cpi_u", "model.jitter.keep_named_colours=True")),
        ("both", "+ both", _matched("cpi_u", "flip=0.5", "model.jitter.keep_named_colours=True")),
    ),
)
TABLES = (*_S4M, *_SEMIRES)


def find_table(name: str) -> Table:
    """The table of that name, in capitals or not, with or without dot and dash.

    Raises:
        InputError: there is none.
    """

    def plain(text: str) -> str:
        return text.lower().replace(".", "").replace("-", "")

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
