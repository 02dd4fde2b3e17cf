"""Train the start of every scenes run: ``python -m jobs.embedded.train_scenes_base --out pipeline/assets``.

Writes ``scenes_base.safetensors`` (fp16, without the class layer) and ``scenes_base_log.json``.
"""

import argparse
import hashlib
import json
import time
from pathlib import Path
from typing import Any

import torch
from mmengine.config import Config
from mmengine.logging import MMLogger
from mmengine.registry import init_default_scope
from safetensors.torch import save_file

import pipeline.models.mmcv_ops  # noqa: F401  (before mmdet)
from pipeline.models.base_training import BaseStage, BaseTrainer, ObjectClassifier, recall_at_half, train_base_stage
from pipeline.scenes.cache import draw_arrays
from pipeline.scenes.render import SceneStyle
from pipeline.scenes.shapes import START_FAMILIES

TRAIN_SEED, HELD_OUT_SEED = 8_000_000, 9_000_000
MODEL_CONFIG = Path(__file__).parents[2] / "configs/_base_/mask2former_scenes.py"


def build_model(num_classes: int) -> Any:
    """The scenes Mask2Former with trainable batch statistics and another number of classes."""
    from mmdet.registry import MODELS

    MMLogger.get_instance("mmengine", log_level="WARNING")
    init_default_scope("mmdet")
    config = Config.fromfile(MODEL_CONFIG).model
    config.backbone.norm_eval = False
    for part in (config.panoptic_head, config.panoptic_fusion_head):
        part.num_things_classes = num_classes
    config.panoptic_head.loss_cls.class_weight = [1.0] * num_classes + [0.1]
    model = MODELS.build(config)
    model.init_weights()
    return model


def main() -> None:
    """Parse the command line and run both stages."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="folder for the weights and the log")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--scenes", type=int, default=6000)
    parser.add_argument("--object-steps", type=int, default=3000)
    parser.add_argument("--crop-steps", type=int, default=3500)
    parser.add_argument("--full-steps", type=int, default=3500)
    parser.add_argument("--crop-rate", type=float, default=8e-4, help="peak learning rate of stage 1")
    parser.add_argument("--full-rate", type=float, default=6e-4, help="peak learning rate of stage 2")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--start", type=Path, help="averaged weights (.pt) of an earlier run to go on from")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(args.seed)
    args.out.mkdir(parents=True, exist_ok=True)

    data = draw_arrays(args.scenes, group="start", style=SceneStyle(), seed=TRAIN_SEED)
    held_out = draw_arrays(40, group="start", style=SceneStyle(), seed=HELD_OUT_SEED)
    model = build_model(len(START_FAMILIES))
    if args.start:
        model.load_state_dict(torch.load(args.start, weights_only=True))
    started, rows = time.time(), []

    def report_objects(step: int, averages: dict[str, float]) -> None:
        rows.append({"stage": 0, "step": step, "seconds": round(time.time() - started), **averages})
        print(json.dumps(rows[-1]), flush=True)

    if args.object_steps:
        ObjectClassifier(model, data, args.seed).train(args.object_steps, batch=64, report=report_objects)
    trainer = BaseTrainer(model, data, args.seed)
    stages = [
        BaseStage(crop=128, steps=args.crop_steps, images=8, learning_rate=args.crop_rate),
        BaseStage(crop=192, steps=args.full_steps, images=8, learning_rate=args.full_rate),
    ]
    for number, stage in enumerate(stages, start=1):
        if stage.steps == 0:
            continue

        def report(step: int, averages: dict[str, float], number: int = number) -> None:
            row: dict[str, Any] = {"stage": number, "step": step, "seconds": round(time.time() - started)}
            row |= {name: round(value, 4) for name, value in averages.items()}
            if step % 500 == 0:
                row["held_out_recall_50"] = round(measure(model, trainer, held_out), 4)
                torch.save(trainer.averaged, args.out / "averaged.pt")
            rows.append(row)
            print(json.dumps(row), flush=True)

        train_base_stage(trainer, stage, report)
        model.load_state_dict(trainer.averaged)
    weights = {k: v.half().contiguous() if v.is_floating_point() else v for k, v in trainer.averaged.items()}
    weights = {k: v for k, v in weights.items() if "cls_embed" not in k and "loss_cls" not in k}
    path = args.out / "scenes_base.safetensors"
    save_file(weights, path)
    summary = {
        "arguments": {k: str(v) for k, v in vars(args).items()},
        "torch": torch.__version__,
        "parameters": sum(p.numel() for p in model.parameters()),
        "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
        "held_out_recall_50": measure(model, trainer, held_out),
        "log": rows,
    }
    (args.out / "scenes_base_log.json").write_text(json.dumps(summary, indent=1))


def measure(model: Any, trainer: BaseTrainer, held_out: Any) -> float:
    """Held-out recall of the averaged weights; the training weights come back afterwards."""
    current = {name: value.clone() for name, value in model.state_dict().items()}
    model.load_state_dict(trainer.averaged)
    recall = recall_at_half(model.eval(), held_out)
    model.train()
    model.load_state_dict(current)
    return recall


if __name__ == "__main__":
    main()
