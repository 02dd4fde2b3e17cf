"""The stage of ``pseudo-label``: the constructor loads network and refiner, a call labels a shard of images.

It knows nothing of Ray, and everything it needs is in one picklable object, so it may run in any process.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from mmengine.config import Config
from numpy.typing import NDArray

from data_schemas.manifest import ImageKey
from data_schemas.pseudo_labels import PseudoLabel
from jobs.networks import Which, build_transforms, label, load_network, pack
from jobs.precompute.stages import ShardJob, ShardReport, Tell, compute_images
from pipeline.masks import rle
from pipeline.models.pseudo_labels import PseudoLabelFilter
from pipeline.models.semi_student import make_refiner
from pipeline.refine.interface import Refined, TeacherMasks
from pipeline.stores.pseudo_label_store import commit_pseudo_labels


@dataclass(frozen=True)
class Labeller:
    """Network, filter and refiner; picklable."""

    config_text: str
    """The resolved config."""
    checkpoint: str
    network: Which
    category_ids: tuple[int, ...] = ()
    """By label of a detector."""
    filter: PseudoLabelFilter = field(default_factory=PseudoLabelFilter)
    """Of a detector's queries."""
    refiner: Mapping[str, Any] = field(default_factory=lambda: {"name": "none"})
    """Arguments of ``make_refiner``."""
    seed: int = 0
    retries: int = 2


class PseudoLabelStage:
    """Labels every image of a shard."""

    def __init__(self, settings: Labeller) -> None:
        """Load the network and build the refiner; see there for the errors."""
        self.settings = settings
        config = Config.fromstring(settings.config_text, ".py")
        self.model = load_network(config, settings.checkpoint, which=settings.network)
        self.transforms = build_transforms(config)
        # Every image comes once, so no embedding is worth keeping.
        cache = {"cached_embeddings": 1} if settings.refiner["name"] == "points" else {}
        self.refiner, _ = make_refiner(**{**settings.refiner, **cache})

    def __call__(self, job: ShardJob, tell: Tell = lambda _: None) -> ShardReport:
        """Label and publish one shard."""
        done = compute_images(job, self.label, retries=self.settings.retries, tell=tell, stage="label")
        record = commit_pseudo_labels(job.task, done.results, done.quarantined, retries=done.retries)
        return ShardReport(record.shard_id, record.outcomes)

    def label(self, key: ImageKey, image: NDArray[np.uint8]) -> list[PseudoLabel]:
        """The pseudo-labels of one image [H, W, 3] uint8 RGB, in query order."""
        packed = pack(self.transforms, image, image_id=key.image_id, path=key.file_name)
        masks = label(self.model, [packed], self.settings.filter)[0]
        # Of the image alone, so that labels do not depend on shards, workers or the order of work.
        rng = np.random.default_rng([self.settings.seed, key.image_id])
        refined = self.refiner.refine(key.image_id, image, masks, rng)
        return as_rows(key, masks, refined, self.settings.category_ids)


def as_rows(key: ImageKey, masks: TeacherMasks, refined: Refined, category_ids: tuple[int, ...]) -> list[PseudoLabel]:
    """Rows of one image: what the network said, what became of it, and how."""
    if not len(masks):
        return []
    before, after = rle.encode_many(masks.masks), rle.encode_many(refined.masks)
    return [
        PseudoLabel(
            image_id=key.image_id,
            instance_id=place,
            category_id=category_ids[int(masks.labels[place])],
            score=min(float(masks.scores[place]), 1.0),
            outcome=refined.outcomes[place],
            height=key.height,
            width=key.width,
            network_rle=before[place]["counts"],
            network_area=rle.area(before[place]),
            refined_rle=after[place]["counts"],
            refined_area=rle.area(after[place]),
        )
        for place in range(len(masks))
    ]
