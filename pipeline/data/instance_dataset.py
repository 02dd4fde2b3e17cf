"""Checked COCO sets as training data: mmdet-style samples, and endless streams that resume anywhere.

A training stream is a function of its position: position p of a stream always gives the same image under the same
augmentation, whatever the number of workers and wherever the run was interrupted.
"""

import logging
import random
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from mmdet.structures.bbox import HorizontalBoxes
from mmdet.structures.mask import BitmapMasks
from mmengine.dataset import Compose
from mmengine.dist import get_dist_info
from mmengine.registry import DATASETS
from torch.utils.data import Dataset, Sampler

from pipeline.data.coco import (
    BrokenImage,
    CocoImage,
    CocoSet,
    check_image_files,
    load_coco,
    load_images,
    reason_of,
    refuse_many_broken,
    subset,
    without_images,
)
from pipeline.data.repeat_factor import Passes, classes_of_images, repeat_factors
from pipeline.data.splits import load_split
from pipeline.errors import ConfigError, InputError
from pipeline.images import read_image
from pipeline.masks import rle

Record = dict[str, Any]
_PARTS = ("all", "labelled", "unlabelled")
_MAX_REDRAWS = 20
_LOG = logging.getLogger(__name__)


class InstanceDataset(Dataset):
    """Images of a checked COCO set through a list of mmdet transforms.

    Each sample starts as a dict with ``img`` [H, W, 3] uint8 RGB in the canonical frame, ``homography_matrix``
    (identity) and, where ``with_masks``, boxes, labels and masks without crowds.
    """

    def __init__(
        self,
        *,
        annotation_file: str,
        image_root: str,
        pipeline: Sequence[Mapping[str, Any]],
        split_file: str | None = None,
        part: str = "all",
        class_names: Sequence[str] | None = None,
        with_masks: bool = True,
    ) -> None:
        """Read and check the annotation file.

        Args:
            annotation_file: COCO JSON; for images without labels also a plain folder.
            image_root: Folder of the images.
            pipeline: mmdet transforms.
            split_file: Written by ``s4m-pipeline split``; needed for a part.
            part: all | labelled | unlabelled images of the split. Labelled images without an object are left out.
            class_names: Only these classes, in this order.
            with_masks: Give the annotations to the transforms.

        Raises:
            InputError: a file is missing or wrong.
            ConfigError: a part without a split, or an unknown part.
        """
        if part not in _PARTS or (part != "all" and split_file is None):
            raise ConfigError("which images?", where="part", expected=f"one of {_PARTS}, with split_file", got=part)
        source = Path(annotation_file)
        if source.is_dir() or not with_masks:
            whole = load_images(source, Path(image_root))
        else:
            whole = load_coco(source, Path(image_root), class_names=class_names)
        ids = [image.image_id for image in whole.images]
        if part != "all" and split_file is not None:
            chosen = load_split(Path(split_file), whole, source=[source])
            ids = list(chosen.labelled if part == "labelled" else chosen.unlabelled)
        if part == "labelled" and with_masks:
            ids = _taught(whole, ids, where=source)
        self.coco: CocoSet = replace(subset(whole, ids), broken=whole.broken if part == "all" else ())
        if not self.coco.images:
            raise InputError("the data set is empty", where=source, got=f"part {part}", fix="check the split file")
        self.with_masks = with_masks
        self.metainfo = {"classes": tuple(category.name for category in self.coco.categories)}
        self.transforms = Compose(list(pipeline))

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self.coco.images)

    def __getitem__(self, index: int) -> Record | None:
        """Image ``index`` through the transforms; None where a transform gave it up (an empty crop)."""
        sample: Record | None = self.transforms(self.record(index))
        return sample

    def record(self, index: int) -> Record:
        """The untransformed sample."""
        sample = image_record(self.coco, self.coco.images[index])
        return sample | self.annotations(index) if self.with_masks else sample

    def file_name_of(self, index: int) -> str:
        """Which image a sample is of."""
        return self.coco.images[index].file_name

    def annotations(self, index: int) -> Record:
        """Boxes [N, 4], labels [N] and masks [N, H, W] of an image, crowds left out."""
        image = self.coco.images[index]
        objects = [a for a in self.coco.annotations[image.image_id] if a.is_taught]
        masks = [rle.decode(a.rle).astype(np.uint8) for a in objects]
        boxes = [(x, y, x + w, y + h) for x, y, w, h in (a.bbox_xywh for a in objects)]
        return {
            "gt_masks": BitmapMasks(masks, image.height, image.width),
            "gt_bboxes": HorizontalBoxes(np.array(boxes, np.float32).reshape(-1, 4)),
            "gt_bboxes_labels": np.array([self.coco.labels[a.category_id] for a in objects], np.int64),
            "gt_ignore_flags": np.zeros(len(objects), bool),
        }


