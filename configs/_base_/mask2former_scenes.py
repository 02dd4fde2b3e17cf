"""Mask2Former small enough for a laptop: ResNet-18 of half width, 64 channels, 20 queries, 3 decoder layers.

What it is for: the embedded scenes (192 pixels, 8 classes), from the shipped start ``scenes-base``.
The same classes and losses as ``mask2former_r50.py``; only sizes differ.
"""

from mmdet.models.backbones.resnet import ResNet
from mmdet.models.data_preprocessors.data_preprocessor import DetDataPreprocessor
from mmdet.models.dense_heads.mask2former_head import Mask2FormerHead
from mmdet.models.detectors.mask2former import Mask2Former
from mmdet.models.layers.msdeformattn_pixel_decoder import MSDeformAttnPixelDecoder
from mmdet.models.losses.cross_entropy_loss import CrossEntropyLoss
from mmdet.models.losses.dice_loss import DiceLoss
from mmdet.models.seg_heads.panoptic_fusion_heads.maskformer_fusion_head import MaskFormerFusionHead
from mmdet.models.task_modules.assigners.hungarian_assigner import HungarianAssigner
from mmdet.models.task_modules.assigners.match_cost import ClassificationCost, CrossEntropyLossCost, DiceCost
from mmdet.models.task_modules.samplers.mask_pseudo_sampler import MaskPseudoSampler

num_classes = 8
channels = 64
attention = dict(embed_dims=channels, num_heads=4, dropout=0.0, batch_first=True)
feed_forward = dict(
    embed_dims=channels, feedforward_channels=256, num_fcs=2, ffn_drop=0.0, act_cfg=dict(type="ReLU", inplace=True)
)

model = dict(
    type=Mask2Former,
    data_preprocessor=dict(
        type=DetDataPreprocessor,
        mean=[123.675, 116.28, 103.53],
        std=[58.395, 57.12, 57.375],
        bgr_to_rgb=False,
        pad_size_divisor=32,
        pad_mask=True,
        mask_pad_value=0,
    ),
    backbone=dict(
        type=ResNet,
        depth=18,
        base_channels=32,
        stem_channels=32,
        num_stages=4,
        out_indices=(0, 1, 2, 3),
        frozen_stages=-1,
        norm_cfg=dict(type="BN", requires_grad=True),
        norm_eval=True,
        style="pytorch",
    ),
    panoptic_head=dict(
        type=Mask2FormerHead,
        in_channels=[32, 64, 128, 256],
        strides=[4, 8, 16, 32],
        feat_channels=channels,
        out_channels=channels,
        num_things_classes=num_classes,
        num_stuff_classes=0,
        num_queries=20,
        num_transformer_feat_level=3,
        pixel_decoder=dict(
            type=MSDeformAttnPixelDecoder,
            num_outs=3,
            norm_cfg=dict(type="GN", num_groups=8),
            act_cfg=dict(type="ReLU"),
            encoder=dict(
                num_layers=2,
                layer_cfg=dict(
                    self_attn_cfg=dict(
                        embed_dims=channels, num_heads=4, num_levels=3, num_points=4, dropout=0.0, batch_first=True
                    ),
                    ffn_cfg=feed_forward,
                ),
            ),
            positional_encoding=dict(num_feats=channels // 2, normalize=True),
        ),
        positional_encoding=dict(num_feats=channels // 2, normalize=True),
        transformer_decoder=dict(
            return_intermediate=True,
            num_layers=3,
            layer_cfg=dict(self_attn_cfg=attention, cross_attn_cfg=attention, ffn_cfg=feed_forward),
            init_cfg=None,
        ),
        loss_cls=dict(
            type=CrossEntropyLoss,
            use_sigmoid=False,
            loss_weight=2.0,
            reduction="mean",
            class_weight=[1.0] * num_classes + [0.1],
        ),
        loss_mask=dict(type=CrossEntropyLoss, use_sigmoid=True, reduction="mean", loss_weight=5.0),
        loss_dice=dict(
            type=DiceLoss, use_sigmoid=True, activate=True, reduction="mean", naive_dice=True, eps=1.0, loss_weight=5.0
        ),
    ),
    panoptic_fusion_head=dict(
        type=MaskFormerFusionHead, num_things_classes=num_classes, num_stuff_classes=0, loss_panoptic=None
    ),
    train_cfg=dict(
        num_points=1024,
        oversample_ratio=3.0,
        importance_sample_ratio=0.75,
        assigner=dict(
            type=HungarianAssigner,
            match_costs=[
                dict(type=ClassificationCost, weight=2.0),
                dict(type=CrossEntropyLossCost, weight=5.0, use_sigmoid=True),
                dict(type=DiceCost, weight=5.0, pred_act=True, eps=1.0),
            ],
        ),
        sampler=dict(type=MaskPseudoSampler),
    ),
    test_cfg=dict(
        panoptic_on=False, semantic_on=False, instance_on=True, max_per_image=20, iou_thr=0.8, filter_low_score=True
    ),
)
