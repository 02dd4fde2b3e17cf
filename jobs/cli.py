"""The console command ``s4m-pipeline``: options, exit codes and error messages; the work is in ``jobs/<verb>.py``.

Nothing heavy is imported at module level, so ``--help`` answers at once. A command function imports its job,
hands the options over and returns; what is said on errors is decided in :func:`main` alone.
"""

import signal
import sys
from collections.abc import Sequence
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Annotated, Any, Literal, NoReturn

import typer

from jobs import cli_options as opt
from pipeline.errors import InputError, PipelineError
from pipeline.full_disk import full_disk

EXIT_CODES = (
    "Exit codes: 0 done; 1 unexpected error; 2 wrong usage; 3 bad input, configuration or store of another origin; "
    "4 more bad images than allowed; 5 store damaged; 6 environment (no GPU, package, cluster or room); "
    "130 interrupted; 143 terminated."
)


app = typer.Typer(
    help="A few labelled images and many unlabelled ones into a good segmentation model, with SAM 2 as the guide.",
    epilog=EXIT_CODES,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
_command = partial(app.command, epilog=EXIT_CODES)


@app.callback(epilog=EXIT_CODES)
def _common(version: opt.Version = False, debug: opt.Debug = False) -> None:
    pass


def _run(job: str, options: dict[str, Any]) -> None:
    """Hand the options to ``jobs/<job>.py``, whose ``run`` has parameters of the same names."""
    if options.get("resume") and options.get("overwrite"):
        raise typer.BadParameter("--resume and --overwrite exclude each other: go on, or start again?")
    import_module(f"jobs.{job}").run(**options)


@_command("precompute-sam")
def precompute_sam(
    config_path: opt.Config,
    cfg_options: opt.CfgOptions,
    work_dir: opt.WorkDir = None,
    resume: Annotated[bool, typer.Option("--resume", help="The default: a store is always gone on with.")] = False,
    overwrite: opt.Overwrite = False,
    dry_run: opt.DryRun = False,
    limit: opt.Limit = None,
    ray_address: opt.RayAddress = "local",
    gpu: opt.Gpu = None,
) -> None:
    """Compute SAM's proposals and similarity targets for a data set into a store.

    Run it again after an interruption: only what is missing is computed. A finished store is left alone.
    """
    _run("precompute_sam", locals())


@_command("train-teacher")
def train_teacher(
    config_path: opt.Config,
    cfg_options: opt.CfgOptions,
    work_dir: opt.WorkDir = None,
    resume: opt.Resume = False,
    overwrite: opt.Overwrite = False,
    dry_run: opt.DryRun = False,
    workers: opt.Workers = 1,
    ray_address: opt.RayAddress = "local",
) -> None:
    """Train the teacher on the labelled images, with SAM's structure as a second signal."""
    _run("train_teacher", locals())


@_command("train-student")
def train_student(
    config_path: opt.Config,
    cfg_options: opt.CfgOptions,
    work_dir: opt.WorkDir = None,
    resume: opt.Resume = False,
    overwrite: opt.Overwrite = False,
    dry_run: opt.DryRun = False,
    workers: opt.Workers = 1,
    ray_address: opt.RayAddress = "local",
) -> None:
    """Train the student on the teacher's masks, refined by SAM or by its stored proposals."""
    _run("train_student", locals())


@_command("pseudo-label")
def pseudo_label(
    config_path: opt.Config,
    checkpoint: opt.Checkpoint,
    cfg_options: opt.CfgOptions,
    network: opt.Network = "teacher",
    work_dir: Annotated[
        Path | None, typer.Option(help="Where to write [default: work_dirs/pseudo_labels_FOLDER_NAME of the config].")
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="The default: a run is always gone on with.")] = False,
    overwrite: opt.Overwrite = False,
    dry_run: opt.DryRun = False,
    limit: opt.Limit = None,
    ray_address: opt.RayAddress = "local",
) -> None:
    """Label images with a trained model and a refiner: COCO results and Parquet, before and after.

    The images are the config's unlabelled ones, or those of --cfg-options pseudo_label.images=PATH (a COCO file or a
    folder). The refiner is the config's, or that of --cfg-options model.refiner.name=NAME; with another name, the
    other settings of the config's refiner do not count.

    Run it again after an interruption: only what is missing is labelled. A finished run is left alone.
    """
    _run("pseudo_label", locals())


