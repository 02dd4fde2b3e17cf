"""``evaluate``: mask AP of a network or of a results file, and the quality of the pseudo-labels it would give."""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from mmengine.config import Config

from jobs import evaluate_refer
from jobs.evaluate_cityscapes import cityscapes_figures, cityscapes_lines, is_cityscapes
from jobs.networks import (
    Transforms,
    Which,
    build_transforms,
    class_names,
    detect_and_label,
    file_sha256,
    filter_of,
    load_network,
    num_classes,
    open_config,
    pack,
    transforms_digest,
    validated,
)
from jobs.progress import Progress
from jobs.provenance import provenance
from jobs.refer_networks import is_referring
from pipeline.data.coco import (
    BrokenImage,
    CocoSet,
    load_coco,
    refuse_no_object,
    subset,
    without_images,
    write_json,
)
from pipeline.data.splits import load_split
from pipeline.errors import ConfigError, ImageError, InputError, TooManyQuarantinedError
from pipeline.evaluation.coco_ap import MaskAp, mask_ap
from pipeline.evaluation.pseudo_label_quality import PseudoLabelQuality, pseudo_label_quality
from pipeline.evaluation.results import parse_results
from pipeline.images import read_image
from pipeline.masks import rle
from pipeline.models.training_hooks import detections
from pipeline.refine.interface import TeacherMasks

EVALUATION = "evaluation.json"
KEYS = ("val_annotations", "val_images", "val_part", "split_file", "max_broken_share", "val_split")
"""May be set although the config has none."""
MAX_BROKEN_SHARE = 0.01
Entries = list[dict[str, Any]]
"""A COCO results list."""


@dataclass(frozen=True)
class Seen:
    """What a network says of a data set."""

    detections: Entries
    pseudo_labels: Entries
    """Filtered, not refined."""
    broken: tuple[BrokenImage, ...]
    """Images that could not be read."""


def run(
    config_path: Path,
    checkpoint: Path,
    *,
    cfg_options: Sequence[str] = (),
    work_dir: Path | None = None,
    overwrite: bool = False,
    limit: int | None = None,
    network: Which | None = None,
) -> dict[str, Any]:
    """Do the command; see ``s4m-pipeline evaluate --help``.

    Args:
        config_path: Config of a teacher or student, whose validation set is measured on; ``val_annotations``,
            ``val_images`` and ``val_part`` (all | labelled | unlabelled of ``split_file``) choose another.
        checkpoint: Weights, or a COCO results list (``.json``), for example of pseudo-label.
        cfg_options: Overrides, ``key=value``.
        work_dir: Where ``evaluation.json`` goes; beside the checkpoint by default.
        overwrite: Replace an evaluation of something else that is there.
        limit: Only the first so many images (by id).
        network: Network of a student's checkpoint; that which its training validates where None.

    Returns:
        What ``evaluation.json`` holds.

    Raises:
        InputError: Wrong files or config, or an evaluation of something else is there.
        TooManyQuarantinedError: More images than allowed could not be read; the file is written all the same.
    """
    config = open_config(config_path, cfg_options, also_known=KEYS)
    file, network = (work_dir or checkpoint.parent) / EVALUATION, network or validated(config)
    if is_referring(config):
        return _evaluate_sentences(config, checkpoint, file, network=network, limit=limit, overwrite=overwrite)
    allowed = _allowed_share(config)
    is_results = checkpoint.suffix == ".json"
    model = None if is_results else load_network(config, checkpoint, which=network)
    whole = whole_truth(config, names=class_names(model) if model else None)
    coco = whole if limit is None else subset(whole, sorted(whole.by_id)[:limit])
    refuse_no_object(coco, where=_settings(config)["annotations"])
    if model is not None and len(coco.categories) != num_classes(model):
        raise _other_classes(coco, num_classes(model), where=config_path)
    given = as_seen(checkpoint, whole, coco) if is_results else None
    inputs = {
        "checkpoint_sha256": file_sha256(checkpoint),
        "network": "results file" if is_results else network,
        "dataset_fingerprint": coco.fingerprint,
        "pseudo_label_filter": None if is_results else asdict(filter_of(config)),
        "transforms": None if is_results else transforms_digest(config),
    }
    if file.exists() and not overwrite:
        report = _same_evaluation(file, inputs)
        done = "already evaluated"
    else:
        file.parent.mkdir(parents=True, exist_ok=True)
        seen = given or see(model, config, coco)
        report = _report(seen, coco, inputs)
        if is_cityscapes(config):
            annotations = Path(_settings(config)["annotations"])
            report["cityscapes_ap"] = cityscapes_figures(
                annotations, without_images(coco, seen.broken), seen.detections
            )
        names = {"config": str(config_path), "checkpoint": str(checkpoint), "limit": limit}
        write_json(report | {"provenance": provenance() | names}, file)
        done = "written"
    print(_table(report))
    print(f"{done}: {file}")
    _refuse_many_broken(report, allowed, coco)
    return report


