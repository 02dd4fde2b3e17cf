"""The two stages of ``precompute-sam`` as plain callable classes: the constructor loads the SAM, a call does a shard.

A stage knows nothing of Ray. It computes the images of one shard, catches what goes wrong with a single one, and
publishes the shard: every image ends as rows or as a quarantine outcome with stage and reason.
"""

from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import islice
from typing import Any, Generic, TypeVar

import numpy as np
from numpy.typing import NDArray

from data_schemas.manifest import ImageKey, ImageOutcome, ShardRecord
from data_schemas.proposals import Proposal
from data_schemas.similarity import SimilarityTargets
from jobs.precompute.failures import FailureStreak, one_line, refuse_device_failure
from jobs.settings import PrecomputeSettings, SamSettings
from pipeline.errors import ImageError, InputError, PipelineError
from pipeline.images import read_image, resolve_inside
from pipeline.masks import rle
from pipeline.sam.batches import BatchSize
from pipeline.sam.decoder_features import sample_target_points, similarity_targets
from pipeline.sam.interface import ImageEmbedding, SamBackend, SamFacts
from pipeline.sam.sam2_backend import build_backend, describe_backend
from pipeline.sam.segment_everything import segment_everything
from pipeline.stores.proposal_pages import MAX_ROWS
from pipeline.stores.proposal_store import ProposalStore, commit_proposals
from pipeline.stores.shards import ShardTask
from pipeline.stores.similarity_store import commit_similarity

Tell = Callable[[int | None], None]
"""Called with the id of the image that comes next, and with None when all are done and the shard is to be written."""
MakeBackend = Callable[[SamSettings], SamBackend]
R = TypeVar("R")
_SAME_IOU, _SAME_SHARE = 0.9, 0.5
"""An image is the same if so many of its masks are found again; in bfloat16 some 95 % are (docs/results/parity.md)."""


@dataclass(frozen=True)
class ShardJob:
    """One shard to compute; picklable."""

    task: ShardTask
    image_root: str
    objects: Mapping[int, tuple[rle.Rle, ...]] = field(default_factory=dict)
    """Image id -> masks of the ground truth, where similarity targets are to lie on objects."""
    known: Mapping[int, int] = field(default_factory=dict)
    """Image id -> its id in the library of ``reuse``: not to be computed."""
    poisoned: Mapping[int, str] = field(default_factory=dict)
    """Images not to touch again, and why: they killed their worker or never ended."""
    read_ahead: int = 2
    """Images that are decoded while another one is computed."""

    def without(self, image_id: int, reason: str) -> "ShardJob":
        """The same job with one image set aside."""
        return replace(self, poisoned={**self.poisoned, image_id: reason})

    def one_at_a_time(self) -> "ShardJob | None":
        """The same job, so that whatever kills the worker is the image whose turn it is; None if it is so already."""
        return replace(self, read_ahead=0) if self.read_ahead else None


@dataclass(frozen=True)
class ShardReport:
    """A published shard."""

    shard_id: str
    outcomes: tuple[ImageOutcome, ...]


Publish = Callable[[], ShardReport]
"""Encodes and writes a computed shard, and needs neither SAM nor images: another thread may do it."""


@dataclass(frozen=True)
class Computed(Generic[R]):
    """The images of a shard."""

    results: Mapping[int, R]
    """By image id."""
    quarantined: list[ImageOutcome]
    """All other images."""
    retries: Mapping[int, int]
    """Image id -> further tries that it took."""


def build_sam(sam: SamSettings) -> SamBackend:
    """The SAM of the settings; see ``build_backend`` for the errors."""
    return build_backend(
        sam.name,
        device=sam.device,
        config=sam.config,
        sha256=sam.sha256,
        precision=sam.precision,
        compiled=sam.compile,
    )


def describe_sam(sam: SamSettings) -> SamFacts:
    """What a plan needs to know of that SAM, without its GPU or a download; see ``describe_backend`` for the errors."""
    return describe_backend(sam.name, device=sam.device, config=sam.config, sha256=sam.sha256, precision=sam.precision)


