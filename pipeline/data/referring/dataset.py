"""Referred objects as training and evaluation samples, to be put into the streams of ``instance_dataset.py``."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
from mmengine.dataset import Compose
from torch.utils.data import Dataset

from pipeline.data.coco import BrokenImage, check_image_files, subset, without_images
from pipeline.data.coco_problems import nearest_name
from pipeline.data.instance_dataset import Record, image_record
from pipeline.data.referring.expression_files import Format, ReferredObject, Sentence
from pipeline.data.referring.sets import MaskOverlap, ReferSet, open_refer_files
from pipeline.data.referring.splits import load_refer_split
from pipeline.errors import ConfigError, InputError

_CHOICES = {
    "part": ("all", "labelled", "unlabelled"),
    "epoch": ("object", "expression"),
    "sentence": ("random", "all"),
    "text": ("sent", "raw"),
    "truth": (None, "shown", "hidden", "none"),
}


@dataclass(frozen=True)
class ReferDataSettings:
    """What is read, and what one sample is."""

    expressions_file: str
    """``refs(unc).p`` and the like, the same as JSON, or the expressions of the scenes."""
    annotation_file: str
    """COCO instances."""
    image_root: str
    split: str
    """Of the expressions: train | val | testA | testB | test, or as the file names it."""
    format: Format | None = None
    """refer | scenes; None tells them apart."""
    split_file: str | None = None
    """Which images are labelled (``pipeline/data/referring/splits.py``); needed for a part."""
    part: str = "all"
    """all | labelled | unlabelled images of the split file."""
    epoch: str = "object"
    """One sample per object (as in SemiRES) | one per expression: objects with many sentences come more often."""
    sentence: str = "random"
    """random: every sample draws one of its object's | all: every expression once, for epochs of expressions."""
    text: str = "sent"
    """sent (cleaned; paper's training) | raw (as written; paper's evaluation)."""
    mask_overlap: MaskOverlap = "union"
    """union | hole, see :meth:`~pipeline.data.referring.sets.ReferSource.with_masks`."""
    truth: str | None = None
    """shown | hidden (masks only measure pseudo-labels) | none (no mask is read). None: shown, but none of unlabelled
    images; theirs are never shown."""

    def __post_init__(self) -> None:
        """Refuse what does not exist or does not go together (ConfigError)."""
        for name, choices in _CHOICES.items():
            if getattr(self, name) not in choices:
                raise ConfigError(f"unknown {name}", where=name, expected=choices, got=getattr(self, name))
        if self.part != "all" and self.split_file is None:
            raise ConfigError("which images?", where="part", expected="split_file with a part", got=self.part)
        if self.part == "unlabelled" and self.truth == "shown":
            raise ConfigError("unlabelled images show no truth", where="truth", expected="hidden | none", got="shown")
        if self.epoch == "object" and self.sentence == "all":
            expected = "epoch='expression' with it: one sample has one sentence"
            raise ConfigError("all sentences of an object", where="sentence", expected=expected, got="epoch='object'")

    @property
    def shown_truth(self) -> str:
        """The settled ``truth``."""
        return self.truth or ("none" if self.part == "unlabelled" else "shown")


