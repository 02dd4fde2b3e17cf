"""The part of ``pseudo-label`` for referring expressions: every sentence about the unlabelled images, image by image.

Rows lie in the same store as those of a detector; ``instance_id`` counts an image's sentences by rising id, and
``category_id`` is the sentence's id.
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
from mmengine.config import Config
from numpy.typing import NDArray

from data_schemas.manifest import ImageKey, digest
from data_schemas.pseudo_labels import PseudoLabel
from jobs.labels.answers import NETWORK, RESULTS, as_answers
from jobs.labels.instances import Labeller, PseudoLabelStage, as_rows
from jobs.labels.settings import LabelSettings, Source, stream_settings
from jobs.networks import plain
from jobs.refer_networks import pack_sentence, teacher_answers
from pipeline.data.coco import subset, write_json
from pipeline.data.referring.dataset import ReferDataset, ReferDataSettings
from pipeline.errors import ConfigError, InputError
from pipeline.evaluation.correction_statistics import count_corrections
from pipeline.evaluation.refer_metrics import figures_of, score_expression
from pipeline.masks import rle


@dataclass(frozen=True)
class Question:
    """A sentence about an image."""

    ref_id: int
    sentence_id: int
    text: str


@dataclass(frozen=True)
class ReferLabeller(Labeller):
    """A labeller that is asked sentences; picklable."""

    questions: Mapping[int, tuple[Question, ...]] = field(default_factory=dict)
    """Image id -> its sentences by rising id."""
    network_digest: str = ""
    """See :func:`network_digest`."""

    def digest(self) -> str:
        """Of all questions: another sentence is another run."""
        asked = [(i, q.ref_id, q.sentence_id, q.text) for i, every in sorted(self.questions.items()) for q in every]
        return digest(asked)[:16]


class ReferLabelStage(PseudoLabelStage):
    """Answers every sentence about every image of a shard."""

    settings: ReferLabeller

    def label(self, key: ImageKey, image: NDArray[np.uint8]) -> list[PseudoLabel]:
        """The answers about one image [H, W, 3] uint8 RGB, by rising sentence id."""
        asked = self.settings.questions.get(key.image_id, ())
        if not asked:
            return []
        packed = [
            pack_sentence(self.transforms, image, q.text, image_id=key.image_id, path=key.file_name) for q in asked
        ]
        answers = teacher_answers(self.model, packed)
        rng = np.random.default_rng([self.settings.seed, key.image_id])
        refined = self.refiner.refine(key.image_id, image, answers.masks, rng)
        rows = as_rows(key, answers.masks, refined, tuple(q.sentence_id for q in asked))
        return [replace(row, no_target=said) for row, said in zip(rows, answers.no_target, strict=True)]


def network_digest(config: Config) -> str:
    """Of how a referring teacher's or student's network reads images and sentences, beside its weights.

    The same weights give other answers with another number of tokens. Where the backbone once started does not count.
    """
    network = plain(config.model.get("segmentor", config.model).network)
    start = ("weights", "weights_sha256")
    backbone = {name: value for name, value in network.get("backbone", {}).items() if name not in start}
    return digest({**network, "backbone": backbone})[:16]


def find_sentences(config: Config, settings: LabelSettings, *, limit: int | None = None) -> ReferDataset:
    """The sentences to answer: all of the config's unlabelled stream, or of another ``part`` of its split file.

    Masks are only read where the stream may see them hidden (``truth="hidden"``): they measure, and do nothing else.

    Args:
        config: A referring teacher's or student's.
        settings: Of the command; its ``part`` and ``split_file`` count.
        limit: Only the first so many images (by id).

    Raises:
        ConfigError: other images are asked for, or the config names no unlabelled sentences.
        InputError: files that are missing or wrong, or nothing to label.
    """
    if settings.images is not None:
        raise ConfigError(
            "sentences are needed, not images alone",
            where="pseudo_label.images",
            expected="the unlabelled_stream of the config",
            got=settings.images,
            fix="change expressions_file, annotation_file and image_root of unlabelled_stream in a copy of the config",
        )
    stream = stream_settings(config, "unlabelled")
    if "expressions_file" not in stream:
        raise ConfigError("the config names no unlabelled sentences", where="unlabelled_stream")
    known = {f.name for f in fields(ReferDataSettings)}
    own = {name: value for name, value in stream.items() if name in known}
    own |= {"epoch": "expression", "sentence": "all", "truth": "hidden" if own.get("truth") == "hidden" else "none"}
    own |= {"part": settings.part or own.get("part", "all")}
    own |= {"split_file": settings.split_file or own.get("split_file")}
    own |= {"image_root": settings.image_root or own.get("image_root")}
    dataset = ReferDataset(pipeline=[], **own)
    if limit is not None:
        dataset.coco = subset(dataset.coco, sorted(dataset.coco.by_id)[:limit])
    return dataset


def questions_of(dataset: ReferDataset) -> dict[int, tuple[Question, ...]]:
    """Sentences by image, each image's by rising id.

    Raises:
        InputError: a sentence id that comes twice: answers could not be told apart.
    """
    found: dict[int, list[Question]] = {image_id: [] for image_id in dataset.coco.by_id}
    is_cleaned = dataset.settings.text == "sent"
    for thing in dataset.refer_set.objects:
        if thing.image_id in found:
            found[thing.image_id] += [
                Question(thing.ref_id, s.sentence_id, s.text if is_cleaned else s.raw) for s in thing.sentences
            ]
    counts = Counter(q.sentence_id for every in found.values() for q in every)
    twice = [number for number, count in counts.items() if count > 1]
    if twice:
        raise InputError(
            "sentence ids that come twice",
            where=dataset.settings.expressions_file,
            expected="one sentence for each sent_id",
            got=f"{len(twice)} ids, such as {twice[0]}",
        )
    return {image_id: tuple(sorted(every, key=lambda q: q.sentence_id)) for image_id, every in found.items()}


def as_source(dataset: ReferDataset) -> Source:
    """The images, as ``pseudo-label`` wants them."""
    return Source(dataset.coco, (), None, dataset.coco.broken)


def write_answers(
    folder: Path, rows: Sequence[PseudoLabel], questions: Mapping[int, Sequence[Question]]
) -> list[dict[str, Any]]:
    """Write ``network.json`` and ``results.json`` into the run directory; returns the latter's entries."""
    sentences = {q.sentence_id: (q.ref_id, q.text) for every in questions.values() for q in every}
    write_json(as_answers(rows, sentences, "network"), folder / NETWORK)
    results = as_answers(rows, sentences, "refined")
    write_json(results, folder / RESULTS)
    return results


