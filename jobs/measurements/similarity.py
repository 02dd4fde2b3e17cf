"""How well self-similarity tells an object from the rest: SAM's, and that of teachers with and without distillation.

    python -m jobs.measurements.similarity OUT.json "labels only=RUN_DIR" "distilled=RUN_DIR" ...

What S4M's figure 7 shows for one point an image, counted over all objects of the evaluation images, which no network
has seen: the row of the point deepest inside an object should be high on the object and low elsewhere. A name that
comes several times stands for several seeds. Two figures are SAM's own, of its encoder and its decoder; if the decoder
tells objects apart better than a teacher does, the teacher has something to learn, and ``agreement`` says whether
it did.
"""

import argparse
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from data_schemas.similarity import Features
from jobs.measurements.finished_runs import Run, refuse_other_images
from jobs.measurements.similarity_rows import cell_of, deepest_point, network_rows, share_of_cells
from jobs.networks import build_transforms, load_network, validated
from jobs.progress import Progress
from jobs.provenance import provenance
from pipeline.data.coco import write_json
from pipeline.data.instance_dataset import InstanceDataset
from pipeline.errors import ConfigError, PipelineError
from pipeline.sam.decoder_features import rows_at_points
from pipeline.sam.interface import SamBackend
from pipeline.sam.sam2_backend import build_backend

SAM_ROWS: Mapping[str, Features] = {"SAM, encoder": "encoder", "SAM, decoder": "decoder"}
REFERENCE = "SAM, decoder"
"""What S4M distils."""
MIN_CELLS = 4
"""Objects that fill fewer cells of SAM's grid are left out."""


@dataclass(frozen=True)
class Separation:
    """What one row [gh, gw] says of one object."""

    auroc: float
    """Chance that a cell of the object has a higher cosine than a cell of the rest; 0.5 is blind."""
    auroc_objects: float
    """The same against cells of other objects alone, which is what parts instances; NaN where there are too few."""
    inside: float
    """Mean cosine over cells that the object fills."""
    outside: float
    """Mean cosine over cells that it does not touch."""
    agreement: float
    """Pearson correlation, over all cells, with the row of SAM's decoder."""


def separation(
    row: NDArray[np.float32],
    share: NDArray[np.float32],
    others: NDArray[np.float32],
    reference: NDArray[np.float32],
) -> Separation | None:
    """Compare a row with an object; cells that it partly covers belong to neither side.

    Args:
        row: [gh, gw] cosines; NaN where the network does not see.
        share: [gh, gw] of each cell that the object covers.
        others: [gh, gw] of each cell that other objects cover.
        reference: [gh, gw] the row of SAM's decoder.

    Returns:
        None where fewer than ``MIN_CELLS`` cells are inside, or outside.
    """
    seen = np.isfinite(row)
    inside, outside = row[seen & (share == 1)], row[seen & (share == 0)]
    if min(len(inside), len(outside)) < MIN_CELLS:
        return None
    of_others = row[seen & (share == 0) & (others == 1)]
    return Separation(
        auroc=_auroc(inside, outside),
        auroc_objects=_auroc(inside, of_others) if len(of_others) >= MIN_CELLS else float("nan"),
        inside=float(inside.mean()),
        outside=float(outside.mean()),
        agreement=float(np.corrcoef(row[seen], reference[seen])[0, 1]),
    )


def _auroc(positive: NDArray[np.float32], negative: NDArray[np.float32]) -> float:
    """Chance that one of the first is above one of the second; equal ones count half."""
    ordered = np.sort(negative)
    ends = np.searchsorted(ordered, positive, "left"), np.searchsorted(ordered, positive, "right")
    return float(np.mean(ends) / len(ordered))


def measure(runs: Sequence[Run], sam: SamBackend, *, num_images: int) -> dict[str, list[list[Separation]]]:
    """Separations of SAM's rows and of every run's network.

    Args:
        runs: Teachers, evaluated on the same images.
        sam: Whose decoder the reference is.
        num_images: Taken evenly from the first run's evaluation set.

    Returns:
        Name -> one list for each run of that name -> an entry for each object, the same objects in all.

    Raises:
        ConfigError: another evaluation set, too few images, or no object large enough.
    """
    dataset = runs[0].evaluation_images()
    refuse_other_images(runs, dataset)
    if not 1 <= num_images <= len(dataset):
        raise ConfigError("how many images?", where="--images", expected=f"1 to {len(dataset)}", got=num_images)
    networks = [_Teacher(run) for run in runs]
    found: list[list[Separation]] = [[] for _ in range(len(SAM_ROWS) + len(runs))]
    with Progress("similarity", num_images) as bar:
        for index in np.linspace(0, len(dataset) - 1, num_images).round().astype(int).tolist():
            for of_object in _of_image(dataset, index, sam, networks):
                for all_of, one in zip(found, of_object, strict=True):
                    all_of.append(one)
            bar.advance(1)
    if not found[0]:
        raise ConfigError(
            "no object fills enough cells of SAM's grid",
            where=runs[0].name,
            expected=f"{MIN_CELLS} cells of {sam.grid_hw}",
            fix="take more images, or ones with larger objects",
        )
    named: dict[str, list[list[Separation]]] = {}
    for name, one_run in zip([*SAM_ROWS, *(run.name for run in runs)], found, strict=True):
        named.setdefault(name, []).append(one_run)
    return named