def _taught(coco: CocoSet, ids: Sequence[int], *, where: Path) -> list[int]:
    """Labelled images that have an object, as both papers' code takes them; the others teach nothing to look for."""
    kept = [image_id for image_id in ids if image_id in coco.taught_ids]
    if len(kept) < len(ids):
        _LOG.warning(
            "%d of %d labelled images of %s have no object and are left out", len(ids) - len(kept), len(ids), where
        )
    if ids and not kept:
        raise InputError(
            "no labelled image has an object", where=where, got=f"{len(ids)} images", fix="check the annotation file"
        )
    return kept


def image_record(coco: CocoSet, image: CocoImage) -> Record:
    """The start of a sample: ``img`` [H, W, 3] uint8 RGB in the canonical frame, and where it is from.

    Raises:
        InputError: the image cannot be read, or has another size than the annotation file says.
    """
    path = coco.path_of(image)
    pixels = read_image(path)
    if pixels.shape[:2] != (image.height, image.width):
        raise InputError(
            "image size differs from the annotation file",
            where=path,
            expected=f"{image.height} x {image.width}",
            got=f"{pixels.shape[0]} x {pixels.shape[1]}",
            fix="correct height and width, or convert the EXIF rotation of the annotations",
        )
    return {
        "img": pixels,
        "img_id": image.image_id,
        "img_path": str(path),
        "img_shape": pixels.shape[:2],
        "ori_shape": pixels.shape[:2],
        "homography_matrix": np.eye(3, dtype=np.float32),
    }


class CheckedDataset(InstanceDataset):
    """An :class:`InstanceDataset` whose images were all read once, for what goes through it to its end."""

    def __init__(self, *, max_broken_share: float = 0.01, **settings: Any) -> None:
        """Read every image; broken ones are named and left out.

        Args:
            max_broken_share: Share of broken images, 0 to 1, above which the data set is refused.
            settings: Those of :class:`InstanceDataset`.

        Raises:
            TooManyQuarantinedError: more images are broken than allowed.
            InputError: see :class:`InstanceDataset`.
        """
        super().__init__(**settings)
        broken = check_image_files(self.coco, max_broken_share=max_broken_share, decode=True)
        self.coco = without_images(self.coco, broken)


class StreamSource(Protocol):
    """What a stream needs of a data set; a sample is of one of the images of ``coco``."""

    coco: CocoSet
    metainfo: Mapping[str, Any]

    def __len__(self) -> int:
        """Return the number of samples."""

    def __getitem__(self, index: int) -> Record | None:
        """One sample; None where a transform gave it up."""

    def file_name_of(self, index: int) -> str:
        """Which image a sample is of."""