@_command("evaluate")
def evaluate(
    config_path: opt.Config,
    checkpoint: Annotated[
        Path, typer.Argument(metavar="CHECKPOINT", help="The weights to use, or a COCO results list (.json).")
    ],
    cfg_options: opt.CfgOptions,
    network: opt.ValidatedNetwork = None,
    work_dir: Annotated[
        Path | None, typer.Option(help="Where to write evaluation.json [default: beside the checkpoint].")
    ] = None,
    overwrite: opt.Overwrite = False,
    limit: opt.Limit = None,
) -> None:
    """COCO mask AP, per class too, and the quality of pseudo-labels; of referring expressions oIoU, mIoU and Pr@t.

    Measured on the validation set of the config, or on that of --cfg-options val_annotations=FILE and
    val_images=FOLDER; val_part=unlabelled takes the unlabelled images of split_file. Of referring expressions every
    sentence of --cfg-options val_split=NAME is measured.
    """
    _run("evaluate", locals())


@_command("split")
def split(
    annotations: Annotated[Path, typer.Argument(metavar="ANNOTATIONS", help="A COCO file with all images.")],
    out: Annotated[Path, typer.Option(help="Folder to write into; a split that is there is never redrawn.")],
    percent: Annotated[float | None, typer.Option(help="Share of the images that are labelled.")] = None,
    seed: Annotated[int, typer.Option(help="Which draw; of one seed, a larger percent holds the smaller.")] = 0,
    names: Annotated[Path | None, typer.Option(help="Instead of a draw: a list, one image name a line.")] = None,
    image_root: Annotated[Path | None, typer.Option(help="Folder of the images [default: beside the file].")] = None,
    expressions: Annotated[
        Path | None,
        typer.Option(help="Referring expressions (refs(unc).p and the like): the images that their train split is in."),
    ] = None,
    draw: Annotated[
        Literal["nested", "published"],
        typer.Option(help="With --expressions: as for instances, or as released with SemiRES (seed 0)."),
    ] = "nested",
) -> None:
    """Divide a data set into labelled and unlabelled images, once and for all.

    Writes split.json, which configs name as split_file, and the two parts as COCO files: labelled.json, and
    unlabelled.json without annotations. With --expressions, split.json alone.
    """
    if (percent is None) == (names is None):
        raise typer.BadParameter("give exactly one of --percent and --names")
    _run("split", locals())


