"""S4M's Cityscapes teacher without structural distillation: Mask2Former R50 on the labelled part, labels only.

Claim (paper, 5 / 10 %): 14.9 / 19.0 Cityscapes AP; the first teacher of Guided Distillation and of the mean teacher.
Cost: 90,000 steps of 16 images of 512 x 1024; not run in this project, which had no GPU. It needs no store.

    s4m-pipeline convert-cityscapes data/cityscapes
    s4m-pipeline split data/cityscapes/annotations/train.json --image-root data/cityscapes/leftImg8bit/train \
        --out data/cityscapes/split_10 --names perc_10.txt            # a published list; or --percent 10
    s4m-pipeline train-teacher configs/teacher/cityscapes_r50_supervised.py --workers 4

Half precision is on (fp16 with a scaled loss); bf16: ``--cfg-options optim_wrapper.dtype=bfloat16``, float32:
``--cfg-options optim_wrapper.type=OptimWrapper``. Another share of labels: see ``cityscapes_r50.py``.
"""

from mmengine.config import read_base
from mmengine.optim import AmpOptimWrapper, PolyLR
from mmengine.runner import ValLoop
from torch.optim import AdamW

with read_base():
    from .._base_.cityscapes_data import *
    from .._base_.mask2former_r50 import *
    from .._base_.runtime import *

from pipeline.models.training_hooks import StreamLoop

batch_size = 4
"""Per worker; the paper's 16 are 4 workers. The released teacher's 4: ``--workers 2 --cfg-options batch_size=2``."""
max_iters = 90_000
val_interval = 5_000
checkpoint_interval = 5_000
best_figure = "coco/cityscapes_AP"
panel_interval = 1_000
learning_rate = 1e-4
init_checkpoint = None
teacher_checkpoint = None
num_classes = 8

# Unlike on COCO, batch norm is trained, over all workers.
model.backbone.norm_cfg = dict(type="SyncBN", requires_grad=True)
model.backbone.norm_eval = False
train_dataloader = dict(
    batch_size="{batch_size}",
    num_workers=4,
    persistent_workers=True,
    sampler=dict(**train_sampler, batch_size="{batch_size}"),
    collate_fn=collate,
    dataset=labelled_stream,
)
train_cfg = dict(type=StreamLoop, max_iters="{max_iters}", val_interval="{val_interval}")
val_cfg = dict(type=ValLoop)
no_decay = dict(decay_mult=0.0)
# mmengine forgets norm_decay_mult where a key fits; the longest key that fits counts.
backbone_norm = dict(lr_mult=0.1, decay_mult=0.0)
backbone_norms = {
    "backbone.bn1": backbone_norm,
    **{
        f"backbone.layer{stage}.{block}.{norm}.": backbone_norm
        for stage, num_blocks in enumerate((3, 4, 6, 3), start=1)
        for block in range(num_blocks)
        for norm in ("bn1", "bn2", "bn3", "downsample.1")
    },
}
optim_wrapper = dict(
    type=AmpOptimWrapper,
    optimizer=dict(type=AdamW, lr="{learning_rate}", weight_decay=0.05),
    clip_grad=dict(max_norm=0.01, norm_type=2),
    paramwise_cfg=dict(
        norm_decay_mult=0.0,
        custom_keys=dict(
            backbone=dict(lr_mult=0.1),
            **backbone_norms,
            query_embed=no_decay,
            query_feat=no_decay,
            level_embed=no_decay,
        ),
    ),
)
param_scheduler = dict(type=PolyLR, power=0.9, eta_min=0.0, begin=0, end="{max_iters}", by_epoch=False)
