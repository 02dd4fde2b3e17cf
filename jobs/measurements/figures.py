"""The pictures of S4M that show what it does, made of the runs of a finished demo: its figures 7, 4 and A.4.

    python -m jobs.measurements.figures demo docs/pictures [--also NAME=RUN_DIR ...]

A demo holds the runs ``teacher_supervised``, ``teacher_structural``, ``student_points`` and ``student_cpi_u``; of runs
on other images, such as those of ``jobs.measurements.nuclei``, each is named: ``teacher_supervised=RUN_DIR`` and so on.
Their ``resolved_config.py`` say where images and store are, so the command is given where the runs were made. Images
are not chosen by eye: see the functions.
"""

import argparse
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mmengine.registry import DATASETS
from numpy.typing import NDArray

from jobs.measurements.figure_pages import Panel, Pixels, outlined, page, save
from jobs.measurements.similarity_rows import cell_of, deepest_point, network_rows, share_of_cells, whole_image
from jobs.networks import build_transforms, filter_of, label, load_network, open_config, pack
from jobs.training.run_directory import RESOLVED, last_checkpoint
from pipeline.data.arp import ArpSettings, PasteMode, Sample, mix_pair
from pipeline.data.coco import CocoSet
from pipeline.data.coco_entries import CocoImage
from pipeline.data.instance_dataset import InstanceDataset
from pipeline.data.photometric import strong_view
from pipeline.errors import CheckpointError, ConfigError, InputError, PipelineError
from pipeline.masks.overlap import pairwise_iou
from pipeline.models.image_panels import heat_in_view, marked, shrunk
from pipeline.models.semi_student import make_refiner
from pipeline.refine.interface import TeacherMasks
from pipeline.sam.decoder_features import rows_at_points
from pipeline.sam.interface import SamBackend
from pipeline.sam.sam2_backend import build_backend

BASELINE, DISTILLED = "teacher_supervised", "teacher_structural"
REFINERS = {"points": "student_points", "CPI-U": "student_cpi_u"}
NAMES = (BASELINE, DISTILLED, *REFINERS.values())
SIDE = 272
"""Longest side of a panel with masks, in pixels."""
_LOOKED_AT = 30
"""Unlabelled images of which those with most masks are shown."""
_LEAST_SHARE = 0.01
"""Of an image's pixels, that an object has whose self-similarity is shown."""


class Runs:
    """Networks, images and refiners of the four runs that the pictures are made of."""

    def __init__(self, folders: Mapping[str, Path]) -> None:
        """Name -> run directory; networks are loaded when they are asked for."""
        self.folders = folders

    @classmethod
    def of_demo(cls, folder: Path) -> "Runs":
        """Those of a demo, each in a folder of its name."""
        return cls({name: folder / name for name in NAMES})

    @classmethod
    def parse(cls, arguments: Sequence[str]) -> "Runs":
        """Read ``NAME=RUN_DIR`` of every run.

        Raises:
            ConfigError: not of this form, another name, or a run that is not named.
        """
        folders = {name: Path(folder) for name, _, folder in (argument.partition("=") for argument in arguments)}
        if set(folders) != set(NAMES) or Path() in folders.values():
            expected = " ".join(f"{name}=RUN_DIR" for name in NAMES)
            raise ConfigError("which runs?", where="--also", expected=expected, got=" ".join(arguments))
        return cls(folders)

    def config(self, run: str) -> Any:
        """What a run was made with; raises ConfigError where there is none."""
        return open_config(self.folders[run] / RESOLVED, [])

    def network(self, run: str) -> Any:
        """The last checkpoint of a teacher's run.

        Raises:
            CheckpointError: it has none.
        """
        newest = last_checkpoint(self.folders[run])
        if newest is None:
            raise CheckpointError("a run without a checkpoint", where=self.folders[run], fix="finish it first")
        return load_network(self.config(run), newest)

    def unlabelled(self) -> InstanceDataset:
        """Images that no network here has seen the labels of, with their truth."""
        stream = self.config(DISTILLED).train_dataloader.dataset
        found: InstanceDataset = DATASETS.build({**dict(stream.dataset), "part": "unlabelled", "pipeline": []})
        return found

    def refiner(self, name: str) -> Any:
        """The refiner of a student's run, by its name here."""
        return make_refiner(**dict(self.config(REFINERS[name]).model.refiner))[0]


