"""The part of ``evaluate`` for referring expressions: every sentence of a split, by a network or from a file."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mmengine.config import Config
from mmengine.registry import DATASETS, METRICS, init_default_scope

from data_schemas.manifest import digest
from jobs.labels.answers import read_answers
from jobs.networks import Which, file_sha256, load_network, plain, transforms_digest
from jobs.progress import Progress
from jobs.refer_networks import answer
from jobs.training.starting_weights import refuse_run_directory
from pipeline.errors import ConfigError, InputError
from pipeline.masks import rle
from pipeline.models.weights import EMBEDDED

_OF_DETECTORS = ("val_annotations", "val_images", "val_part")


def inputs_of(config: Config, checkpoint: Path, *, network: Which, limit: int | None) -> dict[str, Any]:
    """What decides the figures, for the report; see :func:`measure`.

    Raises:
        ConfigError: a validation set is chosen as for a detector, or the config names none.
        InputError: no such checkpoint or results.
    """
    is_results = checkpoint.suffix == ".json"
    refuse_run_directory(checkpoint)
    if not checkpoint.is_file() and str(checkpoint) not in EMBEDDED:
        raise InputError("no such checkpoint or results", where=checkpoint, fix="correct the path")
    _refuse_other_set(config)
    return {
        "checkpoint_sha256": file_sha256(checkpoint),
        "network": "results file" if is_results else network,
        "model": None if is_results else digest(plain(config.model))[:16],
        "validation": digest(plain(config.get("val_evaluator")))[:16],
        "sentences": _sentences_digest(config),
        "split": str((config.get("val_evaluator") or {}).get("files", {}).get("split")),
        "limit": limit,
        "transforms": None if is_results else transforms_digest(config),
    }


def measure(config: Config, checkpoint: Path, *, network: Which, limit: int | None) -> dict[str, Any]:
    """Measure on the config's validation sentences (``val_split`` chooses another split).

    Args:
        config: From ``open_config``.
        checkpoint: Weights, or a JSON list of answers as ``pseudo-label`` writes it.
        network: Network of a student's checkpoint.
        limit: Only the first so many sentences.

    Returns:
        ``refer``: figures in [0, 1], at the images' own size, and ``_view`` at the network's; ``num_sentences``, and
        of a network ``num_cut``: those that are longer than it reads. ``broken``: images whose sentences were not
        asked, each with ``file_name`` and ``reason``.

    Raises:
        PipelineError: wrong files or config, or answers that do not fit.
    """
    is_results = checkpoint.suffix == ".json"
    model = None if is_results else load_network(config, checkpoint, which=network)
    metric, dataset = _metric(config, with_view=not is_results, is_whole=limit is None), _dataset(config)
    num = len(dataset) if limit is None else min(limit, len(dataset))
    batch_size = int((config.get("val_dataloader") or {}).get("batch_size", 1))
    given = given_answers(checkpoint, dataset, num) if model is None else _asked(model, dataset, num, batch_size)
    with Progress("evaluate", num, unit="sentences") as progress:
        for sample in given:
            metric.process(None, [sample])
            progress.advance()
    cut = {} if model is None else {"num_cut": int(model.network.text_encoder.num_truncated)}
    broken = [{"file_name": entry.file_name, "reason": entry.reason} for entry in getattr(dataset, "broken", ())]
    return {"refer": {"num_sentences": num, **cut, **metric.compute_metrics(metric.results)}, "broken": broken}


def table(report: Mapping[str, Any]) -> str:
    """The figures for people, in percent."""
    figures = report["refer"]
    lines = [f"{figures['num_sentences']} sentences of split {report['inputs']['split']}"]
    if figures.get("num_cut"):
        lines.append(f"{figures['num_cut']} of them are longer than the network reads and were cut")
    names = [name for name in figures if not name.startswith("num_")]
    for ending, title in (("", "at the images' own size"), ("_view", "at the network's size")):
        chosen = [name for name in names if name.endswith("_view") == bool(ending)]
        if chosen:
            lines.append(f"{title}:")
            lines += [f"  {name.removesuffix(ending):16} {100 * figures[name]:6.2f}" for name in chosen]
    lines += [f"broken: {entry['file_name']}: {entry['reason']}" for entry in report.get("broken", ())]
    return "\n".join(lines)


def _refuse_other_set(config: Config) -> None:
    chosen = [name for name in _OF_DETECTORS if config.get(name) is not None]
    if chosen:
        raise ConfigError(
            "these settings choose a detector's validation set, not sentences",
            where=", ".join(chosen),
            got=str(config.get(chosen[0])),
            fix="--cfg-options val_split=... for another split; for other files val_evaluator.files.NAME and "
            "val_dataloader.dataset.NAME, with NAME expressions_file, annotation_file and image_root",
        )
    if "val_dataloader" not in config:
        raise ConfigError("the config names no validation sentences", where="val_dataloader")


def _sentences_digest(config: Config) -> str:
    """Of the sentences that are asked, and of the contents of their files."""
    settings = {name: value for name, value in config.val_dataloader.dataset.items() if name != "pipeline"}
    files = [Path(str(settings.get(name))) for name in ("expressions_file", "annotation_file")]
    return digest([plain(settings), [file_sha256(file) if file.is_file() else None for file in files]])[:16]


def _metric(config: Config, *, with_view: bool, is_whole: bool) -> Any:
    """The config's metric; the smallest objects are those of the whole split, so a part of it has none."""
    settings = dict(config.get("val_evaluator") or {})
    if "files" not in settings:
        raise ConfigError("the config names no validation sentences", where="val_evaluator.files")
    init_default_scope("mmdet")
    resolutions = ("native", "view") if with_view else ("native",)
    return METRICS.build({**settings, "resolutions": resolutions, "smallest": (5, 10) if is_whole else ()})


def _dataset(config: Config) -> Any:
    init_default_scope("mmdet")
    return DATASETS.build(dict(config.val_dataloader.dataset))


def _asked(model: Any, dataset: Any, num: int, batch_size: int) -> Iterator[Mapping[str, Any]]:
    for start in range(0, num, batch_size):
        packed = [dataset[index] for index in range(start, min(start + batch_size, num))]
        for sample in answer(model, packed):
            yield sample.to_dict()


def given_answers(file: Path, dataset: Any, num: int) -> Iterator[Mapping[str, Any]]:
    """What the metric needs of a network's samples, from a file; no image is read, and one mask unpacked at a time.

    Args:
        file: Of :func:`read_answers`.
        dataset: A ``ReferDataset``.
        num: How many of its samples, from the first on.

    Raises:
        InputError: sentences of the split that the file does not answer.
    """
    answers = read_answers(file, dataset.refer_set)
    asked = [(thing.ref_id, sentence.sentence_id) for thing, sentence in map(dataset.question, range(num))]
    missing = [sentence_id for _, sentence_id in asked if sentence_id not in answers]
    if missing:
        raise InputError(
            "sentences without an answer",
            where=file,
            expected=f"an entry for each of the {num} sentences of the split",
            got=f"none for {len(missing)}, such as sentence {missing[0]}",
            fix="label this split with pseudo-label, or choose the split that was labelled with val_split",
        )
    for ref_id, sentence_id in asked:
        found = answers[sentence_id]
        mask = torch.from_numpy(np.ascontiguousarray(rle.decode(found.code)))
        about = {} if found.no_target is None else {"pred_no_target": found.no_target}
        yield {"ref_id": ref_id, "sentence_id": sentence_id, "pred_mask": mask, **about}