class ProposalStage:
    """Segments everything in every image of a shard."""

    def __init__(self, settings: PrecomputeSettings, make_backend: MakeBackend = build_sam) -> None:
        """Load the SAM."""
        self.settings = settings
        self.backend = make_backend(settings.sam)
        self.batch = BatchSize(settings.proposals.points_per_batch)
        self.streak = FailureStreak(settings.max_alike_failures)
        self._reused = ProposalStore.open(settings.reuse) if settings.reuse is not None else None

    def __call__(self, job: ShardJob, tell: Tell = lambda _: None) -> ShardReport:
        """Compute and publish one shard."""
        return self.compute(job, tell)()

    def compute(self, job: ShardJob, tell: Tell = lambda _: None) -> Publish:
        """Compute one shard.

        Raises:
            PipelineError: As ``compute_images``; an image is not the one that the library of ``reuse`` has.
        """

        def proposals(_key: ImageKey, image: NDArray[np.uint8], embedding: ImageEmbedding) -> list[Proposal]:
            found = self._segment(image, embedding)
            if len(found) > MAX_ROWS:  # here, where it costs this image only; when its shard is written, all of the run
                raise InputError("more proposals than a library holds; see proposals.max_proposals", got=len(found))
            return found

        copied = self._copied(job, tell)
        self._check_copied(job, copied)
        done = compute_embedded(job, self.backend, proposals, self.settings, tell, self.streak)
        return partial(_publish, commit_proposals, job.task, replace(done, results={**copied, **done.results}))

    def _copied(self, job: ShardJob, tell: Tell) -> dict[int, list[Proposal]]:
        copied = {}
        for image_id, known in job.known.items():
            assert self._reused is not None  # the plan knows images of it
            tell(image_id)
            copied[image_id] = self._reused.read(known)
        return copied

    def _check_copied(self, job: ShardJob, copied: Mapping[int, Sequence[Proposal]]) -> None:
        """Segment one of the images of a shard that are copied: files of other images may have the same names."""
        # That with the most masks: of one or two, rounding alone could lose half.
        key = max(job.task.plan.images, key=lambda key: len(copied.get(key.image_id, ())))
        if not copied.get(key.image_id):
            return

        def segment(key: ImageKey) -> list[Proposal]:
            image = _read(job.image_root, key)
            return self._segment(image, self.backend.embed([image])[0])

        found, failure, _ = _try(partial(segment, key), self.settings.retries)
        if failure is not None:  # nothing to compare with
            return
        theirs, ours = ([rle.of_proposal(one) for one in of] for of in (copied[key.image_id], found))
        again = int((rle.pairwise_iou(theirs, ours).max(axis=1, initial=0) >= _SAME_IOU).sum())
        if again < _SAME_SHARE * len(theirs):
            raise InputError(
                "an image is not the one that the reused library has, though name and size are the same",
                where=f"{key.file_name} of {job.image_root}",
                expected=f"most of its {len(theirs)} proposals in {self.settings.reuse}, found again",
                got=f"{again} found again",
                fix="name the library of these very images with --cfg-options reuse=STORE, or none (reuse=None)",
            )

    def _segment(self, image: NDArray[np.uint8], embedding: ImageEmbedding) -> list[Proposal]:
        return segment_everything(self.backend, image, self.settings.proposals, embedding=embedding, batch=self.batch)


class SimilarityStage:
    """Computes the distillation targets of the labelled images of a shard."""

    def __init__(self, settings: PrecomputeSettings, make_backend: MakeBackend = build_sam) -> None:
        """Load the SAM."""
        self.settings = settings
        self.backend = make_backend(settings.sam)
        self.batch = BatchSize(settings.similarity.prompts_per_batch)
        self.streak = FailureStreak(settings.max_alike_failures)

    def __call__(self, job: ShardJob, tell: Tell = lambda _: None) -> ShardReport:
        """Compute and publish one shard."""
        return self.compute(job, tell)()

    def compute(self, job: ShardJob, tell: Tell = lambda _: None) -> Publish:
        """Compute one shard."""
        done = compute_embedded(job, self.backend, partial(self._targets, job), self.settings, tell, self.streak)
        return partial(_publish, commit_similarity, job.task, done)

    def _targets(
        self, job: ShardJob, key: ImageKey, _image: NDArray[np.uint8], embedding: ImageEmbedding
    ) -> SimilarityTargets:
        chosen = self.settings.similarity
        masks = [rle.decode(code) for code in job.objects.get(key.image_id, ())]
        points_xy, point_kind = sample_target_points(
            np.logical_or.reduce(masks) if masks else None,
            (key.height, key.width),
            num_inside=chosen.num_inside,
            num_uniform=chosen.num_uniform,
            # Of the image alone, so that points do not depend on shards, workers or the order of work.
            rng=np.random.default_rng([chosen.seed, key.image_id]),
        )
        return similarity_targets(
            self.backend,
            embedding,
            points_xy,
            point_kind,
            batch=self.batch,
            features=chosen.features,
        )


STAGES: dict[str, type[ProposalStage] | type[SimilarityStage]] = {
    "similarity": SimilarityStage,
    "proposals": ProposalStage,
}


def _publish(commit: Callable[..., ShardRecord], task: ShardTask, done: Computed[Any]) -> ShardReport:
    record = commit(task, done.results, done.quarantined, retries=done.retries)
    return ShardReport(record.shard_id, record.outcomes)


def compute_embedded(
    job: ShardJob,
    backend: SamBackend,
    compute: Callable[[ImageKey, NDArray[np.uint8], ImageEmbedding], R],
    settings: PrecomputeSettings,
    tell: Tell,
    streak: FailureStreak,
) -> Computed[R]:
    """As :func:`compute_images`, with SAM's embedding of each image; several are embedded together where set so."""
    ready: dict[int, ImageEmbedding] = {}

    def embed(group: Mapping[int, NDArray[np.uint8]]) -> None:
        ready.clear()
        if len(group) > 1:
            ready.update(zip(group, backend.embed(list(group.values())), strict=True))

    def compute_one(key: ImageKey, image: NDArray[np.uint8]) -> R:
        embedding = ready.pop(key.image_id, None)  # where it fails, the next try starts from the image
        return compute(key, image, embedding if embedding is not None else backend.embed([image])[0])

    batch = settings.images_per_batch if job.read_ahead else 1
    retries = settings.retries
    return compute_images(job, compute_one, retries=retries, tell=tell, batch=batch, prepare=embed, streak=streak)


