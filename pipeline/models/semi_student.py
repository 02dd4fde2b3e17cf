"""The student: an EMA teacher labels what has no labels, a refiner corrects it, ARP mixes it, the student learns it."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from mmdet.models.detectors.semi_base import SemiBaseDetector
from mmdet.structures import DetDataSample
from mmdet.structures.mask import BitmapMasks
from mmengine.structures import InstanceData
from torch import Tensor

from data_schemas.pseudo_labels import OUTCOMES
from pipeline.data.arp import ArpSettings, Sample, augment_batch
from pipeline.data.photometric import strong_view
from pipeline.errors import ConfigError
from pipeline.evaluation.pseudo_label_quality import PseudoLabelQuality, quality_of_image
from pipeline.images import read_image
from pipeline.masks.overlap import pairwise_iou
from pipeline.models.mask2former import UNSURE, view_of
from pipeline.models.pseudo_labels import (
    PseudoLabelFilter,
    TeacherQueries,
    ViewLabels,
    filter_queries,
    lie_on,
    to_canonical,
    to_view,
)
from pipeline.models.student_settings import StudentSettings
from pipeline.refine.build import build_refiner, refuse_wrong_precision
from pipeline.refine.embedding_cache import EmbeddingCache
from pipeline.refine.interface import Refined, TeacherMasks, teacher_outcomes
from pipeline.sam.sam2_backend import build_backend
from pipeline.stores.proposal_store import ProposalStore


class SemiStudent(SemiBaseDetector):
    """A student and its teacher. Checkpoints hold both, under ``student.`` and ``teacher.``."""

    def __init__(
        self,
        *,
        detector: Any,
        data_preprocessor: Any,
        refiner: Mapping[str, Any],
        pseudo_labels: Mapping[str, Any] | None = None,
        arp: Mapping[str, Any] | None = None,
        settings: Mapping[str, Any] | None = None,
    ) -> None:
        """Build both networks and the refiner.

        Args:
            detector: Config of the Mask2Former.
            data_preprocessor: Config of mmdet's ``MultiBranchDataPreprocessor``.
            refiner: ``name`` (none | points | iom | cpi | cpi_u | cpi_o), the refiner's settings, and ``store`` (a
                proposal library) or ``sam``, ``device``, ``precision``, ``cached_embeddings`` as the refiner needs.
            pseudo_labels: Fields of :class:`PseudoLabelFilter`.
            arp: Fields of :class:`ArpSettings`; None turns ARP off.
            settings: Fields of :class:`StudentSettings`.
        """
        super().__init__(
            detector=detector,
            data_preprocessor=data_preprocessor,
            semi_train_cfg={"freeze_teacher": True},
            semi_test_cfg={"predict_on": "student"},
        )
        self.filter = PseudoLabelFilter(**(pseudo_labels or {}))
        self.arp = None if arp is None else ArpSettings(**arp)
        self.settings = StudentSettings(**(settings or {}))
        self.refiner, self.embeddings = make_refiner(**refiner)
        self.step_key: tuple[int, ...] = (0, 0)

    def train(self, mode: bool = True) -> "SemiStudent":
        """Train the student; the teacher always stays in evaluation mode."""
        super().train(mode)
        self.teacher.eval()
        return self

    def loss(self, multi_batch_inputs: dict[str, Tensor], multi_batch_data_samples: dict[str, Any]) -> dict[str, Any]:
        """One step: learn the labels, then what the refined teacher says of the unlabelled images."""
        inputs, samples = multi_batch_inputs["unsup"], multi_batch_data_samples["unsup"]
        labelled = self.labelled_samples(multi_batch_data_samples["sup"])
        losses = _prefixed("sup", self.student.loss(multi_batch_inputs["sup"], labelled))
        rng = np.random.default_rng([self.settings.seed, *self.step_key])
        with torch.autocast(inputs.device.type, enabled=False):  # only what is learnt is in half precision
            queries = self.teacher_queries(inputs, samples)
            labels, log = self.refined_labels(queries, samples, rng)
        mixed = self.mixed_samples(inputs, labels, rng)
        strong = self.strong_inputs(mixed)
        targets = [
            _with_targets(sample, each, inputs.device, unsure=label.unsure)
            for sample, each, label in zip(samples, mixed, labels, strict=True)
        ]
        learned = self.student.loss(strong, targets)
        is_learnt = self.settings.learn_empty_batches or any(len(m.labels) for m in mixed)
        weight = self.settings.unlabelled_weight * float(is_learnt)
        losses |= _prefixed("unsup", {name: value * weight for name, value in learned.items()})
        return losses | {name: inputs.new_tensor(value) for name, value in log.items()}

    def labelled_samples(self, samples: list[DetDataSample]) -> list[DetDataSample]:
        """The labelled samples with SAM's targets where this stage distils them, otherwise without.

        Raises:
            ConfigError: they are to be distilled and carry no targets.
        """
        for sample in samples:
            if self.settings.distil_labelled and "sam_targets" not in sample:
                raise ConfigError(
                    "the labelled images carry nothing to distil",
                    where="model.settings.distil_labelled",
                    expected="LoadSimilarityTargets or DrawTargetPoints in the labelled stream, before PackSample",
                    got=f"image {sample.img_id} without targets",
                )
            if not self.settings.distil_labelled and "sam_targets" in sample:
                del sample.sam_targets
        return samples

    @torch.no_grad()
    def teacher_queries(self, inputs: Tensor, samples: list[DetDataSample]) -> list[TeacherQueries]:
        """Filtered teacher outputs of the weak view [B, 3, H, W]."""
        features = self.teacher.extract_feat(inputs)
        classes, masks = self.teacher.panoptic_head(features, samples)
        return [filter_queries(c, m, self.filter) for c, m in zip(classes[-1], masks[-1], strict=True)]

    def refined_labels(
        self, queries: list[TeacherQueries], samples: list[DetDataSample], rng: np.random.Generator
    ) -> tuple[list[ViewLabels], dict[str, float]]:
        """Refine in the canonical frame, bring back into the view, and count what happened."""
        labels: list[ViewLabels] = []
        outcomes: Counter[str] = Counter()
        before, after = PseudoLabelQuality(), PseudoLabelQuality()
        self._embed([sample for query, sample in zip(queries, samples, strict=True) if len(query.labels)])
        for query, sample in zip(queries, samples, strict=True):
            view = view_of(sample.metainfo)
            masks = to_canonical(query, view)
            image = self._image(sample) if len(masks) else None
            refined = self.refiner.refine(sample.img_id, image, masks, rng)
            outcomes.update(refined.outcomes)
            found = to_view(refined, masks.labels, view, min_pixels=self.settings.min_pixels)
            labels.append(replace(found, unsure=_unsure(query, refined)))
            if self.settings.watch_quality and "hidden_truth" in sample:
                # As many pixels as of the refined: leaving small ones out would look like an improvement. Leaving out
                # what SAM does not bear out is one, of the precision, and recall says what it costs.
                teacher = to_view(_unrefined(masks), masks.labels, view, min_pixels=self.settings.min_pixels)
                before += _quality(teacher, sample)
                after += _quality(labels[-1], sample)
        log = {f"refiner/{name}": float(outcomes[name]) for name in OUTCOMES}
        log["pseudo/per_image"] = sum(len(label.labels) for label in labels) / len(labels)
        for name, quality in (("teacher", before), ("refined", after)):
            if quality.num_matched:
                log[f"quality/{name}_sq"] = float(quality.segmentation_quality or 0)
                log[f"quality/{name}_ca"] = float(quality.class_accuracy or 0)
                log[f"quality/{name}_precision"] = float(quality.matched_share or 0)
                log[f"quality/{name}_recall"] = float(quality.found_share or 0)
        return labels, log

    def mixed_samples(self, inputs: Tensor, labels: list[ViewLabels], rng: np.random.Generator) -> list[Sample]:
        """Unlabelled images [H, W, 3] uint8 with their pseudo-labels, pasted into each other if ARP is on."""
        mean, std = self._pixel_statistics()
        pixels = (inputs * std + mean).round().clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 1).cpu().numpy()
        samples = [
            Sample(np.ascontiguousarray(p), v.masks, v.labels, tuple(v.weights))
            for p, v in zip(pixels, labels, strict=True)
        ]
        return samples if self.arp is None else augment_batch(samples, self.arp, rng)

    def strong_inputs(self, samples: list[Sample]) -> Tensor:
        """Photometric strong views, normalised: [B, 3, H, W]."""
        mean, std = self._pixel_statistics()
        views = [strong_view(torch.from_numpy(s.image).permute(2, 0, 1)) for s in samples]
        return (torch.stack(views).to(mean.device).float() - mean) / std

    def _pixel_statistics(self) -> tuple[Tensor, Tensor]:
        inner = self.data_preprocessor.data_preprocessor
        return inner.mean, inner.std

    def _embed(self, samples: Sequence[DetDataSample]) -> None:
        """Have SAM's embeddings of these images, where it is to be prompted."""
        if self.embeddings is not None:
            self.embeddings.prepare({sample.img_id: self._image(sample) for sample in samples})

    def _image(self, sample: DetDataSample) -> Any:
        """The canonical image where the refiner has to encode it, else None."""
        if self.embeddings is None or sample.img_id in self.embeddings:
            return None
        return read_image(sample.img_path)


