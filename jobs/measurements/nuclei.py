"""S4M on real images of small objects: a table as ``ablate`` makes it, on tiles of a COCO set of one class.

    python -m jobs.measurements.nuclei COCO_FILE --image-root DIR [--seeds N] [--percent P]

Made for the nuclei of the Data Science Bowl 2018. A quarter of the images, drawn once, is kept for the evaluation; of
the others ``percent`` are labelled, drawn for each seed. All images are cut into tiles of about 128 pixels, and these
doubled: a nucleus of 20 pixels then fills ten cells of a mask at stride 4 instead of five, and a tile holds few of
them; one with more objects than the network has queries is refused. What a tile's border cuts counts as an object on
both sides. Like ``ablate`` it goes on where it was stopped.
"""

import argparse
import json
import shutil
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from jobs import precompute_sam
from jobs.ablate import run_study
from jobs.ablation.plan import CONFIGS, Study
from jobs.ablation.tables import AP, Cell, Part, Table
from jobs.demo import Size
from jobs.networks import open_config
from jobs.progress import Progress
from pipeline.data.coco import CocoSet, load_coco, make_coco, subset, write_coco, write_json
from pipeline.data.coco_entries import Annotation, CocoImage
from pipeline.data.instance_dataset import image_record
from pipeline.data.splits import draw_split, save_split, split_of
from pipeline.errors import InputError, PipelineError
from pipeline.masks import rle

TILE, SCALE, MIN_PIXELS = 128, 2, 16
"""Side of a tile in the image's pixels; by how much it is magnified; smaller rests of objects are background."""
EVALUATED_PERCENT = 25.0
CLICKS = 16
"""For the library, along a side of a tile."""
_SUPERVISED, _STRUCTURAL = Part("teacher/nuclei_supervised"), Part("teacher/nuclei_structural")


def _student(name: str, label: str, *options: str, config: str = "") -> Cell:
    part = Part(f"student/nuclei_{config or name}", options)
    return Cell(name, label, _STRUCTURAL, part, labels=part)


NUCLEI = Table(
    "nuclei",
    "S4M on nuclei: students go on from the structural teacher",
    (
        Cell("supervised", "teacher, labels only", _SUPERVISED),
        Cell("structural", "teacher + structural distillation", _STRUCTURAL),
        Cell(
            "longer",
            "that teacher, the students' steps more, labels only",
            _STRUCTURAL,
            Part("student/nuclei_none", ("model.arp=None", "model.settings.unlabelled_weight=0")),
        ),
        _student("none", "student, no refinement + ARP"),
        _student("points", "student, points + ARP (S4M)"),
        _student(
            "agreed",
            "the same without the masks that SAM disagrees with (IoU < 0.5)",
            "model.refiner.min_iou_with_teacher=0.5",
            "model.refiner.unmatched=drop",
            config="points",
        ),
        _student("cpi_u", "student, CPI-U + ARP"),
    ),
    figures=(*AP, "segmentation_quality", "matched_share", "found_share"),
    headlines=(*AP, "matched_share", "found_share"),
)


@dataclass(frozen=True)
class NucleiStudy(Study):
    """The table on tiles of one data set."""

    source: CocoSet | None = None
    """Whole images."""
    teacher_steps: int = 1200
    student_steps: int = 400

    @property
    def size(self) -> Size:
        """Images, not tiles, and steps."""
        num_val, num_train = len(self.evaluated), len(self.images.images) - len(self.evaluated)
        return Size(num_train, num_val, self.percent or 10.0, self.teacher_steps, self.student_steps, burn_in=0)

    @property
    def images(self) -> CocoSet:
        """Whole images.

        Raises:
            ValueError: the study was made without.
        """
        if self.source is None:
            raise ValueError("NucleiStudy needs its images")
        return self.source

    @property
    def evaluated(self) -> tuple[int, ...]:
        """Ids of the images that are kept for the evaluation."""
        return draw_split(self.images, percent=EVALUATED_PERCENT, seed=0).labelled

    @property
    def scenes(self) -> Path:
        """The tiles."""
        return self.work_dir / "data/tiles"

    def data_options(self, seed: int) -> list[str]:
        """See :class:`Study`."""
        return [f"root={self.scenes}", f"image_root={self.scenes / 'images'}", f"split_file={self.split(seed)}"]


