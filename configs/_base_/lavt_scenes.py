"""LAVT small enough for a laptop: Swin of width 32, 64 channels in the decoder, a BERT of two layers; 3.2 M parameters.

What it is for: the embedded scenes (192 pixels) and the sentences of their grammar. Everything else is as in
``lavt_swin_b.py``.
"""

from mmengine.model import ImgDataPreprocessor

from pipeline.models.referring.lavt import LavtNetwork
from pipeline.models.referring.segmentor import ReferSegmentor

model = dict(
    type=ReferSegmentor,
    data_preprocessor=dict(
        type=ImgDataPreprocessor, mean=[123.675, 116.28, 103.53], std=[58.395, 57.12, 57.375], bgr_to_rgb=False
    ),
    class_weights=[0.9, 1.1],
    normalise="weights",
    network=dict(
        type=LavtNetwork,
        text_encoder=dict(name="tiny-bert", max_tokens=20, keep_separator=True, train_layers="all", eval_mode=False),
        backbone=dict(
            embed_dims=32,
            depths=[1, 1, 3, 3],
            num_heads=[1, 2, 4, 8],
            window_size=6,
            mlp_ratio=2,
            drop_path_rate=0.1,
            fusion_dropout=0.0,
            with_cp=False,
        ),
        decoder=dict(channels=64, norm_cfg=dict(type="BN")),
    ),
)