def make_refiner(name: str, **settings: Any) -> tuple[Any, EmbeddingCache | None]:
    """Build a refiner with the store or the SAM it needs.

    Args:
        name: none | points | iom | cpi | cpi_u | cpi_o.
        **settings: ``store`` (proposal library), ``sam``, ``sam_config``, ``device``, ``precision`` (of SAM: fp32 |
            bf16), ``cached_embeddings``; the rest goes to the refiner.

    Returns:
        The refiner, and the cache of SAM embeddings if it prompts SAM.

    Raises:
        ConfigError: a store or a SAM is missing, or a setting is unknown.
    """
    store, sam = settings.pop("store", None), settings.pop("sam", None)
    config, device = settings.pop("sam_config", None), settings.pop("device", "cpu")
    cached, precision = settings.pop("cached_embeddings", 512), settings.pop("precision", "fp32")
    if name == "points":
        refuse_wrong_precision(precision, device)
        if sam is None:
            raise ConfigError("refiner points needs a SAM", where="refiner.sam", fix="set refiner.sam=scenes-nano")
        backend = build_backend(sam, device=device, config=config, precision=precision)
        cache = EmbeddingCache(backend, size=cached)
        return build_refiner(name, sam=backend, embed=cache, **settings), cache
    proposals = None
    if store is not None and name != "none":
        proposals = ProposalStore.open(store, quarantined_is_empty=True)
    return build_refiner(name, proposals=proposals, **settings), None


