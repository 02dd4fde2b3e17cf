"""The optimizer of ReLA: AdamW, no decay for norms and embeddings but BERT's, gradients clipped."""

from mmengine.optim import OptimWrapper
from torch.optim import AdamW

optim_wrapper = dict(
    type=OptimWrapper,
    optimizer=dict(type=AdamW, lr="{learning_rate}", weight_decay=0.05),
    clip_grad=dict(max_norm=0.01, norm_type=2),
    paramwise_cfg=dict(
        norm_decay_mult=0.0,
        custom_keys={
            "relative_position_bias_table": dict(decay_mult=0.0),
            "region_decoder.region_embed": dict(decay_mult=0.0),
            "region_decoder.position_embed": dict(decay_mult=0.0),
            "region_decoder.level_embed": dict(decay_mult=0.0),
            "pixel_decoder.level_encoding": dict(decay_mult=0.0),
            "text_encoder": dict(decay_mult=1.0),
        },
    ),
)