class _Teacher:
    """A network and what makes an image ready for it."""

    def __init__(self, run: Run) -> None:
        self.network = load_network(run.config, run.checkpoint, which=validated(run.config))
        self.ready = build_transforms(run.config)


def _of_image(
    dataset: InstanceDataset, index: int, sam: SamBackend, teachers: Sequence[_Teacher]
) -> Iterator[list[Separation]]:
    """For each object of an image that is large enough: SAM's two separations, then every teacher's."""
    record: dict[str, Any] = dataset.record(index)
    image, objects = record["img"], record["gt_masks"].masks.astype(bool)
    shares = [share_of_cells(mask, sam.grid_hw) for mask in objects]
    others = [share_of_cells(np.delete(objects, n, axis=0).any(axis=0), sam.grid_hw) for n in range(len(objects))]
    large = [n for n, share in enumerate(shares) if (share == 1).sum() >= MIN_CELLS]
    if not large:
        return
    points = np.stack([deepest_point(objects[n]) for n in large])
    cells = [cell_of(point, image.shape[:2], sam.grid_hw) for point in points]
    embedding = sam.embed([image])[0]
    rows = [list(rows_at_points(sam, embedding, points, features=f).cpu().numpy()) for f in SAM_ROWS.values()]
    rows += [network_rows(each.network, each.ready, image, cells, sam.grid_hw) for each in teachers]
    reference = rows[list(SAM_ROWS).index(REFERENCE)]
    for place, n in enumerate(large):
        one = [separation(of_network[place], shares[n], others[n], reference[place]) for of_network in rows]
        if all(one):
            yield [each for each in one if each is not None]


def table(named: Mapping[str, Sequence[Sequence[Separation]]]) -> dict[str, dict[str, Any]]:
    """Name -> figure -> its mean over objects that have it, one for each run of that name, and how many objects.

    A figure that no object has is None.
    """

    def mean(run: Sequence[Separation], figure: str) -> float | None:
        values = np.array([getattr(one, figure) for one in run])
        return None if np.isnan(values).all() else float(np.nanmean(values))

    return {
        name: {
            **{f: [mean(run, f) for run in runs] for f in Separation.__dataclass_fields__},
            "objects": len(runs[0]),
        }
        for name, runs in named.items()
    }


def as_markdown(rows: Mapping[str, Mapping[str, Any]]) -> str:
    """The table of a documentation, means and deviations over runs of one name."""

    def cell(values: Sequence[float | None]) -> str:
        known = [value for value in values if value is not None]
        if len(known) < len(values):
            return "-"
        spread = f" ± {np.std(known, ddof=1):.3f}" if len(known) > 1 else ""
        return f"{np.mean(known):.3f}{spread}"

    heads = {
        "auroc": "object from rest (AUROC)",
        "auroc_objects": "from other objects (AUROC)",
        "inside": "cosine inside",
        "outside": "cosine outside",
        "agreement": "agreement with SAM's decoder",
    }
    lines = [f"| features | {' | '.join(heads.values())} |", "|---" * (len(heads) + 1) + "|"]
    lines += [f"| {name} | {' | '.join(cell(row[figure]) for figure in heads)} |" for name, row in rows.items()]
    return "\n".join(lines)


def main() -> None:
    """Measure, write and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])  # type: ignore[union-attr]
    parser.add_argument("out", type=Path, metavar="OUT.json")
    parser.add_argument("runs", nargs="+", metavar="NAME=RUN_DIR", help="teachers; one name for all seeds of one kind")
    parser.add_argument("--images", type=int, default=60, help="evaluation images (%(default)s)")
    parser.add_argument("--sam", default="scenes-nano")
    args = parser.parse_args()
    torch.set_num_threads(1)
    try:
        runs = [Run.parse(argument) for argument in args.runs]
        rows = table(measure(runs, build_backend(args.sam), num_images=args.images))
    except PipelineError as error:
        sys.exit(str(error))
    about = {"images": args.images, "sam": args.sam, "machine": provenance()}
    write_json({**about, "rows": rows}, args.out)
    print(as_markdown(rows))


if __name__ == "__main__":
    main()