@_command("convert-cityscapes")
def convert_cityscapes(
    root: Annotated[Path, typer.Argument(metavar="ROOT", help="Folder with leftImg8bit and gtFine.")],
    out: Annotated[Path | None, typer.Option(help="Folder to write into [default: ROOT/annotations].")] = None,
    parts: Annotated[
        list[str] | None, typer.Option("--part", help="train or val; once for each [default: both].")
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace files of other ground truth.")] = False,
) -> None:
    """COCO files of Cityscapes' instances: 8 classes, groups as crowds, void kept for Cityscapes' own evaluation.

    Writes train.json and val.json; the images stay where they are. Run it again after an interruption: a part that is
    there is left alone.
    """
    _run("convert_cityscapes", {**locals(), "parts": parts or ["train", "val"]})


@_command("correction-stats")
def correction_stats(
    labels: Annotated[
        Path,
        typer.Argument(
            metavar="LABELS", help="A run directory of pseudo-label, COCO results, or network.json of expressions."
        ),
    ],
    store: Annotated[str, typer.Option(help="The proposal library.")],
    annotations: Annotated[Path, typer.Option(help="COCO file with the ground truth.")],
    image_root: Annotated[Path, typer.Option(help="Folder of the images.")],
    out: Annotated[Path, typer.Option(help="JSON file to write.")],
    expressions: Annotated[
        Path | None, typer.Option(help="Referring expressions that the masks answer; without it, a detector's masks.")
    ] = None,
    split: Annotated[str, typer.Option(help="Of the expressions.")] = "all",
    strategies: Annotated[
        list[str] | None,
        typer.Option(
            "--strategy", help="NAME or NAME:key=value,...; once for each [default: iom, cpi, cpi_u and cpi_o]."
        ),
    ] = None,
    with_oracle: Annotated[
        bool, typer.Option("--oracle/--no-oracle", help="Also what the best proposals could do.")
    ] = True,
    limit: opt.Limit = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the file.")] = False,
) -> None:
    """How often each way to match makes a teacher's masks better or worse (SemiRES, Figure 6), and the best possible.

    Every mask is positive (its IoU with the ground truth rises), negative, equal, or uncorrected (nothing matched).
    """
    _run("correction_stats", {**locals(), "strategies": strategies or []})


@_command("predict")
def predict(
    config_path: opt.Config,
    checkpoint: opt.Checkpoint,
    image: Annotated[Path, typer.Argument(metavar="IMAGE", help="A picture.")],
    cfg_options: opt.CfgOptions,
    sentence: Annotated[
        str | None, typer.Option(help="What to look for, with a network that reads sentences (configs/*/refer*.py).")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Picture to write [default: IMAGE_predicted.png here].")] = None,
    network: opt.ValidatedNetwork = None,
    min_score: Annotated[float, typer.Option(min=0, max=1, help="Less sure objects are not shown.")] = 0.5,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the picture.")] = False,
) -> None:
    """What a network finds in one image, or which object a sentence means, drawn over the image."""
    _run("predict", locals())


@_command("export-proposals")
def export_proposals(
    store: Annotated[str, typer.Argument(metavar="STORE", help="A finished proposal library.")],
    out: Annotated[Path, typer.Argument(metavar="OUT", help="The JSON file to write; for sa1b the folder.")],
    format: Annotated[
        Literal["coco-results", "sa1b"], typer.Option(help="One COCO results list, or a JSON file for each image.")
    ],
    category_id: Annotated[int, typer.Option(help="Of all masks; coco-results only.")] = 1,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace what is there.")] = False,
) -> None:
    """Write a proposal library in a form that other tools read.

    coco-results: score is the predicted IoU; stability and prompt are lost. sa1b: the public form of SA-1B, with
    everything; crop_box is the whole image. Sorted by image id and score; the same library gives the same bytes.
    """
    _run("export_proposals", locals())


@_command("import-proposals")
def import_proposals(
    source: Annotated[
        Path,
        typer.Argument(metavar="SOURCE", help="A COCO results file, or a folder of JSON files: SA-1B's or SAM 1's."),
    ],
    store: Annotated[str, typer.Argument(metavar="STORE", help="Where the library is to be: folder or address.")],
    images: Annotated[Path, typer.Option(help="The images that the masks are of: a COCO file, or their folder.")],
    image_root: Annotated[Path | None, typer.Option(help="Folder of the images [default: beside the file].")] = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace the library that is there, once SOURCE is found sound.")
    ] = False,
) -> None:
    """Make a proposal library of masks from elsewhere; configs name its store like any other.

    Everything is checked before anything is written: run lengths, sizes, scores (0 to 1), repeated masks, images that
    the set does not have. COCO results are told by image_id, SA-1B's files by file_name, and the lists that SAM 1's
    scripts/amg.py --convert-to-rle writes by the name of their file (photo.json is of photo.jpg). Area and box are
    those of the mask, whatever is stated (differences are counted); masks without a pixel are left out; images without
    masks get none. COCO results have no stability (0 is stored) and no prompt (-1, -1). A file of any size is read in
    pieces. Run it again after an interruption: only what is missing is imported.
    """
    _run("import_proposals", locals())


@_command("demo")
def demo(
    work_dir: Annotated[Path, typer.Option(help="Where to write; a second run reuses what is there.")] = Path("demo"),
    tiny: Annotated[bool, typer.Option("--tiny", help="A dozen scenes, a few steps: does everything run?")] = False,
    all_rows: Annotated[
        bool, typer.Option("--all-rows", help="Also the ablation rows, and a teacher with all labels.")
    ] = False,
    long: Annotated[bool, typer.Option("--long", help="Longer training, in WORK_DIR/long (hours).")] = False,
    overwrite: opt.Overwrite = False,
) -> None:
    """The whole pipeline on generated scenes, on CPU, ending with a table of results."""
    if tiny and long:
        raise typer.BadParameter("--tiny and --long exclude each other: a few steps, or many?")
    _run("demo", locals())


@_command("ablate")
def ablate(
    table: Annotated[
        str, typer.Argument(metavar="TABLE", help="3 | 4 | 5 | 6 | A.1 | A.2 | semires-1 ... (see below)")
    ],
    seeds: Annotated[int, typer.Option(min=1, help="How many; of the labelled draw and of the training.")] = 3,
    work_dir: Annotated[
        Path | None, typer.Option(help="Where to write, seen by all workers [default: work_dirs/ablation_BUDGET].")
    ] = None,
    ray_address: opt.RayAddress = "local",
    budget: Annotated[
        Literal["tiny", "short", "full"], typer.Option(help="A few steps; the demo's; those of demo --long.")
    ] = "short",
    percent: opt.LabelledPercent = None,
    at_once: Annotated[
        int | None, typer.Option(min=1, help="Tasks beside each other on this machine [default: its cores, at most 8].")
    ] = None,
    dry_run: opt.DryRun = False,
) -> None:
    """The cells of one of the papers' tables on the embedded scenes, as mean and deviation over seeds.

    S4M: 3: structural distillation off and on. 4: distilled features and loss. 5: distilled stage. 6: the parts of S4M
    one by one; anew: the same with students that begin anew. A.1: class accuracy and quality of pseudo-labels. A.2:
    kinds of prompts. baselines: plain mean teacher, Guided Distillation, S4M. backbone: table 3 from a start whose
    backbone alone is trained. own: what it leaves open.

    SemiRES: semires-1: labels alone, mutual learning, SemiRES. -2: matchers. -3: thresholds. -4: unsure pseudo-labels.
    -5: parts. -7: ReLA. semires-F6: corrections (Figure 6). semires-own: this project's own views.

    Cells of a table have equal budgets; the last checkpoint is evaluated; a teacher that several cells need is
    trained once. Each cell and seed ends in a file below WORK_DIR/results, the table in WORK_DIR/s4m_*.json. Run it
    again after an interruption: only what is missing is run, and what was begun goes on. A cell that fails costs
    no other: the exit code is that of the first failure. 'local' runs as many tasks beside each other as there are
    cores.
    """
    _run("ablate", locals())


@_command("export")
def export(
    config_path: opt.Config,
    checkpoint: opt.Checkpoint,
    out_dir: Annotated[Path, typer.Argument(metavar="OUT_DIR", help="Folder to write into; it must be empty.")],
    cfg_options: opt.CfgOptions,
    network: opt.ValidatedNetwork = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an earlier export.")] = False,
) -> None:
    """A trained network as a plain mmdet config and weights, which stock mmdet loads without this project.

    Writes OUT_DIR/config.py and OUT_DIR/weights.pth (plain tensors, class names in its meta). Use them so:

    from mmdet.apis import DetInferencer;
    DetInferencer(model="OUT_DIR/config.py", weights="OUT_DIR/weights.pth", device="cpu")("image.jpg", out_dir="seen")

    or with init_detector("OUT_DIR/config.py", "OUT_DIR/weights.pth") and inference_detector(model, "image.jpg").
    mmdet wants an mmcv with compiled operators. In this project's own installation, which has none, begin with
    import pipeline.models.mmcv_ops;
    Before anything is written, both networks are given one random image and must say the same.
    """
    _run("export", locals())


@_command("doctor")
def doctor(
    store: Annotated[str | None, typer.Argument(metavar="[STORE]", help="Also verify every file of it.")] = None,
    repair: Annotated[
        bool, typer.Option("--repair", help="Forget damaged shards; the command that made the store redoes them.")
    ] = False,
) -> None:
    """What is installed, which device, which weights, what Ray would get; and whether a store is sound."""
    _run("doctor", locals())


def _terminated(_signal: int, _frame: object) -> NoReturn:
    raise SystemExit(143)


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Run the command line and exit with the documented code.

    Args:
        arguments: the words after the program's name; ``sys.argv`` where None.

    Raises:
        SystemExit: always, with the exit code.
    """
    given = list(sys.argv[1:] if arguments is None else arguments)
    words = [word for word in given if word != "--debug"]
    signal.signal(signal.SIGTERM, _terminated)
    try:
        app(words, prog_name="s4m-pipeline")
    except SystemExit as stop:
        if stop.code in (130, 143):
            is_training = "".join(words[:1]).startswith("train-") and "--resume" not in words
            same = "the same command with --resume" if is_training else "the same command"
            print(f"stopped; {same} goes on from here", file=sys.stderr)
        raise
    except Exception as error:
        if words != given:
            raise
        known = error if isinstance(error, PipelineError) else full_disk(error)
        if known is not None:
            print(f"error: {known}", file=sys.stderr)
            sys.exit(known.exit_code)
        if isinstance(error, OSError) and error.filename is not None:
            told = InputError(
                error.strerror or type(error).__name__,
                where=error.filename,
                fix="is it the right path, of the right kind (file or folder), and may it be written?",
            )
            print(f"error: {told}", file=sys.stderr)
            sys.exit(told.exit_code)
        text = " ".join(str(error).split()) or "no message"
        print(f"unexpected {type(error).__name__}: {text}\n  next:     run again with --debug", file=sys.stderr)
    sys.exit(1)


if __name__ == "__main__":
    main()
