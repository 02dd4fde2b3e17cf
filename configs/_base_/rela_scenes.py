"""ReLA small enough for a laptop: Swin of width 32, 64 channels, two and three layers in its decoders.

What it is for: the embedded scenes (192 pixels) and the sentences of their grammar. Everything else is as in
``rela_swin_b.py``.
"""

from mmengine.model import ImgDataPreprocessor

from pipeline.models.referring.rela import RelaNetwork
from pipeline.models.referring.segmentor import ReferSegmentor

channels = 64

model = dict(
    type=ReferSegmentor,
    data_preprocessor=dict(
        type=ImgDataPreprocessor, mean=[123.675, 116.28, 103.53], std=[58.395, 57.12, 57.375], bgr_to_rgb=False
    ),
    class_weights=[0.9, 1.1],
    normalise="weights",
    network=dict(
        type=RelaNetwork,
        text_encoder=dict(name="tiny-bert", max_tokens=20, keep_separator=True, train_layers="all", eval_mode=False),
        backbone=dict(
            embed_dims=32,
            depths=[1, 1, 3, 3],
            num_heads=[1, 2, 4, 8],
            window_size=6,
            mlp_ratio=2,
            drop_path_rate=0.1,
            fusion_dropout=0.0,
            zero_init_gates=False,
            with_cp=False,
        ),
        pixel_decoder=dict(
            feat_channels=channels,
            out_channels=channels,
            num_outs=3,
            norm_cfg=dict(type="GN", num_groups=8),
            act_cfg=dict(type="ReLU"),
            encoder=dict(
                num_layers=2,
                layer_cfg=dict(
                    self_attn_cfg=dict(
                        embed_dims=channels, num_heads=4, num_levels=3, num_points=4, dropout=0.0, batch_first=True
                    ),
                    ffn_cfg=dict(embed_dims=channels, feedforward_channels=256, num_fcs=2, ffn_drop=0.0),
                ),
            ),
            positional_encoding=dict(num_feats=channels // 2, normalize=True),
        ),
        region_decoder=dict(
            channels=channels,
            grid_hw=[10, 10],
            num_layers=3,
            num_heads=4,
            feedforward_channels=256,
            attend_to_padding=False,
        ),
    ),
)
