"""``split``: which images are labelled, drawn or read from a list, and written down."""

from pathlib import Path

from pipeline.data.coco import load_images
from pipeline.data.splits import draw_split, save_split, split_from_names
from pipeline.errors import InputError


def run(
    annotations: Path,
    *,
    out: Path,
    percent: float | None = None,
    seed: int = 0,
    names: Path | None = None,
    image_root: Path | None = None,
) -> None:
    """Do the command; see ``s4m-pipeline split --help``.

    Args:
        annotations: A COCO file; its annotations are not looked at.
        out: The split file. An equal one is left alone, another one is an error.
        percent: Share of the images to label, unless ``names`` is given.
        seed: Which draw.
        names: A list of labelled images, one name a line.
        image_root: Folder of the images; the file's own by default.

    Raises:
        InputError: Bad files, a percent out of range, or another split at ``out``.
    """
    if not annotations.exists():
        raise InputError("annotations not found", where=annotations, expected="a COCO file", fix="correct the path")
    coco = load_images(annotations, image_root or annotations.parent)
    if names is not None:
        chosen = split_from_names(coco, names)
    elif percent is not None:
        chosen = draw_split(coco, percent=percent, seed=seed)
    else:
        raise InputError("neither a percent nor a list of names is given", fix="--percent 10, or --names FILE")
    save_split(chosen, out)
    print(f"{out}: {len(chosen.labelled)} labelled, {len(chosen.unlabelled)} unlabelled images")
