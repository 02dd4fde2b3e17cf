"""What every training run shares: logging, checkpoints, determinism."""

from mmengine.hooks import CheckpointHook, DistSamplerSeedHook, IterTimerHook, LoggerHook, ParamSchedulerHook
from mmengine.runner import LogProcessor
from mmengine.visualization import LocalVisBackend, TensorboardVisBackend
from mmengine.visualization.visualizer import Visualizer

from pipeline.models.panel_hook import PanelHook
from pipeline.models.training_hooks import BatchStatisticsHook, ProgressHook, StepSeedHook

default_scope = "mmdet"
seed = 0
device = "auto"
"""auto (a GPU where there is one) | cpu | cuda."""
checkpoint_interval = 500
best_figure = None
"""Figure of the validation, such as coco/mask_AP: the checkpoint that scored best is kept beside the last ones, as
best_*.pth; None keeps none. What is reported is the last one: a best one is chosen on the validation set."""
log_interval = 20
panel_interval = 200
"""Steps between two image panels in TensorBoard, of about 140 kB each; 0 draws none."""
randomness = dict(seed="{seed}")
default_hooks = dict(
    timer=dict(type=IterTimerHook),
    logger=dict(type=LoggerHook, interval="{log_interval}", log_metric_by_epoch=False),
    param_scheduler=dict(type=ParamSchedulerHook),
    checkpoint=dict(
        type=CheckpointHook,
        by_epoch=False,
        interval="{checkpoint_interval}",
        max_keep_ckpts=2,
        save_last=True,
        save_best="{best_figure}",
        rule="greater",
    ),
    sampler_seed=dict(type=DistSamplerSeedHook),
)
custom_hooks = [
    dict(type=StepSeedHook, seed="{seed}"),
    dict(type=BatchStatisticsHook),
    dict(type=ProgressHook, interval="{log_interval}"),
    dict(type=PanelHook, interval="{panel_interval}"),
]
vis_backends = [dict(type=LocalVisBackend), dict(type=TensorboardVisBackend)]
visualizer = dict(type=Visualizer, vis_backends=vis_backends, name="visualizer")
log_processor = dict(type=LogProcessor, by_epoch=False, window_size=20)
log_level = "ERROR"
"""mmengine's own log; the console line comes from ProgressHook."""
env_cfg = dict(cudnn_benchmark=False, mp_cfg=dict(mp_start_method="fork"), dist_cfg=dict(backend="gloo"))
"""dist_cfg is not used: Ray Train opens the process group, nccl where every worker has a GPU, else gloo."""
launcher = "none"
load_from = None
resume = False