def _evaluate_sentences(
    config: Config, checkpoint: Path, file: Path, *, network: Which, limit: int | None, overwrite: bool
) -> dict[str, Any]:
    inputs = evaluate_refer.inputs_of(config, checkpoint, network=network, limit=limit)
    if file.exists() and not overwrite:
        report, done = _same_evaluation(file, inputs), "already evaluated"
    else:
        report = evaluate_refer.measure(config, checkpoint, network=network, limit=limit) | {"inputs": inputs}
        file.parent.mkdir(parents=True, exist_ok=True)
        write_json(report | {"provenance": provenance() | {"checkpoint": str(checkpoint)}}, file)
        done = "written"
    print(evaluate_refer.table(report))
    print(f"{done}: {file}")
    return report


def _allowed_share(config: Config) -> float:
    share = config.get("max_broken_share", MAX_BROKEN_SHARE)
    if not (isinstance(share, int | float) and 0 <= share <= 1):
        raise ConfigError("not a share", where="max_broken_share", expected="a number from 0 to 1", got=share)
    return float(share)


def whole_truth(config: Config, *, names: Sequence[str] | None = None) -> CocoSet:
    """The set that a config validates on.

    Args:
        config: From ``open_config``.
        names: Classes in label order; None takes those of the config's ``val_evaluator``, or all in file order.

    Raises:
        ConfigError: the config names no validation set, or an unknown part.
        InputError: files that are missing or wrong.
    """
    chosen = _settings(config)
    coco = load_coco(Path(chosen["annotations"]), Path(chosen["images"]), class_names=names or chosen["names"])
    part, split_file = config.get("val_part", "all"), config.get("split_file")
    if part == "all":
        return coco
    if part not in ("labelled", "unlabelled") or split_file is None:
        expected = "all, or labelled or unlabelled with split_file"
        raise ConfigError("which images?", where="val_part", expected=expected, got=part)
    split = load_split(Path(split_file), coco, source=[chosen["annotations"]])
    return subset(coco, getattr(split, part))


def _settings(config: Config) -> dict[str, Any]:
    evaluator = config.get("val_evaluator") or {}
    annotations = config.get("val_annotations") or evaluator.get("annotation_file")
    images = config.get("val_images") or evaluator.get("image_root")
    if annotations is None or images is None:
        raise ConfigError(
            "the config names no validation set",
            where="val_annotations, val_images",
            expected="a COCO file and the folder of its images",
            got=f"{annotations}, {images}",
            fix="--cfg-options val_annotations=FILE --cfg-options val_images=FOLDER",
        )
    return {"annotations": annotations, "images": images, "names": evaluator.get("class_names")}


def see(model: Any, config: Config, coco: CocoSet) -> Seen:
    """Ask a network about every image of a set; images that cannot be read are left out and named.

    Args:
        model: From ``load_network``.
        config: From ``open_config``: transforms, batch size, filter.
        coco: Categories in label order.
    """
    loader, settings = config.get("val_dataloader") or {}, filter_of(config)
    batch_size = int(loader.get("batch_size", 1))
    found: Entries = []
    labels: Entries = []
    broken = [*coco.broken]
    with Progress("evaluate", len(coco.images)) as progress:
        for batch in _batches(coco, build_transforms(config), batch_size, broken):
            samples, masks = detect_and_label(model, batch, settings)
            for sample, mask in zip(samples, masks, strict=True):
                found += detections(sample, coco)
                labels += as_results(int(sample["img_id"]), mask, [c.category_id for c in coco.categories])
            progress.advance(len(batch))
    return Seen(found, labels, tuple(broken))


def _batches(
    coco: CocoSet, transforms: Transforms, batch_size: int, broken: list[BrokenImage]
) -> Iterator[list[Mapping[str, Any]]]:
    batch: list[Mapping[str, Any]] = []
    for image in coco.images:
        try:
            path = coco.path_of(image)
            pixels = read_image(path)
            if pixels.shape[:2] != (image.height, image.width):
                size = f"{pixels.shape[0]} x {pixels.shape[1]}"
                raise ImageError(f"size differs: annotated {image.height} x {image.width}, file {size}")
        except InputError as error:
            broken.append(BrokenImage(image.file_name, error.what))
            continue
        batch.append(pack(transforms, pixels, image_id=image.image_id, path=str(path)))
        if len(batch) == batch_size:
            yield batch
            batch = []
    if batch:
        yield batch


