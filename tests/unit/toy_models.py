"""A Mask2Former of a few thousand parameters, samples for it, and slow versions of its losses."""

import logging
from collections.abc import Sequence
from typing import Any

import pipeline.models.mmcv_ops  # noqa: F401  isort: skip  (before mmdet)
import numpy as np
import torch
from mmdet.models.backbones.resnet import ResNet
from mmdet.models.data_preprocessors.data_preprocessor import DetDataPreprocessor, MultiBranchDataPreprocessor
from mmdet.models.dense_heads.mask2former_head import Mask2FormerHead
from mmdet.models.losses.cross_entropy_loss import CrossEntropyLoss
from mmdet.models.losses.dice_loss import DiceLoss
from mmdet.models.seg_heads.panoptic_fusion_heads.maskformer_fusion_head import MaskFormerFusionHead
from mmdet.models.task_modules.assigners.hungarian_assigner import HungarianAssigner
from mmdet.models.task_modules.assigners.match_cost import ClassificationCost, CrossEntropyLossCost, DiceCost
from mmdet.models.task_modules.samplers.mask_pseudo_sampler import MaskPseudoSampler
from mmdet.registry import MODELS
from mmdet.structures import DetDataSample
from mmdet.structures.mask import BitmapMasks
from mmengine.config import ConfigDict
from mmengine.registry import init_default_scope
from mmengine.structures import InstanceData

from pipeline.models.mask2former import DistilledMask2Former, Float32PixelDecoder, WeightedMask2FormerHead

NUM_CLASSES = 3
CHANNELS = 8
MEAN, STD = [120.0, 110.0, 100.0], [50.0, 60.0, 55.0]