def _prefixed(prefix: str, losses: Mapping[str, Any]) -> dict[str, Any]:
    return {f"{prefix}/{name}": value for name, value in losses.items()}


def _unsure(queries: TeacherQueries, refined: Refined) -> Tensor | None:
    """[M, h, w] bool: the teacher's unsure masks, and those that SAM does not bear out; None where there is none."""
    dropped = [index for index, outcome in enumerate(refined.outcomes) if outcome == "dropped"]
    parts = [queries.unsure] if queries.unsure is not None else []
    parts += [queries.logits[dropped] > 0] if dropped else []
    return torch.cat(parts) if parts else None


def _with_targets(
    sample: DetDataSample, mixed: Sample, device: torch.device, *, unsure: Tensor | None = None
) -> DetDataSample:
    """The sample with pseudo-labels as ground truth, in the view's whole canvas.

    Of the ``unsure`` masks [M, h, w] those stay that lie on no label, be it a pasted one: a second query there is told
    that it is nothing. The head makes the masks where the labels are, and compares both with outputs on ``device``.
    """
    height, width = mixed.image.shape[:2]
    instances = InstanceData(
        labels=torch.from_numpy(mixed.labels).to(device),
        masks=BitmapMasks(mixed.masks.astype(np.uint8), height, width),
    )
    weights = mixed.weight_list()
    if any(weight is not None for weight in weights):
        full = [np.ones((height, width), np.float32) if weight is None else weight for weight in weights]
        instances.pixel_weights = torch.from_numpy(np.stack(full)).to(device)
    target = DetDataSample(metainfo=sample.metainfo)
    if unsure is not None:
        learnt = torch.from_numpy(mixed.masks).to(unsure.device)
        target.set_metainfo({UNSURE: unsure[~lie_on(unsure, _shrunk(learnt, *unsure.shape[-2:]))]})
    target.gt_instances = instances
    return target


def _shrunk(masks: Tensor, height: int, width: int) -> Tensor:
    """Masks [N, H, W] bool on a coarser grid, [N, h, w] bool: the cells that they cover by half or more."""
    if len(masks) == 0:
        return masks.new_zeros((0, height, width))
    return F.adaptive_avg_pool2d(masks[:, None].float(), (height, width))[:, 0] >= 0.5


def _unrefined(masks: TeacherMasks) -> Refined:
    """The teacher's masks as they are, in the form that a refiner gives."""
    return Refined(masks.masks, weights=[None] * len(masks), outcomes=teacher_outcomes(masks.masks))


def _quality(labels: ViewLabels, sample: DetDataSample) -> PseudoLabelQuality:
    """CA and SQ of one image's pseudo-labels against its hidden ground truth, in the view."""
    truth = sample.hidden_truth
    height, width = truth.masks.shape[1:]
    iou = pairwise_iou(labels.masks[:, :height, :width], truth.masks.cpu().numpy())
    return quality_of_image(iou, labels.labels, truth.labels.cpu().numpy())
