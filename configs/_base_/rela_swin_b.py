"""ReLA with Swin-B and BERT-base, written out in full: the second network of SemiRES (Table 7).

``swin_checkpoint`` and ``bert`` as in ``lavt_swin_b.py``. As released: ``model.network.backbone.zero_init_gates=True``
(gates that never open) and ``model.network.region_decoder.attend_to_padding=True``.
"""

from mmengine.model import ImgDataPreprocessor

from pipeline.models.referring.rela import RelaNetwork
from pipeline.models.referring.segmentor import ReferSegmentor

bert = "bert-base-uncased"
swin_checkpoint = "checkpoints/swin_base_patch4_window12_384_22k.pth"
channels = 256

model = dict(
    type=ReferSegmentor,
    data_preprocessor=dict(
        type=ImgDataPreprocessor, mean=[123.675, 116.28, 103.53], std=[58.395, 57.12, 57.375], bgr_to_rgb=False
    ),
    class_weights=[0.9, 1.1],
    normalise="weights",
    network=dict(
        type=RelaNetwork,
        text_encoder=dict(name="{bert}", max_tokens=20, keep_separator=True, train_layers="all", eval_mode=False),
        backbone=dict(
            embed_dims=128,
            depths=[2, 2, 18, 2],
            num_heads=[4, 8, 16, 32],
            window_size=12,
            mlp_ratio=4,
            drop_path_rate=0.3,
            fusion_dropout=0.0,
            zero_init_gates=False,
            with_cp=False,
            weights="{swin_checkpoint}",
        ),
        pixel_decoder=dict(
            feat_channels=channels,
            out_channels=channels,
            num_outs=3,
            norm_cfg=dict(type="GN", num_groups=32),
            act_cfg=dict(type="ReLU"),
            encoder=dict(
                num_layers=6,
                layer_cfg=dict(
                    self_attn_cfg=dict(
                        embed_dims=channels, num_heads=8, num_levels=3, num_points=4, dropout=0.0, batch_first=True
                    ),
                    ffn_cfg=dict(embed_dims=channels, feedforward_channels=1024, num_fcs=2, ffn_drop=0.0),
                ),
            ),
            positional_encoding=dict(num_feats=channels // 2, normalize=True),
        ),
        region_decoder=dict(
            channels=channels,
            grid_hw=[10, 10],
            num_layers=9,
            num_heads=8,
            feedforward_channels=2048,
            attend_to_padding=False,
        ),
    ),
)