def as_results(image_id: int, masks: TeacherMasks, category_ids: Sequence[int]) -> Entries:
    """COCO results entries of one image's pseudo-labels; masks without a pixel are left out."""
    codes = rle.encode_many(masks.masks) if len(masks) else []
    return [
        {"image_id": image_id, "category_id": category_ids[label], "segmentation": code, "score": score}
        for code, label, score in zip(codes, masks.labels.tolist(), masks.scores.tolist(), strict=True)
        if rle.area(code)
    ]


def as_seen(file: Path, whole: CocoSet, coco: CocoSet) -> Seen:
    """A results file as if a network had said it.

    Args:
        file: COCO results about images of ``whole``.
        whole: The data set.
        coco: Its images that count.
    """
    entries: Entries = [
        {"image_id": d.image_id, "category_id": d.category_id, "segmentation": d.rle, "score": d.score}
        for d in parse_results(file, whole)
        if d.image_id in coco.by_id
    ]
    return Seen(entries, entries, coco.broken)


def _report(seen: Seen, coco: CocoSet, inputs: Mapping[str, Any]) -> dict[str, Any]:
    measured = without_images(coco, seen.broken)
    if not measured.images:
        raise InputError("not one image could be read", where=coco.image_root, got=f"{len(seen.broken)} broken images")
    figures: MaskAp = mask_ap(measured, seen.detections)
    quality: PseudoLabelQuality = pseudo_label_quality(measured, seen.pseudo_labels)
    return {
        "mask_ap": figures.as_dict(),
        "pseudo_labels": quality.as_dict(),
        "broken": [{"file_name": entry.file_name, "reason": entry.reason} for entry in seen.broken],
        "inputs": dict(inputs),
    }


def _same_evaluation(file: Path, inputs: Mapping[str, Any]) -> dict[str, Any]:
    try:
        report: dict[str, Any] = json.loads(file.read_bytes())
        there = dict(report["inputs"])
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(
            "a file is in the way that is no evaluation", where=file, fix="another --work-dir, or --overwrite"
        ) from error
    differing = [name for name in inputs if there.get(name) != inputs[name]]
    if differing:
        raise InputError(
            f"an evaluation with another {', '.join(differing)} is there already",
            where=file,
            expected="; ".join(f"{name} = {inputs[name]}" for name in differing),
            got="; ".join(f"{name} = {there.get(name)}" for name in differing),
            fix="choose another --work-dir, or replace it with --overwrite",
        )
    return report


def _table(report: Mapping[str, Any]) -> str:
    figures, labels = report["mask_ap"], report["pseudo_labels"]
    width = max(len("pseudo-labels"), *(len(name) for name in figures["per_class"]))
    lines = [
        f"{figures['num_images']} images, {figures['num_ground_truth']} objects, {figures['num_detections']} found",
        f"{'':{width}}  {'AP':>6}  {'AP50':>6}  {'AP75':>6}  {'AR100':>6}",
        f"{'mask':{width}}  " + "  ".join(shown(figures[name]) for name in ("ap", "ap50", "ap75", "ar100")),
        *(f"{name:{width}}  {shown(ap)}" for name, ap in figures["per_class"].items()),
        f"{'':{width}}  {'CA':>6}  {'SQ':>6}  {'prec':>6}  {'recall':>6}",
        f"{'pseudo-labels':{width}}  "
        + "  ".join(
            shown(labels[name]) for name in ("class_accuracy", "segmentation_quality", "matched_share", "found_share")
        )
        + f"  ({labels['num_pseudo_labels']} of them)",
        *(cityscapes_lines(report["cityscapes_ap"]) if "cityscapes_ap" in report else ()),
        *(f"broken: {entry['file_name']}: {entry['reason']}" for entry in report["broken"]),
    ]
    return "\n".join(lines)


def shown(value: float | None) -> str:
    """A share with four digits, or a dash where nothing was measured."""
    return f"{'-':>6}" if value is None else f"{value:6.4f}"


def _refuse_many_broken(report: Mapping[str, Any], allowed: float, coco: CocoSet) -> None:
    total, broken = len(coco.images) + len(coco.broken), report["broken"]
    if len(broken) > allowed * total:
        raise TooManyQuarantinedError(
            f"{len(broken)} of {total} images could not be read",
            where=coco.image_root,
            expected=f"at most {100 * allowed:g} % (max_broken_share)",
            got="; ".join(f"{entry['file_name']}: {entry['reason']}" for entry in broken[:5]),
            fix="replace these files, or allow more; the figures are of the other images",
        )


def _other_classes(coco: CocoSet, expected: int, *, where: Path) -> ConfigError:
    return ConfigError(
        "the validation set has other classes than the network",
        where=where,
        expected=f"{expected} classes",
        got=f"{len(coco.categories)}: {[category.name for category in coco.categories][:8]}",
        fix="use the config of this checkpoint, or name its classes in val_evaluator.class_names",
    )