def compute_images(
    job: ShardJob,
    compute: Callable[[ImageKey, NDArray[np.uint8]], R],
    *,
    retries: int,
    tell: Tell,
    stage: str = "sam",
    batch: int = 1,
    prepare: Callable[[Mapping[int, NDArray[np.uint8]]], None] = lambda _: None,
    streak: FailureStreak | None = None,
) -> Computed[R]:
    """Read and compute every image of a shard that is not known; one that fails is set aside, the others go on.

    Args:
        job: The shard.
        compute: Takes an image [H, W, 3] uint8 RGB.
        retries: Further tries for an image that fails for a reason other than itself.
        tell: Called as the turn of an image comes.
        stage: What is said to have failed where ``compute`` does.
        batch: Images that are read before the first of them is computed.
        prepare: Called with those, by id; where it fails, ``compute`` has to do without.
        streak: Of the images before these; None: they begin one.

    Raises:
        PipelineError: Trouble that setting an image aside would not mend: no GPU or one that failed, a damaged store,
            many images in a row that fail for one reason.
    """
    streak = streak or FailureStreak()
    results: dict[int, R] = {}
    retried: dict[int, int] = {}
    quarantined = [
        ImageOutcome.quarantined(key.image_id, stage="worker", reason=job.poisoned[key.image_id], retries=retries)
        for key in job.task.plan.images
        if key.image_id in job.poisoned and key.image_id not in job.known
    ]
    turns = _read_in_turn(job)
    while group := list(islice(turns, batch)):
        tell(group[0][0].image_id)
        images: dict[int, NDArray[np.uint8]] = {}
        for key, read in group:
            try:
                images[key.image_id] = read()
            except InputError as error:
                quarantined.append(ImageOutcome.quarantined(key.image_id, stage="read", reason=one_line(error)))
        _try(partial(prepare, images), 0)
        for key in [key for key, _ in group if key.image_id in images]:
            if key is not group[0][0]:
                tell(key.image_id)
            result, failure, tries = _try(partial(compute, key, images.pop(key.image_id)), retries)
            if failure is None:
                streak.end()
                results[key.image_id] = result
                retried |= {key.image_id: tries} if tries else {}
                continue
            if not failure.is_of_image:
                streak.add(failure.reason)
            outcome = ImageOutcome.quarantined(key.image_id, stage=stage, reason=failure.reason, retries=tries)
            quarantined.append(outcome)
    tell(None)
    return Computed(results, quarantined, retried)


def _read_in_turn(job: ShardJob) -> Iterator[tuple[ImageKey, Callable[[], NDArray[np.uint8]]]]:
    """Each image of a shard and what gives its pixels (or the error), already being decoded while others are used."""
    left_out = {*job.poisoned, *job.known}
    keys = [key for key in job.task.plan.images if key.image_id not in left_out]
    if not job.read_ahead:
        yield from ((key, partial(_read, job.image_root, key)) for key in keys)
        return
    with ThreadPoolExecutor(1, thread_name_prefix="read") as reader:
        coming: deque[tuple[ImageKey, Future[NDArray[np.uint8]]]] = deque()
        for key in keys:
            coming.append((key, reader.submit(_read, job.image_root, key)))
            if len(coming) > job.read_ahead:
                turn, future = coming.popleft()
                yield turn, future.result
                del future  # an image that was used is not kept
        while coming:
            turn, future = coming.popleft()
            yield turn, future.result
            del future


def _read(image_root: str, key: ImageKey) -> NDArray[np.uint8]:
    image = read_image(resolve_inside(image_root, key.file_name))
    if image.shape[:2] != (key.height, key.width):
        file = f"{image.shape[0]} x {image.shape[1]}"
        raise ImageError(f"size differs: planned {key.height} x {key.width}, file {file} (height x width)")
    return image


@dataclass(frozen=True)
class _Failure:
    reason: str
    is_of_image: bool
    """The image is wrong, whatever the machine."""


def _try(compute: Callable[[], Any], retries: int) -> tuple[Any, _Failure | None, int]:
    """Result, what failed, and how often it was tried again."""
    for tries in range(retries + 1):
        try:
            return compute(), None, tries
        except InputError as error:
            return None, _Failure(one_line(error), is_of_image=True), tries
        except PipelineError:
            raise  # no GPU, no disk: nothing that setting an image aside would mend
        except Exception as error:
            refuse_device_failure(error)
            failure = _Failure(one_line(error), is_of_image=False)
    return None, failure, retries
