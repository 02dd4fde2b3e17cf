"""Mask2Former R50, written out in full: the network of the S4M paper (100 queries, 9 decoder layers, 256 channels).

``num_classes`` is the data set's (``--cfg-options num_classes=N``); batch norm is frozen as in the COCO runs
(Cityscapes' configs train SyncBN).
"""

from mmdet.models.backbones.resnet import ResNet
from mmdet.models.data_preprocessors.data_preprocessor import DetDataPreprocessor
from mmdet.models.losses.cross_entropy_loss import CrossEntropyLoss
from mmdet.models.losses.dice_loss import DiceLoss
from mmdet.models.seg_heads.panoptic_fusion_heads.maskformer_fusion_head import MaskFormerFusionHead
from mmdet.models.task_modules.assigners.hungarian_assigner import HungarianAssigner
from mmdet.models.task_modules.assigners.match_cost import ClassificationCost, CrossEntropyLossCost, DiceCost
from mmdet.models.task_modules.samplers.mask_pseudo_sampler import MaskPseudoSampler

from pipeline.models.mask2former import DistilledMask2Former, Float32PixelDecoder, WeightedMask2FormerHead

num_classes = 80
"""Of the data set; the head, the fusion head and the class weights follow."""
channels = 256
backbone_checkpoint = "torchvision://resnet50"
"""ImageNet weights; a local file works too."""
attention = dict(embed_dims=channels, num_heads=8, dropout=0.0, batch_first=True)
relu = dict(type="ReLU", inplace=True)

model = dict(
    type=DistilledMask2Former,
    structural_weight=1.0,
    structural_feature="decoder",
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
        depth=50,
        num_stages=4,
        out_indices=(0, 1, 2, 3),
        frozen_stages=-1,
        norm_cfg=dict(type="BN", requires_grad=False),
        norm_eval=True,
        style="pytorch",
        init_cfg=dict(type="Pretrained", checkpoint="{backbone_checkpoint}"),
    ),
    panoptic_head=dict(
        type=WeightedMask2FormerHead,
        in_channels=[256, 512, 1024, 2048],
        strides=[4, 8, 16, 32],
        feat_channels=channels,
        out_channels=channels,
        num_things_classes="{num_classes}",
        num_stuff_classes=0,
        num_queries=100,
        num_transformer_feat_level=3,
        pixel_decoder=dict(
            type=Float32PixelDecoder,
            num_outs=3,
            norm_cfg=dict(type="GN", num_groups=32),
            act_cfg=dict(type="ReLU"),
            encoder=dict(
                num_layers=6,
                layer_cfg=dict(
                    self_attn_cfg=dict(
                        embed_dims=channels, num_heads=8, num_levels=3, num_points=4, dropout=0.0, batch_first=True
                    ),
                    ffn_cfg=dict(embed_dims=channels, feedforward_channels=1024, num_fcs=2, ffn_drop=0.0, act_cfg=relu),
                ),
            ),
            positional_encoding=dict(num_feats=128, normalize=True),
        ),
        positional_encoding=dict(num_feats=128, normalize=True),
        transformer_decoder=dict(
            return_intermediate=True,
            num_layers=9,
            layer_cfg=dict(
                self_attn_cfg=attention,
                cross_attn_cfg=attention,
                ffn_cfg=dict(embed_dims=channels, feedforward_channels=2048, num_fcs=2, ffn_drop=0.0, act_cfg=relu),
            ),
            init_cfg=None,
        ),
        loss_cls=dict(
            type=CrossEntropyLoss,
            use_sigmoid=False,
            loss_weight=2.0,
            reduction="mean",
            class_weight=["{num_classes} x 1.0", 0.1],
        ),
        loss_mask=dict(type=CrossEntropyLoss, use_sigmoid=True, reduction="mean", loss_weight=5.0),
        loss_dice=dict(
            type=DiceLoss, use_sigmoid=True, activate=True, reduction="mean", naive_dice=True, eps=1.0, loss_weight=5.0
        ),
    ),
    panoptic_fusion_head=dict(
        type=MaskFormerFusionHead, num_things_classes="{num_classes}", num_stuff_classes=0, loss_panoptic=None
    ),
    train_cfg=dict(
        num_points=12544,
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
        panoptic_on=False, semantic_on=False, instance_on=True, max_per_image=100, iou_thr=0.8, filter_low_score=True
    ),
)