class Shown(NamedTuple):
    """What a tile shows of an object."""

    category_id: int
    iscrowd: bool
    mask: NDArray[np.bool_]
    """[H, W], magnified."""


@dataclass(frozen=True)
class Tile:
    """A part of an image and what it shows of the objects."""

    image_id: int
    row: int
    column: int
    pixels: NDArray[np.uint8]
    """[H, W, 3] RGB, magnified."""
    objects: tuple[Shown, ...]


def tiles_of(coco: CocoSet, image: CocoImage) -> Iterator[Tile]:
    """Cut an image into equal parts as near to ``TILE`` pixels as can be, row by row, and magnify them.

    Raises:
        InputError: the image cannot be read, or has another size than the annotation file says.
    """
    pixels = image_record(coco, image)["img"]
    entries = [(entry, rle.decode(entry.rle)) for entry in coco.annotations[image.image_id]]
    rows, columns = (_cuts(side) for side in pixels.shape[:2])
    for i, (top, bottom) in enumerate(pairwise(rows)):
        for j, (left, right) in enumerate(pairwise(columns)):
            part = np.s_[top:bottom, left:right]
            size = (SCALE * (right - left), SCALE * (bottom - top))
            larger = np.asarray(Image.fromarray(pixels[part]).resize(size, Image.Resampling.BICUBIC))
            objects = tuple(
                Shown(entry.category_id, entry.iscrowd, mask[part].repeat(SCALE, 0).repeat(SCALE, 1))
                for entry, mask in entries
                if mask[part].sum() >= MIN_PIXELS
            )
            yield Tile(image.image_id, i, j, larger, objects)


def _cuts(side: int) -> list[int]:
    """Ends of equal parts of ``side`` pixels."""
    return [int(end) for end in np.linspace(0, side, max(1, round(side / TILE)) + 1).round()]