@dataclass(frozen=True)
class Labelled:
    """An image with what the distilled teacher says of it and what refiners make of that."""

    image: Pixels
    truth: NDArray[np.bool_]
    """[M, H, W]."""
    truth_labels: NDArray[np.int64]
    teacher: TeacherMasks
    refined: dict[str, NDArray[np.bool_]]
    """Refiner's name -> [N, H, W]."""


def similarity_figure(many: Sequence[Runs], sam: SamBackend, *, images: Sequence[int]) -> Pixels:
    """S4M, figure 7: who finds which part of an image alike to one point.

    Images are taken evenly from the unlabelled ones with an object of 1 % of their pixels; the point is the one deepest
    inside the largest object.

    Args:
        many: Runs on different images.
        sam: Whose features are shown.
        images: How many of each.
    """
    rows = [row for runs, count in zip(many, images, strict=True) for row in _similarity_rows(runs, sam, count)]
    titles = ("image and point", "SAM, encoder", "SAM, decoder", "teacher, labels only", "teacher, distilled")
    note = (
        "Cosine between the feature at the cross and every other: red 1, green 0, blue -1. Under each map: its mean "
        "inside the object of the cross, and in the rest of the image. Unlabelled images with an object of 1 % of "
        "their pixels, taken evenly; the cross is the point deepest inside the largest object. "
        f"{sam.name}; teachers: mask features of the pixel decoder."
    )
    return page(titles, rows, note)


def _similarity_rows(runs: Runs, sam: SamBackend, count: int) -> list[list[Panel]]:
    dataset = runs.unlabelled()
    networks = [(runs.network(run), build_transforms(runs.config(run))) for run in (BASELINE, DISTILLED)]
    rows = []
    with_objects = [k for k, image in enumerate(dataset.coco.images) if _shows_an_object(dataset.coco, image)]
    if not with_objects:
        raise InputError(
            "no unlabelled image shows an annotated object that is large enough for figure 7",
            where=dataset.coco.image_root,
            expected=f"an object of {_LEAST_SHARE:.0%} of its image",
        )
    for place in np.linspace(0, len(with_objects) - 1, count).round().astype(int):
        record = dataset.record(with_objects[place])
        image, objects = record["img"], record["gt_masks"].masks.astype(bool)
        largest = objects.sum(axis=(1, 2)).argmax()
        target = objects[largest]
        point = deepest_point(target)
        cell = cell_of(point, image.shape[:2], sam.grid_hw)
        embedding = sam.embed([image])[0]
        maps = [
            rows_at_points(sam, embedding, point[None], features=f)[0].cpu().numpy() for f in ("encoder", "decoder")
        ]
        maps += [network_rows(network, ready, image, [cell], sam.grid_hw)[0] for network, ready in networks]
        whole = whole_image(image.shape[:2])
        name = dataset.metainfo["classes"][record["gt_bboxes_labels"][largest]]
        rows.append(
            [
                (marked(shrunk(image), cell, sam.grid_hw, whole), str(name)),
                *((marked(heat_in_view(m, whole), cell, sam.grid_hw, whole), _inside_outside(m, target)) for m in maps),
            ]
        )
    return rows


def _shows_an_object(coco: CocoSet, image: CocoImage) -> bool:
    least = _LEAST_SHARE * image.height * image.width
    return any(entry.is_taught and entry.area >= least for entry in coco.annotations[image.image_id])


def _inside_outside(row: NDArray[np.float32], target: NDArray[np.bool_]) -> str:
    """Mean of a row [gh, gw] over the object's cells and over the others, the object's share of a cell as weight."""
    inside = share_of_cells(target, (row.shape[0], row.shape[1]))
    values = np.nan_to_num(row)
    return f"object {np.average(values, weights=inside):.2f}, rest {np.average(values, weights=1 - inside):.2f}"


def label_images(runs: Runs, count: int) -> list[Labelled]:
    """Of the first thirty unlabelled images those with most of the distilled teacher's masks, and the masks refined."""
    dataset, network = runs.unlabelled(), runs.network(DISTILLED)
    ready, wanted = build_transforms(runs.config(DISTILLED)), filter_of(runs.config(REFINERS["points"]))
    seen = []
    for index in range(min(len(dataset), _LOOKED_AT)):
        record = dataset.record(index)
        (masks,) = label(network, [pack(ready, record["img"], image_id=record["img_id"])], wanted)
        seen.append((record, masks))
    most = sorted(seen, key=lambda pair: -len(pair[1]))[:count]
    refiners = {name: runs.refiner(name) for name in REFINERS}
    return [
        Labelled(
            image=record["img"],
            truth=record["gt_masks"].masks.astype(bool),
            truth_labels=record["gt_bboxes_labels"],
            teacher=masks,
            refined={
                name: refiner.refine(
                    record["img_id"], record["img"], masks, np.random.default_rng(record["img_id"])
                ).masks
                for name, refiner in refiners.items()
            },
        )
        for record, masks in most
    ]


