"""LAVT with Swin-B and BERT-base, written out in full: the network of SemiRES (480 pixels).

``swin_checkpoint`` is ``swin_base_patch4_window12_384_22k.pth`` of the Swin authors (ImageNet-22k); ``bert`` is a
name on the model hub, or a folder with ``config.json``, ``vocab.txt`` and ``model.safetensors``.

As released: ``model.network.text_encoder.train_layers=[0,1,2,3,4,5,6,7,8,9]`` (embeddings and two layers of BERT never
train there) and ``model.network.text_encoder.keep_separator=False``. In the burn-in BERT has no dropout:
``model.network.text_encoder.eval_mode=True``.
"""

from mmengine.model import ImgDataPreprocessor

from pipeline.models.referring.lavt import LavtNetwork
from pipeline.models.referring.segmentor import ReferSegmentor

bert = "bert-base-uncased"
swin_checkpoint = "checkpoints/swin_base_patch4_window12_384_22k.pth"

model = dict(
    type=ReferSegmentor,
    data_preprocessor=dict(
        type=ImgDataPreprocessor, mean=[123.675, 116.28, 103.53], std=[58.395, 57.12, 57.375], bgr_to_rgb=False
    ),
    class_weights=[0.9, 1.1],
    normalise="weights",
    network=dict(
        type=LavtNetwork,
        text_encoder=dict(name="{bert}", max_tokens=20, keep_separator=True, train_layers="all", eval_mode=False),
        backbone=dict(
            embed_dims=128,
            depths=[2, 2, 18, 2],
            num_heads=[4, 8, 16, 32],
            window_size=12,
            mlp_ratio=4,
            drop_path_rate=0.3,
            fusion_dropout=0.0,
            with_cp=False,
            weights="{swin_checkpoint}",
        ),
        decoder=dict(channels=512, norm_cfg=dict(type="SyncBN")),
    ),
)