def write_tiles(coco: CocoSet, evaluated: Sequence[int], out: Path) -> None:
    """Cut all images; write ``out``/images, train.json and val.json, and tiles.tsv: which tile is of which image.

    What is there complete is left as it is: :func:`claim` sees to it that it is of these images.

    Raises:
        InputError: an image cannot be read, or has another size than the annotation file says.
    """
    if (out / "tiles.tsv").is_file():
        return
    partial = out.with_name(out.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    (partial / "images").mkdir(parents=True)
    images: list[CocoImage] = []
    sources: list[int] = []
    annotations: list[Annotation] = []
    with Progress("tiles", len(coco.images)) as bar:
        for image in coco.images:
            for tile in tiles_of(coco, image):
                name = f"{tile.image_id:06}_{tile.row}_{tile.column}.png"
                Image.fromarray(tile.pixels).save(partial / "images" / name)
                height, width = tile.pixels.shape[:2]
                images.append(CocoImage(len(images) + 1, name, height, width))
                sources.append(tile.image_id)
                for category, iscrowd, mask in tile.objects:
                    code = rle.encode(mask)
                    box, area = rle.bbox_xywh(code), float(rle.area(code))
                    number = len(annotations) + 1
                    annotations.append(Annotation(number, images[-1].image_id, category, code, area, box, iscrowd))
            bar.advance(1)
    tiles = make_coco(partial / "images", images, coco.categories, annotations)
    held = set(evaluated)
    for name, is_held in (("train", False), ("val", True)):
        chosen = [tile.image_id for tile, source in zip(images, sources, strict=True) if (source in held) == is_held]
        write_coco(subset(tiles, chosen), partial / f"{name}.json")
    lines = [f"{tile.image_id}\t{source}" for tile, source in zip(images, sources, strict=True)]
    (partial / "tiles.tsv").write_text("\n".join(lines) + "\n")
    partial.replace(out)


def claim(study: NucleiStudy) -> None:
    """Have the work directory for one data set: no digest of a task tells which images are in its tiles.

    Raises:
        InputError: its tiles are of another one, or were cut in another way.
    """
    path = study.work_dir / "data/source.json"
    cut = {"tile": TILE, "scale": SCALE, "min_pixels": MIN_PIXELS, "evaluated_percent": EVALUATED_PERCENT}
    asked = {"fingerprint": study.images.fingerprint, **cut}
    if not path.is_file():
        write_json(asked, path)
    elif json.loads(path.read_bytes()) != asked:
        raise InputError(
            "the tiles in this work directory are of other images",
            where=path,
            expected=str(asked),
            got=path.read_text().strip(),
            fix="choose another --work-dir",
        )


def refuse_full_tiles(study: NucleiStudy) -> None:
    """Refuse a tile with more objects than the network has queries: it would never find them all.

    Raises:
        InputError: there is one.
    """
    num_queries = open_config(CONFIGS / f"{_SUPERVISED.config}.py", ()).num_queries
    for part in ("train", "val"):
        tiles = load_coco(study.scenes / f"{part}.json", study.scenes / "images")
        fullest = max(tiles.images, key=lambda tile: len(tiles.annotations[tile.image_id]))
        count = len(tiles.annotations[fullest.image_id])
        if count > num_queries:
            raise InputError(
                "a tile has more objects than the network has queries",
                where=tiles.path_of(fullest),
                expected=f"at most {num_queries} (num_queries of configs/{_SUPERVISED.config}.py)",
                got=count,
                fix="raise num_queries there, or magnify and cut the images more finely (TILE in "
                "jobs/measurements/nuclei.py), in another --work-dir",
            )


def prepare(study: Study) -> None:
    """Tiles, and for every seed its labelled images and SAM's artefacts; what is there is left as it is.

    Raises:
        TypeError: another study.
        PipelineError: see ``precompute-sam``.
    """
    if not isinstance(study, NucleiStudy):
        raise TypeError(f"a NucleiStudy, not a {type(study).__name__}")
    write_tiles(study.images, study.evaluated, study.scenes)
    refuse_full_tiles(study)
    rows = (line.split("\t") for line in (study.scenes / "tiles.tsv").read_text().splitlines())
    source_of = {int(tile): int(source) for tile, source in rows}
    train = load_coco(study.scenes / "train.json", study.scenes / "images")
    learnt = subset(study.images, set(study.images.by_id) - set(study.evaluated))
    for seed in study.seeds:
        chosen = set(draw_split(learnt, percent=study.size.percent, seed=seed).labelled)
        labelled = [tile.image_id for tile in train.images if source_of[tile.image_id] in chosen]
        save_split(split_of(train, labelled, percent=study.size.percent, seed=seed), study.split(seed))
        options = {
            "images": study.scenes / "train.json",
            "image_root": study.scenes / "images",
            "split": study.split(seed),
            "store": study.store(seed),
            "proposals.points_per_side": CLICKS,
        }
        precompute_sam.run(CONFIGS / "sam/nuclei.py", cfg_options=[f"{k}={v}" for k, v in options.items()])


def main(arguments: Sequence[str] | None = None) -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])  # type: ignore[union-attr]
    parser.add_argument("annotations", type=Path, metavar="COCO_FILE")
    parser.add_argument("--image-root", type=Path, required=True, metavar="DIR")
    parser.add_argument("--work-dir", type=Path, default=Path("work_dirs/nuclei_table"))
    parser.add_argument("--percent", type=float, default=10.0, help="of the images that are labelled (%(default)s)")
    parser.add_argument("--seeds", type=int, default=1, help="1 to N (%(default)s)")
    parser.add_argument("--teacher-steps", type=int, default=1200)
    parser.add_argument("--student-steps", type=int, default=400)
    parser.add_argument("--at-once", type=int, help="trainings beside each other (as many as cores)")
    args = parser.parse_args(arguments)
    try:
        coco = load_coco(args.annotations, args.image_root)
        if len(coco.categories) != 1:
            got = ", ".join(category.name for category in coco.categories)
            raise InputError("the configs are for one class", where=args.annotations, expected="one category", got=got)
        study = NucleiStudy(
            NUCLEI,
            "short",
            args.seeds,
            args.work_dir.resolve(),
            percent=args.percent,
            source=coco,
            teacher_steps=args.teacher_steps,
            student_steps=args.student_steps,
        )
        claim(study)
        run_study(study, at_once=args.at_once, prepare=prepare)
    except PipelineError as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main()
