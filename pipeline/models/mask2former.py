"""Mask2Former with two additions: structural distillation on its features, and pixel-weighted mask targets."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import pipeline.models.mmcv_ops  # noqa: F401  isort: skip  (must come before mmdet)
import torch
from mmcv.ops import point_sample
from mmdet.models.dense_heads.mask2former_head import Mask2FormerHead
from mmdet.models.detectors.mask2former import Mask2Former
from mmdet.models.layers.msdeformattn_pixel_decoder import MSDeformAttnPixelDecoder
from mmdet.models.utils import get_uncertain_point_coords_with_randomness
from mmdet.structures import DetDataSample
from mmdet.utils import reduce_mean
from mmengine.structures import InstanceData
from torch import Tensor, nn

from pipeline.distill.live_sam import LiveSam, LiveSamSettings, Shown, refuse_feature_matching_without_sam
from pipeline.distill.self_similarity import View, similarity_rows
from pipeline.distill.structural_loss import structural_loss
from pipeline.errors import ConfigError
from pipeline.models.pseudo_labels import lie_on

UNSURE = "unsure_masks"
"""Where a sample's metainfo holds what is neither an object nor background."""


def view_of(metainfo: dict[str, Any]) -> View:
    """The geometry that mmdet's transforms and the data preprocessor left in a sample's metainfo."""
    return View(
        homography=torch.as_tensor(metainfo["homography_matrix"]),
        canonical_hw=tuple(metainfo["ori_shape"][:2]),
        valid_hw=tuple(metainfo["img_shape"][:2]),
        canvas_hw=tuple(metainfo["batch_input_shape"]),
    )


@contextmanager
def captured_output(module: nn.Module) -> Iterator[list[Any]]:
    """Collect what a module returns while the block runs."""
    outputs: list[Any] = []
    handle = module.register_forward_hook(lambda _module, _inputs, output: outputs.append(output))
    try:
        yield outputs
    finally:
        handle.remove()