def refinement_figure(shown: Sequence[Labelled]) -> Pixels:
    """S4M, figure 4: pseudo-labels before and after refinement."""
    rows = []
    for each in shown:
        ways = {"teacher": each.teacher.masks, **each.refined}
        rows.append(
            [
                (outlined(each.image, each.truth, each.truth_labels, side=SIDE), f"{len(each.truth)} objects"),
                *(
                    (outlined(each.image, masks, each.teacher.labels, side=SIDE), _quality(masks, each.truth))
                    for masks in ways.values()
                ),
            ]
        )
    note = (
        "Masks of the distilled teacher on unlabelled images: as they are, after SAM was asked at 3 points of each, "
        "and after proposals of the library were matched. Outlines have the colour of the class. IoU: mean over the "
        "masks, each with the object that it overlaps most. Of the first thirty images those with most masks."
    )
    return page(("ground truth", "teacher", "after points", "after CPI-U"), rows, note)


def _quality(masks: NDArray[np.bool_], truth: NDArray[np.bool_]) -> str:
    if not len(masks):
        return "no mask"
    return f"{len(masks)} masks, IoU {pairwise_iou(masks, truth).max(axis=1).mean():.2f}"


def arp_figure(shown: Sequence[Labelled], *, seed: int = 0) -> Pixels:
    """S4M, figure A.4: what ARP makes of neighbours, an odd one left out; of the last two in the released COCO way."""
    rng, pairs = np.random.default_rng(seed), list(zip(shown[::2], shown[1::2], strict=False))
    torch.manual_seed(seed)
    rows = []
    for number, (first, second) in enumerate(pairs):
        mode: PasteMode = "moved" if number == len(pairs) - 1 else "static"
        one, other = (Sample(each.image, each.refined["points"], each.teacher.labels) for each in (first, second))
        mixed, _ = mix_pair(one, other, ArpSettings(mode=mode), rng)
        strong = strong_view(torch.from_numpy(mixed.image).permute(2, 0, 1)).permute(1, 2, 0).numpy()
        seen = Sample(np.ascontiguousarray(strong), mixed.masks[:0], mixed.labels[:0])
        captions = [f"{len(sample.labels)} pseudo-labels" for sample in (one, other)]
        lost = len(one.labels) + len(other.labels) - len(mixed.labels)
        captions += [f"{mode}: {len(mixed.labels)} labels, {lost} covered", "what the student sees"]
        pictures = [outlined(s.image, s.masks, s.labels, side=SIDE) for s in (one, other, mixed, seen)]
        rows.append(list(zip(pictures, captions, strict=True)))
    note = (
        "Pseudo-labels of two unlabelled images, refined by points; those of the second pasted into the first; the "
        "strong view of that. static: at their places, as in the paper; moved: scaled and anywhere, as in the released "
        "code for COCO."
    )
    return page(("first", "second", "second pasted into first", "its strong view"), rows, note)


def main() -> None:
    """Draw all three."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])  # type: ignore[union-attr]
    parser.add_argument("runs", type=Path, metavar="DEMO_DIR", help="folder of a finished demo")
    parser.add_argument("out", type=Path, metavar="OUT_DIR")
    parser.add_argument(
        "--also",
        nargs="+",
        metavar="NAME=RUN_DIR",
        help=f"runs on other images, in figures 7 and 4: {', '.join(NAMES)}",
    )
    parser.add_argument("--sam", default="scenes-nano")
    args = parser.parse_args()
    torch.set_num_threads(1)
    try:
        many = [Runs.of_demo(args.runs), *([Runs.parse(args.also)] if args.also else [])]
        save(similarity_figure(many, build_backend(args.sam), images=(4, 2)[: len(many)]), args.out / "s4m_fig7.png")
        shown = [label_images(runs, 6) for runs in many]
        save(
            refinement_figure([*shown[0][:3], *(each for more in shown[1:] for each in more[:1])]),
            args.out / "s4m_fig4.png",
        )
        save(arp_figure(shown[0]), args.out / "s4m_figA4.png")
    except PipelineError as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main()
