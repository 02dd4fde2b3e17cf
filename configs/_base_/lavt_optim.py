"""The optimizer of LAVT in SemiRES: AdamW, no decay for Swin's norms and position tables."""

from mmengine.optim import AmpOptimWrapper, OptimWrapper, PolyLR  # noqa: F401  (Amp: --cfg-options on GPUs)
from torch.optim import AdamW

optim_wrapper = dict(
    type=OptimWrapper,
    optimizer=dict(type=AdamW, lr="{learning_rate}", weight_decay=0.01),
    paramwise_cfg=dict(
        custom_keys={
            "backbone.patch_embed.norm": dict(decay_mult=0.0),
            "norm1": dict(decay_mult=0.0),
            "norm2": dict(decay_mult=0.0),
            "backbone.norm": dict(decay_mult=0.0),
            "downsample.norm": dict(decay_mult=0.0),
            "relative_position_bias_table": dict(decay_mult=0.0),
        }
    ),
)
param_scheduler = dict(type=PolyLR, power=0.9, eta_min=0.0, begin=0, end="{max_iters}", by_epoch=False)