class ReferDataset(Dataset):
    """Objects of one split, with a sentence each, through a list of transforms.

    Each sample starts as a dict with ``img`` [H, W, 3] uint8 RGB in the canonical frame, ``homography_matrix``
    (identity), ``ref_id``, ``sentence_id``, ``sentence`` and ``has_target`` (True where no truth is shown: whether
    anything is meant is a label too), and ``gt_mask`` or ``hidden_mask`` [H, W] bool.
    """

    metainfo: Mapping[str, Any]

    def __init__(self, *, pipeline: Sequence[Mapping[str, Any]], **settings: Any) -> None:
        """Read and check the files; masks of objects that are not to be seen are not read.

        Args:
            pipeline: Transforms.
            settings: Those of :class:`ReferDataSettings`.

        Raises:
            InputError: a file is missing or wrong.
            ConfigError: settings that are unknown or contradict each other, or a split that is not there.
        """
        self.settings = ReferDataSettings(**known_settings(settings))
        self.refer_set = _read(self.settings)
        self.coco = subset(self.refer_set.coco, self.refer_set.image_ids)
        self.metainfo = {"classes": ()}
        self.transforms = Compose(list(pipeline))
        self._entries = _entries(self.refer_set, self.settings)

    def __len__(self) -> int:
        """Return the samples of one pass: objects or expressions."""
        return len(self._entries)

    def __getitem__(self, index: int) -> Record | None:
        """Sample ``index`` through the transforms. A random sentence is numpy's global generator's choice."""
        sample: Record | None = self.transforms(self.record(index))
        return sample

    def file_name_of(self, index: int) -> str:
        """Which image a sample is of."""
        return self.coco.by_id[self._entries[index][0].image_id].file_name

    def question(self, index: int) -> tuple[ReferredObject, Sentence]:
        """Whose sample ``index`` is, and by which sentence; a random one is drawn anew every time."""
        thing, sentence = self._entries[index]
        return thing, sentence or thing.sentences[np.random.randint(len(thing.sentences))]

    def record(self, index: int) -> Record:
        """The untransformed sample."""
        thing, sentence = self.question(index)
        sample = image_record(self.coco, self.coco.by_id[thing.image_id])
        sample["ref_id"], sample["sentence_id"] = thing.ref_id, sentence.sentence_id
        sample["sentence"] = sentence.text if self.settings.text == "sent" else sentence.raw
        shown = self.settings.shown_truth
        sample["has_target"] = bool(thing.annotation_ids) or shown != "shown"
        if shown != "none":
            sample["gt_mask" if shown == "shown" else "hidden_mask"] = self.refer_set.truth(thing)
        return sample


class CheckedReferDataset(ReferDataset):
    """A :class:`ReferDataset` whose images were all read once, for what goes through it to its end."""

    broken: tuple[BrokenImage, ...]
    """Images that could not be read; no sample is of them."""

    def __init__(self, *, max_broken_share: float = 0.01, **settings: Any) -> None:
        """Read every image; objects of broken ones are left out, and the images named.

        Args:
            max_broken_share: Share of broken images, 0 to 1, above which the data set is refused.
            settings: Those of :class:`ReferDataset`.

        Raises:
            TooManyQuarantinedError: more images are broken than allowed.
            InputError: see :class:`ReferDataset`.
        """
        super().__init__(**settings)
        self.broken = tuple(check_image_files(self.coco, max_broken_share=max_broken_share, decode=True))
        self.coco = without_images(self.coco, self.broken)
        self.refer_set = self.refer_set.of_images(self.coco.by_id)
        self._entries = _entries(self.refer_set, self.settings)


def known_settings(settings: Mapping[str, Any]) -> Mapping[str, Any]:
    """The settings as they are.

    Raises:
        ConfigError: one that :class:`ReferDataSettings` does not have, with the nearest name, or a missing one.
    """
    names = [field.name for field in fields(ReferDataSettings)]
    needed = names[: names.index("format")]
    for name in settings:
        if name not in names:
            what = f"unknown setting of a referring data set{nearest_name(name, names)}"
            raise ConfigError(what, where=name, expected=names, got=name)
    if missing := [name for name in needed if name not in settings]:
        raise ConfigError("settings of a referring data set are missing", expected=needed, got=f"no {missing}")
    return settings


def _read(settings: ReferDataSettings) -> ReferSet:
    source = open_refer_files(
        expressions_file=Path(settings.expressions_file),
        annotation_file=Path(settings.annotation_file),
        image_root=Path(settings.image_root),
        split=settings.split,
        format=settings.format,
    )
    chosen = source.sentences
    if settings.part != "all" and settings.split_file is not None:
        files = settings.annotation_file, "--expressions", settings.expressions_file
        split = load_refer_split(Path(settings.split_file), chosen, source=files)
        chosen = chosen.of_images(split.labelled if settings.part == "labelled" else split.unlabelled)
    if settings.shown_truth != "none":
        chosen = source.with_masks(chosen, mask_overlap=settings.mask_overlap)
    if not chosen.objects:
        got = f"split {settings.split}, part {settings.part}"
        raise InputError("the data set is empty", where=settings.expressions_file, got=got, fix="check the split file")
    return chosen


def _entries(refer_set: ReferSet, settings: ReferDataSettings) -> list[tuple[ReferredObject, Sentence | None]]:
    """What every index stands for; the sentence is None where it is drawn anew every time."""
    if settings.epoch == "object":
        return [(thing, None) for thing in refer_set.objects]
    is_random = settings.sentence == "random"
    return [(thing, None if is_random else s) for thing in refer_set.objects for s in thing.sentences]
