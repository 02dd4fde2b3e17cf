"""What ARP does (S4M, Eq. 4): to the labels that a student learns, and to what its network finds.

    python -m jobs.measurements.pasting OUT.json "points=RUN_DIR" ... "points + ARP=RUN_DIR" ...

A name that comes several times stands for several seeds. Of a student with ARP: what pasting makes of the pseudo-labels
that its teacher, at the end of the run, gives the unlabelled views. Of every run: which objects of the evaluation
images its network finds, those that touch another one and those that stand alone, as pasting should teach the former.
"""

import argparse
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from mmengine.registry import DATASETS, MODELS, init_default_scope
from numpy.typing import NDArray

from jobs.measurements.finished_runs import Run, refuse_other_images
from jobs.measurements.predictions import Instances, detect
from jobs.networks import build_transforms, load_network, validated
from jobs.progress import Progress
from jobs.provenance import provenance
from pipeline.data.arp import ArpSettings, Sample, augment_batch
from pipeline.data.coco import write_json
from pipeline.errors import ConfigError, InputError, PipelineError
from pipeline.evaluation.pseudo_label_quality import match_by_iou
from pipeline.masks.overlap import mask_areas, pairwise_iou
from pipeline.models import weights

COVERED = 0.95
"""A label that shows less of its pixels than this after pasting counts as covered in part."""


@dataclass
class Pasting:
    """Counts over views."""

    views: int = 0
    labels: int = 0
    """Before pasting."""
    right: int = 0
    """Of these: those that overlap an object of their class by more than half."""
    labels_after: int = 0
    pasted: int = 0
    """Of the labels after: those of the other view."""
    covered: int = 0
    """Of the labels after: those in part behind another one, see :data:`COVERED`."""
    gone: int = 0
    """Labels of a view itself of which pasting leaves too little."""

    def figures(self) -> dict[str, float | None]:
        """Means per view and shares; None where nothing was counted."""

        def share(part: int, whole: int) -> float | None:
            return part / whole if whole else None

        return {
            "labels_per_view": share(self.labels, self.views),
            "labels_per_view_after": share(self.labels_after, self.views),
            "right": share(self.right, self.labels),
            "pasted": share(self.pasted, self.labels_after),
            "covered": share(self.covered, self.labels_after),
            "gone": share(self.gone, self.labels),
        }


def count_batch(
    samples: Sequence[Sample], is_right: Sequence[NDArray[np.bool_]], arp: ArpSettings, rng: np.random.Generator
) -> Pasting:
    """Paste within one batch and count.

    Args:
        samples: Views with their labels.
        is_right: [N] for each sample's labels.
        arp: Static: of moved labels nobody can tell how much of them another one hides.
        rng: Draws the pairs.

    Raises:
        ConfigError: another mode.
    """
    if arp.mode != "static":
        raise ConfigError("what pasting hides is counted of labels in their place", expected="static", got=arp.mode)
    sizes = [len(sample.labels) for sample in samples]
    first = np.concatenate([[0], np.cumsum(sizes)])
    right, areas = np.concatenate(is_right), np.concatenate([mask_areas(sample.masks) for sample in samples])
    named = [
        replace(sample, labels=np.arange(begin, begin + size))
        for sample, begin, size in zip(samples, first, sizes, strict=False)
    ]
    counts = Pasting(views=len(samples), labels=len(right), right=int(right.sum()))
    for place, mixed in enumerate(augment_batch(named, arp, rng)):
        there = mixed.labels
        is_own = (first[place] <= there) & (there < first[place + 1])
        counts.labels_after += len(there)
        counts.pasted += int((~is_own).sum())
        counts.covered += int((mask_areas(mixed.masks) < COVERED * areas[there]).sum())
        counts.gone += sizes[place] - int(is_own.sum())
    return counts


