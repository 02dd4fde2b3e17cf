"""``split``: which images are labelled, drawn or read from a list, and written down."""

from collections import Counter
from pathlib import Path

from pipeline.data.coco import CocoSet, load_images, make_coco, subset, write_coco
from pipeline.data.referring.sets import open_refer_files
from pipeline.data.referring.splits import Draw, draw_refer_split
from pipeline.data.splits import Split, draw_split, save_split, split_from_names
from pipeline.errors import InputError
from pipeline.evaluation.labelling_cost import cost_table, labelling_cost

SPLIT, LABELLED, UNLABELLED = "split.json", "labelled.json", "unlabelled.json"


def run(
    annotations: Path,
    *,
    out: Path,
    percent: float | None = None,
    seed: int = 0,
    names: Path | None = None,
    image_root: Path | None = None,
    expressions: Path | None = None,
    draw: Draw = "nested",
) -> None:
    """Do the command; see ``s4m-pipeline split --help``.

    Args:
        annotations: A COCO file. Its annotations do not decide what is drawn.
        out: Folder for ``split.json``, ``labelled.json`` and ``unlabelled.json``. An equal split there is left alone
            (and the two COCO files are written anew from the annotations as they are now), another one is an error.
        percent: Share of the images to label, unless ``names`` is given.
        seed: Which draw.
        names: A list of labelled images, one name a line.
        image_root: Folder of the images; the file's own by default.
        expressions: Referring expressions; then the images that their ``train`` split is in are divided, and only
            ``split.json`` is written: what is known of an image is its sentences, not its annotations. What the
            labels cost is printed (SemiRES, appendix A).
        draw: With ``expressions``: nested | published.

    Raises:
        InputError: Bad files, a percent out of range, or another split or other COCO files in ``out``.
    """
    if not annotations.exists():
        raise InputError("annotations not found", where=annotations, expected="a COCO file", fix="correct the path")
    _refuse_bad_folder(out, annotations)
    if expressions is not None:
        _split_expressions(annotations, expressions, out, image_root, (percent, seed, draw))
        return
    if draw != "nested":
        raise InputError(
            "the published draw is of sentences",
            where="--draw",
            expected="nested, or --expressions with it",
            got=draw,
            fix='--expressions "refs(unc).p", or leave --draw out',
        )
    coco = load_images(annotations, image_root or annotations.parent)
    if names is not None:
        chosen = split_from_names(coco, names)
    elif percent is not None:
        chosen = draw_split(coco, percent=percent, seed=seed)
    else:
        raise InputError("neither a percent nor a list of names is given", fix="--percent 10, or --names FILE")
    # First: a run that is killed after it goes on from here, one that is killed before has written nothing.
    save_split(chosen, out / SPLIT)
    labelled = subset(coco, chosen.labelled)
    write_coco(labelled, out / LABELLED)
    write_coco(
        make_coco(coco.image_root, subset(coco, chosen.unlabelled).images, coco.categories, ()), out / UNLABELLED
    )
    print(_summary(coco, labelled, chosen, out))


def _split_expressions(
    annotations: Path, expressions: Path, out: Path, image_root: Path | None, how: tuple[float | None, int, Draw]
) -> None:
    percent, seed, draw = how
    if percent is None:
        raise InputError("sentences are divided by a draw", where="--names", expected="--percent", got="a list")
    source = open_refer_files(
        expressions_file=expressions,
        annotation_file=annotations,
        image_root=image_root or annotations.parent,
        split="train",
    )
    chosen = draw_refer_split(source.sentences, percent=percent, seed=seed, draw=draw)
    save_split(chosen, out / SPLIT)
    taught = source.sentences.of_images(chosen.labelled)
    print(
        f"{len(chosen.labelled)} labelled, {len(chosen.unlabelled)} unlabelled images; {len(taught.objects)} objects "
        f"with {taught.num_sentences} sentences of {len(source.sentences.objects)} with "
        f"{source.sentences.num_sentences} are labelled; {out}"
    )
    print(cost_table({f"{percent:g} %": labelling_cost(source, taught), "all": labelling_cost(source)}))


def _refuse_bad_folder(out: Path, annotations: Path) -> None:
    if out.suffix == ".json" or (out.exists() and not out.is_dir()):
        raise InputError(
            "a split is a folder of three files",
            where="--out",
            expected="a folder, as in --out data/split_10",
            got=out,
            fix=f"--out {out.with_suffix('')}",
        )
    if (out / SPLIT).exists():
        return
    foreign = [name for name in (LABELLED, UNLABELLED) if (out / name).exists()]
    if foreign:
        raise InputError(
            "files are in the way that no split wrote",
            where=out,
            expected=f"a folder without {' and '.join(foreign)}",
            got=f"no {SPLIT} beside {' and '.join(foreign)}",
            fix=f"choose another folder, for example --out {annotations.parent / 'split'}",
        )


def _summary(coco: CocoSet, labelled: CocoSet, split: Split, out: Path) -> str:
    """Counts of images, and of the objects of each class: labelled and in all."""
    lines = [f"{len(split.labelled)} labelled, {len(split.unlabelled)} unlabelled images; {out}"]
    if coco.broken:
        lines.append(f"left out: {len(coco.broken)} images without a readable size, such as {coco.broken[0].file_name}")
    have, total = _objects(labelled), _objects(coco)
    width = max((len(category.name) for category in coco.categories), default=0)
    for category in coco.categories:
        number, of = have[category.category_id], total[category.category_id]
        lines.append(f"  {category.name:{width}}  {number:6} of {of:6} objects labelled")
    absent = [category.name for category in coco.categories if not have[category.category_id]]
    if absent:
        some = ", ".join(absent[:10]) + (f" and {len(absent) - 10} more" if len(absent) > 10 else "")
        lines.append(f"warning: {len(absent)} classes have no labelled object, nothing can learn them: {some}")
    return "\n".join(lines)


def _objects(coco: CocoSet) -> Counter[int]:
    """Objects by category id; crowds do not count."""
    entries = (entry for annotations in coco.annotations.values() for entry in annotations)
    return Counter(entry.category_id for entry in entries if not entry.iscrowd)