def detector_config(*, head: type = WeightedMask2FormerHead, queries: int = 6, **changes: Any) -> ConfigDict:
    """``changes`` are arguments of DistilledMask2Former."""
    attention = {"embed_dims": CHANNELS, "num_heads": 2, "dropout": 0.0, "batch_first": True}
    feed_forward = {
        "embed_dims": CHANNELS,
        "feedforward_channels": 16,
        "num_fcs": 2,
        "ffn_drop": 0.0,
        "act_cfg": {"type": "ReLU", "inplace": True},
    }
    deformable = {**attention, "num_levels": 3, "num_points": 2}
    panoptic_head = {
        "type": head,
        "in_channels": [8, 16, 32, 64],
        "strides": [4, 8, 16, 32],
        "feat_channels": CHANNELS,
        "out_channels": CHANNELS,
        "num_things_classes": NUM_CLASSES,
        "num_stuff_classes": 0,
        "num_queries": queries,
        "num_transformer_feat_level": 3,
        "pixel_decoder": {
            "type": Float32PixelDecoder,
            "num_outs": 3,
            "norm_cfg": {"type": "GN", "num_groups": 2},
            "act_cfg": {"type": "ReLU"},
            "encoder": {
                "num_layers": 1,
                "layer_cfg": {"self_attn_cfg": deformable, "ffn_cfg": feed_forward},
            },
            "positional_encoding": {"num_feats": CHANNELS // 2, "normalize": True},
        },
        "positional_encoding": {"num_feats": CHANNELS // 2, "normalize": True},
        "transformer_decoder": {
            "return_intermediate": True,
            "num_layers": 2,
            "layer_cfg": {"self_attn_cfg": attention, "cross_attn_cfg": attention, "ffn_cfg": feed_forward},
            "init_cfg": None,
        },
        "loss_cls": {
            "type": CrossEntropyLoss,
            "use_sigmoid": False,
            "loss_weight": 2.0,
            "reduction": "mean",
            "class_weight": [1.0] * NUM_CLASSES + [0.1],
        },
        "loss_mask": {"type": CrossEntropyLoss, "use_sigmoid": True, "reduction": "mean", "loss_weight": 5.0},
        "loss_dice": {
            "type": DiceLoss,
            "use_sigmoid": True,
            "activate": True,
            "reduction": "mean",
            "naive_dice": True,
            "eps": 1.0,
            "loss_weight": 5.0,
        },
    }
    return ConfigDict(
        type=DistilledMask2Former,
        backbone={
            "type": ResNet,
            "depth": 18,
            "base_channels": 8,
            "stem_channels": 8,
            "num_stages": 4,
            "out_indices": (0, 1, 2, 3),
            "frozen_stages": -1,
            "norm_cfg": {"type": "BN", "requires_grad": True},
            "norm_eval": True,
            "style": "pytorch",
        },
        panoptic_head=panoptic_head,
        panoptic_fusion_head={
            "type": MaskFormerFusionHead,
            "num_things_classes": NUM_CLASSES,
            "num_stuff_classes": 0,
            "loss_panoptic": None,
        },
        train_cfg={
            "num_points": 48,
            "oversample_ratio": 3.0,
            "importance_sample_ratio": 0.75,
            "assigner": {
                "type": HungarianAssigner,
                "match_costs": [
                    {"type": ClassificationCost, "weight": 2.0},
                    {"type": CrossEntropyLossCost, "weight": 5.0, "use_sigmoid": True},
                    {"type": DiceCost, "weight": 5.0, "pred_act": True, "eps": 1.0},
                ],
            },
            "sampler": {"type": MaskPseudoSampler},
        },
        test_cfg={
            "panoptic_on": False,
            "semantic_on": False,
            "instance_on": True,
            "max_per_image": 5,
            "iou_thr": 0.8,
            "filter_low_score": True,
        },
        **changes,
    )


def preprocessor_config(*, branches: bool = False) -> dict[str, Any]:
    single = {
        "type": DetDataPreprocessor,
        "mean": MEAN,
        "std": STD,
        "bgr_to_rgb": False,
        "pad_size_divisor": 32,
        "pad_mask": True,
        "mask_pad_value": 0,
    }
    return {"type": MultiBranchDataPreprocessor, "data_preprocessor": single} if branches else single


def build_detector(*, seed: int = 0, head: type = WeightedMask2FormerHead, **changes: Any) -> DistilledMask2Former:
    init_default_scope("mmdet")
    torch.manual_seed(seed)
    model = MODELS.build(detector_config(head=head, data_preprocessor=preprocessor_config(), **changes))
    logging.getLogger("mmengine").setLevel(logging.ERROR)
    model.init_weights()
    return model


def build_head(head: type = Mask2FormerHead, *, seed: int = 0) -> Mask2FormerHead:
    init_default_scope("mmdet")
    torch.manual_seed(seed)
    config = detector_config(head=head)
    return MODELS.build({**config.panoptic_head, "train_cfg": config.train_cfg, "test_cfg": config.test_cfg})


def sample_of(
    masks: np.ndarray,
    labels: Sequence[int],
    *,
    homography: np.ndarray | None = None,
    canonical_hw: tuple[int, int] | None = None,
    canvas_hw: tuple[int, int] | None = None,
    image_id: int = 1,
) -> DetDataSample:
    """A data sample as it leaves the preprocessor: masks [N, h, w] of the valid area."""
    height, width = masks.shape[1:]
    canvas = canvas_hw or (height, width)
    padded = np.zeros((len(masks), *canvas), np.uint8)
    padded[:, :height, :width] = masks
    sample = DetDataSample(
        metainfo={
            "img_id": image_id,
            "img_path": f"{image_id}.png",
            "ori_shape": canonical_hw or (height, width),
            "img_shape": (height, width),
            "batch_input_shape": canvas,
            "pad_shape": canvas,
            "homography_matrix": np.eye(3, dtype=np.float32) if homography is None else homography,
        }
    )
    sample.gt_instances = InstanceData(
        labels=torch.tensor(list(labels), dtype=torch.int64), masks=BitmapMasks(padded, *canvas)
    )
    return sample


def blocks(count: int, size_hw: tuple[int, int], *, seed: int = 0) -> np.ndarray:
    """[count, h, w] uint8: rectangles that may overlap."""
    rng = np.random.default_rng([5, seed])
    masks = np.zeros((count, *size_hw), np.uint8)
    for mask in masks:
        top, left = rng.integers(0, size_hw[0] // 2), rng.integers(0, size_hw[1] // 2)
        mask[top : top + size_hw[0] // 2, left : left + size_hw[1] // 2] = 1
    return masks