def pasting_of(run: Run, *, num_views: int, seed: int = 0) -> dict[str, float | None] | None:
    """What ARP makes of the first ``num_views`` unlabelled views of a student; None where the run has no ARP.

    Raises:
        ConfigError: ARP moves what it pastes.
    """
    init_default_scope("mmdet")
    model = MODELS.build(run.config.model)
    if getattr(model, "arp", None) is None:
        return None
    state = weights.read_checkpoint(run.checkpoint)["state_dict"]
    weights.load_network(model, state, where=run.checkpoint)
    model.eval()
    stream = DATASETS.build(dict(run.config.train_dataloader.dataset.unlabelled))
    size, rng = run.config.batch_size, np.random.default_rng(seed)
    total = Pasting()
    with Progress(f"views, {run.name}", num_views, unit="views") as bar:
        for begin in range(0, num_views, size):
            batch = [stream[position] for position in range(begin, min(begin + size, num_views))]
            samples, is_right = _labelled(model, batch, rng)
            counts = count_batch(samples, is_right, model.arp, rng)
            total = Pasting(*(getattr(total, name) + getattr(counts, name) for name in Pasting.__dataclass_fields__))
            bar.advance(len(batch))
    return total.figures()


@torch.no_grad()
def _labelled(
    model: Any, batch: Sequence[Mapping[str, Any]], rng: np.random.Generator
) -> tuple[list[Sample], list[NDArray[np.bool_]]]:
    """Views with their refined labels, nothing pasted yet, and which of these are right."""
    packed = {key: [each[key] for each in batch] for key in ("inputs", "data_samples")}
    ready = model.data_preprocessor.data_preprocessor(packed, False)
    inputs, samples = ready["inputs"], ready["data_samples"]
    labels, _ = model.refined_labels(model.teacher_queries(inputs, samples), samples, rng)
    arp, model.arp = model.arp, None
    try:
        views = model.mixed_samples(inputs, labels, rng)
    finally:
        model.arp = arp
    truths = [
        Instances(t.masks.cpu().numpy().astype(bool), t.labels.cpu().numpy()) for t in map(_hidden_truth, samples)
    ]
    return views, [right_labels(view, truth) for view, truth in zip(views, truths, strict=True)]


def _hidden_truth(sample: Any) -> Any:
    if "hidden_truth" not in sample:
        raise InputError("labels are judged by ground truth", where=sample.img_path, got="an image without annotations")
    return sample.hidden_truth


def right_labels(view: Sample, truth: Instances) -> NDArray[np.bool_]:
    """[N]: whether a label overlaps an object of its class by more than half; a view may be padded, truth is not."""
    height, width = truth.masks.shape[1:]
    iou = pairwise_iou(view.masks[:, :height, :width], truth.masks)
    found: NDArray[np.bool_] = ((iou > 0.5) & (view.labels[:, None] == truth.labels[None])).any(axis=1)
    return found