class StreamDataset(Dataset):
    """An endless, shuffled, augmented stream over a data set, addressed by position."""

    def __init__(
        self,
        dataset: Mapping[str, Any],
        *,
        seed: int,
        name: str = "stream",
        max_broken_share: float = 0.01,
        repeat_threshold: float | None = None,
    ) -> None:
        """Build the inner data set.

        Args:
            dataset: Config of an :class:`InstanceDataset`, or of another :class:`StreamSource`.
            seed: With ``name``, fixes order and augmentation.
            name: Streams of different names differ though seeds are equal.
            max_broken_share: Share of images that cannot be used, 0 to 1, above which reading ends.
            repeat_threshold: Images with classes in a smaller share of the images come more often (see
                ``repeat_factor.py``); None: every sample once a pass.

        Raises:
            ConfigError: a threshold that is no positive number, or one for samples that are not whole images.
        """
        self.dataset: StreamSource = DATASETS.build(dict(dataset))
        self.seed, self.name = seed, [ord(letter) for letter in name]
        self.metainfo, self.max_broken_share = self.dataset.metainfo, max_broken_share
        factors = None
        if repeat_threshold is not None:
            if not isinstance(self.dataset, InstanceDataset):
                raise ConfigError(
                    "only whole images are repeated", where="repeat_threshold", expected="None", got=repeat_threshold
                )
            factors = repeat_factors(classes_of_images(self.dataset.coco), repeat_threshold)
        self._passes = Passes([seed, *self.name], len(self.dataset), factors=factors)
        self._broken = {entry.file_name: entry for entry in self.dataset.coco.broken}

    def __len__(self) -> int:
        """Return the positions of one pass."""
        return len(self._passes)

    def __getitem__(self, position: int) -> Record:
        """Sample at ``position`` >= 0. A draw that the transforms give up is drawn again, then the next image.

        The next image also takes the place of one that cannot be used: broken, or without SAM's targets.

        Raises:
            TooManyQuarantinedError: more images cannot be used than allowed.
            InputError: no draw succeeded.
        """
        shift = 0
        for attempt in range(_MAX_REDRAWS):
            index = self.index_at(position + shift)
            with seeded([self.seed, *self.name, position, attempt]):
                try:
                    sample = self.dataset[index]
                except ConfigError:
                    raise
                except InputError as error:
                    self._set_aside(index, error)
                    sample, shift = None, shift + 1
                    continue
            if sample is not None:
                return sample
            shift += attempt + 1 >= _MAX_REDRAWS // 2
        raise InputError(
            f"no usable crop in {_MAX_REDRAWS} draws",
            where=self.dataset.file_name_of(self.index_at(position)),
            fix="check that the labelled images have objects of a size that survives the transforms",
        )

    def _set_aside(self, index: int, error: InputError) -> None:
        """Name an image that cannot be used, the first time; every reading process keeps its own count."""
        name = self.dataset.file_name_of(index)
        if name in self._broken:
            return
        self._broken[name] = BrokenImage(name, reason_of(error))
        total = len(self.dataset.coco.images) + len(self.dataset.coco.broken)
        _LOG.warning("left out %s: %s (%d of %d images)", name, reason_of(error), len(self._broken), total)
        refuse_many_broken(
            list(self._broken.values()), total, self.max_broken_share, where=self.dataset.coco.image_root
        )

    def index_at(self, position: int) -> int:
        """Which image stands at a position: every pass has its own order."""
        return self._passes.index_at(position)


class PairedStream(Dataset):
    """A labelled and an unlabelled sample at every position, for the student (batch 1 : 1)."""

    def __init__(self, labelled: Mapping[str, Any], unlabelled: Mapping[str, Any]) -> None:
        """Build both streams from configs of :class:`StreamDataset`."""
        self.labelled: StreamDataset = DATASETS.build(dict(labelled))
        self.unlabelled: StreamDataset = DATASETS.build(dict(unlabelled))
        self.metainfo = self.labelled.metainfo

    def __len__(self) -> int:
        """Return the unlabelled images of one pass."""
        return len(self.unlabelled)

    def __getitem__(self, position: int) -> Record:
        """Both samples, each key holding ``sup`` and ``unsup``."""
        sup, unsup = self.labelled[position], self.unlabelled[position]
        return {key: {"sup": sup[key], "unsup": unsup[key]} for key in sup}


class StreamSampler(Sampler):
    """Positions of one worker, step after step, from any step on."""

    def __init__(self, dataset: Dataset, *, batch_size: int, seed: int | None = None) -> None:
        """Start at step 0.

        Args:
            dataset: Unused: the stream shuffles itself.
            batch_size: Samples of this worker per step.
            seed: Unused: the stream has its own.
        """
        self.batch_size, self.first_step = batch_size, 0
        self.rank, self.world_size = get_dist_info()

    def __iter__(self) -> Iterator[int]:
        """Yield positions for ever; no two workers share one."""
        step = self.first_step
        while True:
            start = (step * self.world_size + self.rank) * self.batch_size
            yield from range(start, start + self.batch_size)
            step += 1

    def __len__(self) -> int:
        """Return a number that no training reaches."""
        return 2**31


@contextmanager
def seeded(key: Sequence[int]) -> Iterator[None]:
    """Seed numpy's and Python's global generators, which mmdet's transforms use, and give them back after."""
    before_numpy, before_python = np.random.get_state(), random.getstate()
    seed = int(np.random.SeedSequence(list(key)).generate_state(1)[0])
    np.random.seed(seed)
    random.seed(seed)
    try:
        yield
    finally:
        np.random.set_state(before_numpy)
        random.setstate(before_python)