def quality(rows: Iterable[PseudoLabel], dataset: ReferDataset) -> dict[str, Any] | None:
    """oIoU and mIoU before and after refinement, and the counts of SemiRES' Figure 6; None without ground truth.

    Sentences that mean nothing have no object to come nearer to: ``num_without_object`` counts them, no figure does.
    Answers that were dropped (``num_dropped``) are empty in ``after``; corrections, which are about what a match
    changes, count them as not corrected, with the teacher's IoU.
    """
    if dataset.settings.shown_truth == "none":
        return None
    objects = {s.sentence_id: thing for thing in dataset.refer_set.objects for s in thing.sentences}
    scores: dict[str, list[Any]] = {"network": [], "refined": []}
    outcomes, num_without_object = [], 0
    for row in rows:
        thing = objects[row.category_id]
        if not thing.annotation_ids:
            num_without_object += 1
            continue
        truth = dataset.refer_set.truth(thing)
        for which, found in scores.items():
            code = rle.Rle(size=[row.height, row.width], counts=getattr(row, f"{which}_rle"))
            found.append(score_expression(rle.decode(code), truth, ids=(thing.ref_id, row.category_id)))
        outcomes.append(row.outcome)
    before, after = (np.array([score.iou for score in found], np.float64) for found in scores.values())
    return {
        "before": figures_of(scores["network"]).named(),
        "after": figures_of(scores["refined"]).named(),
        "corrections": count_corrections(before, after, outcomes).as_dict(),  # type: ignore[arg-type]
        "num_dropped": outcomes.count("dropped"),
        "num_without_object": num_without_object,
    }