def touching(masks: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """[N]: whether an object [N, H, W] has another one within a pixel."""
    if len(masks) == 0:
        return np.zeros(0, bool)
    grown = F.max_pool2d(torch.from_numpy(masks).float()[:, None], 3, 1, 1)[:, 0].flatten(1)
    shared = grown @ torch.from_numpy(masks).float().flatten(1).T
    found: NDArray[np.bool_] = (shared.fill_diagonal_(0) > 0).any(dim=1).numpy()
    return found


def found_of(run: Run, *, num_images: int, min_score: float) -> dict[str, float | None]:
    """Shares of the evaluation objects that a run's network finds: touching ones, others; and wrong detections."""
    network, ready = load_network(run.config, run.checkpoint, which=validated(run.config)), build_transforms(run.config)
    counts = {"touching": [0, 0], "alone": [0, 0]}
    wrong = 0
    dataset = run.evaluation_images()
    number = min(num_images, len(dataset))
    with Progress(f"images, {run.name}", number) as bar:
        for record in (dataset.record(index) for index in range(number)):
            truth = Instances(record["gt_masks"].masks.astype(bool), record["gt_bboxes_labels"])
            seen = detect(network, ready, record["img"], min_score=min_score)
            is_found = found_objects(seen, truth)
            wrong += len(seen.labels) - int(is_found.sum())
            is_touching = touching(truth.masks)
            for name, chosen in (("touching", is_touching), ("alone", ~is_touching)):
                counts[name][0] += int(is_found[chosen].sum())
                counts[name][1] += int(chosen.sum())
            bar.advance(1)
    shares = {f"found_{name}": part / whole if whole else None for name, (part, whole) in counts.items()}
    objects = sum(whole for _, whole in counts.values())
    return shares | {
        "wrong_per_image": wrong / number,
        "touching": counts["touching"][1] / objects if objects else None,
    }


def found_objects(seen: Instances, truth: Instances) -> NDArray[np.bool_]:
    """[M]: objects that a detection of their class overlaps by more than half, one to one, the best pairs first."""
    iou = pairwise_iou(seen.masks, truth.masks) * (seen.labels[:, None] == truth.labels[None])
    is_found = np.zeros(len(truth.labels), bool)
    is_found[[column for _, column in match_by_iou(iou)]] = True
    return is_found


def as_markdown(rows: Mapping[str, Mapping[str, Sequence[float | None]]], heads: Mapping[str, str]) -> str:
    """The figures of ``heads``: means and deviations over runs of one name; names without any are left out."""

    def cell(values: Sequence[float | None]) -> str:
        known = [value for value in values if value is not None]
        if not known:
            return "-"
        spread = f" ± {np.std(known, ddof=1):.2f}" if len(known) > 1 else ""
        return f"{np.mean(known):.2f}{spread}"

    lines = [f"| students | {' | '.join(heads.values())} |", "|---" * (len(heads) + 1) + "|"]
    lines += [
        f"| {name} | {' | '.join(cell(row[figure]) for figure in heads)} |"
        for name, row in rows.items()
        if set(heads) <= set(row)
    ]
    return "\n".join(lines)


LABELS = {
    "labels_per_view": "labels of a view",
    "labels_per_view_after": "after pasting",
    "right": "right",
    "pasted": "of the other view",
    "covered": "covered in part",
    "gone": "lost",
}
FOUND = {
    "found_touching": "found: touching others",
    "found_alone": "found: alone",
    "wrong_per_image": "wrong an image",
}


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, write and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])  # type: ignore[union-attr]
    parser.add_argument("out", type=Path, metavar="OUT.json")
    parser.add_argument("runs", nargs="+", metavar="NAME=RUN_DIR", help="students; one name for all seeds of one kind")
    parser.add_argument("--views", type=int, default=200, help="unlabelled ones of each run with ARP (%(default)s)")
    parser.add_argument("--images", type=int, default=100, help="evaluation images (%(default)s)")
    parser.add_argument("--min-score", type=float, default=0.5, help="of a detection (%(default)s)")
    args = parser.parse_args(arguments)
    if min(args.views, args.images) < 1:
        parser.error("--views and --images: 1 or more")
    torch.set_num_threads(1)
    rows: dict[str, dict[str, list[float | None]]] = {}
    try:
        runs = [Run.parse(argument) for argument in args.runs]
        refuse_other_images(runs, runs[0].evaluation_images())
        for run in runs:
            figures = found_of(run, num_images=args.images, min_score=args.min_score)
            figures |= pasting_of(run, num_views=args.views) or {}
            for name, value in figures.items():
                rows.setdefault(run.name, {}).setdefault(name, []).append(value)
    except PipelineError as error:
        sys.exit(str(error))
    about = {"views": args.views, "images": args.images, "min_score": args.min_score, "machine": provenance()}
    write_json({**about, "rows": rows}, args.out)
    print(f"{as_markdown(rows, LABELS)}\n\n{as_markdown(rows, FOUND)}")


if __name__ == "__main__":
    main()