class DistilledMask2Former(Mask2Former):
    """Mask2Former whose mask features imitate SAM's self-similarity on samples that carry SAM's targets.

    Eq: S4M/structural-loss. The loss is applied once, not per decoder layer, on labelled images only. The switches
    are those of S4M's ablations; their defaults are the method.
    """

    def __init__(
        self,
        *args: Any,
        structural_weight: float = 1.0,
        structural_feature: str = "decoder",
        distillation: str = "structural",
        live_sam: Mapping[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        """Like Mask2Former.

        Args:
            *args: Mask2Former's.
            structural_weight: Weight of the distillation loss (paper: 1).
            structural_feature: decoder (the pixel decoder's mask features; paper) | encoder (last backbone map).
            distillation: structural (self-similarity) | feature (plain feature matching through a learned linear
                map, see ``pipeline.distill.feature_loss``; it needs ``live_sam``).
            live_sam: Fields of :class:`LiveSamSettings`: ask SAM in every step about the view itself, at the points
                that the samples carry; None: learn the rows that the samples carry, from a store.
            **kwargs: Mask2Former's.

        Raises:
            ConfigError: an unknown feature, loss or setting of the live SAM, feature matching without a live SAM, or
                more detections asked for than there can be.
        """
        super().__init__(*args, **kwargs)
        # Not found before the first validation otherwise, at the end of a training.
        wanted = (self.test_cfg or {}).get("max_per_image", 100)
        there = self.panoptic_head.num_queries * self.num_classes
        if wanted > there:
            raise ConfigError(
                "more detections are asked for than there can be",
                where="model.test_cfg.max_per_image",
                expected=f"at most {there} (queries x classes)",
                got=wanted,
            )
        if structural_feature not in ("decoder", "encoder"):
            raise ConfigError(
                "unknown feature", where="structural_feature", expected="decoder | encoder", got=structural_feature
            )
        refuse_feature_matching_without_sam(distillation, live_sam)
        self.structural_weight, self.structural_feature = structural_weight, structural_feature
        self.distillation = distillation
        self.live_sam = None if live_sam is None else LiveSam(LiveSamSettings(**live_sam))
        if distillation == "feature" and self.live_sam is not None:
            head = kwargs["panoptic_head"]
            width = head["in_channels"][-1] if structural_feature == "encoder" else head["out_channels"]
            self.feature_projection = nn.Linear(width, self.live_sam.settings.channels)

    def loss(self, batch_inputs: Tensor, batch_data_samples: list[DetDataSample]) -> dict[str, Tensor]:
        """Mask2Former's losses, and ``loss_structural`` or ``loss_feature`` where samples carry SAM's points."""
        source = self.backbone if self.structural_feature == "encoder" else self.panoptic_head.pixel_decoder
        with captured_output(source) as outputs:
            losses = super().loss(batch_inputs, batch_data_samples)
        if any("sam_targets" in sample for sample in batch_data_samples):
            features = outputs[0][-1] if self.structural_feature == "encoder" else outputs[0][0]
            # Half precision would round positions of large views by up to a pixel, and cosines near 1.
            with torch.autocast(features.device.type, enabled=False):
                loss = self._distil(features, batch_data_samples)
            losses[f"loss_{self.distillation}"] = self.structural_weight * loss  # Eq: S4M/structural-loss
        return losses

    def _distil(self, features: Tensor, samples: Sequence[DetDataSample]) -> Tensor:
        """Distillation loss of a batch: features [B, C, h, w]; samples without targets do not count."""
        taught = [pair for pair in zip(features, samples, strict=True) if "sam_targets" in pair[1]]
        if self.live_sam is None:
            return loss_from_store(taught)
        batch = [shown_to_sam(feature.float(), sample) for feature, sample in taught]
        if self.distillation == "feature":
            return self.live_sam.feature(batch, self.feature_projection)
        return self.live_sam.structural(batch)


def shown_to_sam(feature: Tensor, sample: DetDataSample) -> Shown:
    """A sample for a live SAM."""
    if "sam_view" not in sample:
        raise ConfigError(
            "a live SAM needs the pixels of the view",
            where="model.live_sam",
            expected="DrawTargetPoints, or LoadSimilarityTargets(keep_view=True), before PackSample",
            got=f"image {sample.img_id} without them",
        )
    return Shown(feature, view_of(sample.metainfo), sample.sam_view.cpu().numpy(), sample.sam_targets.points_xy)


def loss_from_store(taught: Sequence[tuple[Tensor, DetDataSample]]) -> Tensor:
    """Structural loss of feature maps [C, h, w] against the rows that their samples carry."""
    rows, targets, masks = [], [], []
    for feature, sample in taught:
        if "rows" not in sample.sam_targets:
            raise ConfigError(
                "samples carry points and no similarity rows",
                where="model.live_sam",
                expected="a SAM to ask, or LoadSimilarityTargets instead of DrawTargetPoints",
                got=None,
            )
        wanted = sample.sam_targets.rows
        row, mask = similarity_rows(feature, view_of(sample.metainfo), sample.sam_targets.cells, wanted.shape[1:])
        rows.append(row)
        masks.append(mask)
        targets.append(wanted.flatten(1))
    return structural_loss(rows, targets, masks)


class Float32PixelDecoder(MSDeformAttnPixelDecoder):
    """Mask2Former's pixel decoder in float32, also where the rest of a step is in half precision.

    As in the original Mask2Former, and so in S4M's released code: the mask features that imitate SAM are float32.
    """

    def forward(self, feats: list[Tensor]) -> tuple[Tensor, list[Tensor]]:
        """Maps [B, C, h, w] of the backbone, fine to coarse: mask features [B, C, h, w] and maps for the decoder."""
        with torch.autocast(feats[0].device.type, enabled=False):
            outputs: tuple[Tensor, list[Tensor]] = super().forward([each.float() for each in feats])
        return outputs


class WeightedMask2FormerHead(Mask2FormerHead):
    """Mask2Former's head that accepts a weight per pixel for some instances.

    Eq: SemiRES/pwa for instance segmentation: the cross entropy of an unmatched pseudo-mask is weighted at the
    sampled points, the dice term is not (the paper's loss has none). Without weights this is the stock head.
    """

    def preprocess_gt(self, batch_gt_instances: list[InstanceData], batch_gt_semantic_segs: list[Any]) -> Any:
        """Keep ``pixel_weights`` [N, H, W] beside labels and masks."""
        prepared = super().preprocess_gt(batch_gt_instances, batch_gt_semantic_segs)
        for given, instances in zip(batch_gt_instances, prepared, strict=True):
            if "pixel_weights" in given:
                instances.pixel_weights = given.pixel_weights.to(instances.masks.device)
        return prepared

    def _get_targets_single(
        self, cls_score: Tensor, mask_pred: Tensor, gt_instances: InstanceData, img_meta: dict[str, Any]
    ) -> Any:
        """Match an image's queries in float32, as the original Mask2Former does.

        The cost of a mask is a sum over 12,544 points, which half precision cannot hold: that of a large object that
        no query has found yet would be infinite, and the matching fail.

        A query without an object whose mask lies on one of the ``unsure_masks`` [M, h, w] bool of the sample's metainfo
        is told nothing about its class; the others' loss is what it would be otherwise.
        """
        with torch.no_grad(), torch.autocast(mask_pred.device.type, enabled=False):
            targets = super()._get_targets_single(cls_score.float(), mask_pred.float(), gt_instances, img_meta)
            if UNSURE in img_meta:
                labels, weights = targets[:2]
                weights[(labels == self.num_classes) & lie_on(mask_pred > 0, img_meta[UNSURE])] = 0
        return targets

    def _loss_by_feat_single(
        self, cls_scores: Tensor, mask_preds: Tensor, batch_gt_instances: list[InstanceData], batch_img_metas: list[Any]
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Losses of one decoder layer: classes [B, Q, C + 1], masks [B, Q, h, w]."""
        if not any("pixel_weights" in instances for instances in batch_gt_instances):
            return super()._loss_by_feat_single(cls_scores, mask_preds, batch_gt_instances, batch_img_metas)
        # mmdet's get_targets(return_sampling_results=True) adds a tuple to a list and fails, hence per image.
        targets = [
            self._get_targets_single(*image)
            for image in zip(cls_scores, mask_preds, batch_gt_instances, batch_img_metas, strict=True)
        ]
        labels = torch.cat([target[0] for target in targets])
        class_weight = cls_scores.new_tensor(self.class_weight)
        loss_cls = self.loss_cls(
            cls_scores.flatten(0, 1),
            labels,
            torch.cat([target[1] for target in targets]),
            avg_factor=class_weight[labels].sum(),
        )
        matches = [(target[6].pos_inds, target[6].pos_assigned_gt_inds) for target in targets]
        found = torch.cat([pred[query] for pred, (query, _) in zip(mask_preds, matches, strict=True)])
        wanted = torch.cat([g.masks[truth] for g, (_, truth) in zip(batch_gt_instances, matches, strict=True)])
        weights = torch.cat([_weights(g)[truth] for g, (_, truth) in zip(batch_gt_instances, matches, strict=True)])
        # As mmdet counts: an image without instances counts as one. Weighted and plain steps keep one scale.
        counted = sum(target[6].avg_factor for target in targets)
        count = max(float(reduce_mean(cls_scores.new_tensor([counted]))), 1.0)
        loss_mask, loss_dice = self._mask_losses(found, wanted, weights, count)
        return loss_cls, loss_mask, loss_dice

    def _mask_losses(self, found: Tensor, wanted: Tensor, weights: Tensor, count: float) -> tuple[Tensor, Tensor]:
        """Point-sampled cross entropy (weighted) and dice of matched masks [K, h, w] against [K, H, W]."""
        if len(wanted) == 0:
            return found.sum(), found.sum()
        with torch.no_grad():
            points = get_uncertain_point_coords_with_randomness(
                found[:, None], None, self.num_points, self.oversample_ratio, self.importance_sample_ratio
            )
            target = point_sample(wanted[:, None].float(), points)[:, 0]
            # Without "border" the outermost half pixel would fade to weight 0.
            weight = point_sample(weights[:, None].float(), points, padding_mode="border")[:, 0]
        logits = point_sample(found[:, None], points)[:, 0]  # [K, num_points]
        loss_dice = self.loss_dice(logits, target, avg_factor=count)
        loss_mask = self.loss_mask(  # Eq: SemiRES/pwa
            logits.flatten(), target.flatten(), weight=weight.flatten(), avg_factor=count * self.num_points
        )
        return loss_mask, loss_dice


def _weights(instances: InstanceData) -> Tensor:
    """Weights [N, H, W] of an image; 1 where it has none."""
    if "pixel_weights" in instances:
        return instances.pixel_weights
    return torch.ones_like(instances.masks, dtype=torch.float32)
