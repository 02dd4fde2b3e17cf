"""Train the embedded SAM: ``python -m jobs.embedded.train_scenes_nano --out pipeline/assets``.

Draws its own scenes (all shape families, seeds the benchmark never uses), trains, measures clicks on
held-out scenes, and writes ``scenes_nano.safetensors`` (fp16) and ``scenes_nano_log.json``.
"""

import argparse
import hashlib
import json
import time
from pathlib import Path
from typing import Any

import torch
from hydra.utils import instantiate
from omegaconf import OmegaConf
from safetensors.torch import save_file

from pipeline.sam.nano_training import SCENE_SIZE, NanoTrainer, Stage, click_quality, train_stage
from pipeline.scenes.cache import draw_arrays
from pipeline.scenes.render import SceneStyle

TRAIN_SEED, HELD_OUT_SEED = 6_000_000, 7_000_000
MODEL_CONFIG = Path(__file__).parents[2] / "pipeline/assets/scenes_nano.yaml"


def main() -> None:
    """Parse the command line and run both stages."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="folder for the weights and the log")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--scenes", type=int, default=8000)
    parser.add_argument("--crop", type=int, default=96, help="side of stage 1's crops in pixels, a multiple of 8")
    parser.add_argument("--crop-steps", type=int, default=3000)
    parser.add_argument("--full-steps", type=int, default=4000)
    parser.add_argument("--crop-rate", type=float, default=1.5e-3, help="peak learning rate of stage 1")
    parser.add_argument("--full-rate", type=float, default=1e-3, help="peak learning rate of stage 2")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--start", type=Path, help="averaged weights (.pt) of an earlier run to go on from")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(args.seed)
    args.out.mkdir(parents=True, exist_ok=True)

    style = SceneStyle(num_instances=(2, 12), radius_share=(0.04, 0.21))
    data = draw_arrays(args.scenes, group="all", style=style, seed=TRAIN_SEED)
    held_out = draw_arrays(30, group="benchmark", style=SceneStyle(), seed=HELD_OUT_SEED)
    model = instantiate(OmegaConf.load(MODEL_CONFIG))
    if args.start:
        model.load_state_dict(torch.load(args.start, weights_only=True))
    trainer = NanoTrainer(model, data, args.seed)
    stages = [
        Stage(crop=args.crop, steps=args.crop_steps, images=8, prompts=5, learning_rate=args.crop_rate),
        Stage(crop=SCENE_SIZE, steps=args.full_steps, images=4, prompts=7, learning_rate=args.full_rate),
    ]
    started, rows = time.time(), []
    for number, stage in enumerate(stages, start=1):
        if stage.steps == 0:
            continue

        def report(step: int, averages: dict[str, float], number: int = number) -> None:
            row: dict[str, Any] = {"stage": number, "step": step, "seconds": round(time.time() - started)}
            row |= {name: round(value, 4) for name, value in averages.items()}
            if step % 1000 == 0:
                row["held_out"] = measure(model, trainer, held_out)
                torch.save(trainer.averaged, args.out / "averaged.pt")
            rows.append(row)
            print(json.dumps(row), flush=True)

        train_stage(trainer, stage, report)
        model.load_state_dict(trainer.averaged)
    weights = {name: value.half().contiguous() for name, value in trainer.averaged.items()}
    path = args.out / "scenes_nano.safetensors"
    save_file(weights, path)
    summary = {
        "arguments": {k: str(v) for k, v in vars(args).items()},
        "torch": torch.__version__,
        "parameters": sum(p.numel() for p in model.parameters()),
        "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
        "held_out": measure(model, trainer, held_out),
        "log": rows,
    }
    (args.out / "scenes_nano_log.json").write_text(json.dumps(summary, indent=1))


def measure(model: Any, trainer: NanoTrainer, held_out: Any) -> dict[str, float]:
    """Click quality of the averaged weights; the training weights come back afterwards."""
    current = {name: value.clone() for name, value in model.state_dict().items()}
    model.load_state_dict(trainer.averaged)
    quality = click_quality(model.eval(), held_out)
    model.train()
    model.load_state_dict(current)
    return {name: round(value, 4) for name, value in quality.items()}


if __name__ == "__main__":
    main()
