"""Train the start of every scenes run on expressions.

    python -m jobs.embedded.train_refer_base lavt --out pipeline/assets

Writes ``refer_lavt_base.safetensors`` (fp16) and ``refer_lavt_base_log.json``, or those of ``rela``. The same command
goes on where a killed one stopped; ``--out`` holds ``refer_lavt_base.partial.pt`` until it is finished.
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
from mmengine.registry import MODELS
from safetensors.torch import save_file

from pipeline.models.referring.base_scenes import draw_refer_scenes, seat_class_words
from pipeline.models.referring.base_training import (
    ReferBaseSettings,
    ReferBaseTrainer,
    ReferStage,
    held_out_iou,
    seconds_left,
)
from pipeline.scenes.render import SceneStyle
from pipeline.scenes.shapes import BENCHMARK_FAMILIES, START_FAMILIES

TRAIN_SEED, SMALL_SEED, HELD_OUT_SEED = 8_500_000, 8_600_000, 9_500_000
SMALL = SceneStyle(size=96, num_instances=(2, 5), radius_share=(0.13, 0.3), num_clutter=(1, 4))
"""Objects of the benchmark's size in pixels on a quarter of its area."""
CONFIGS = Path(__file__).parents[2] / "configs/_base_"


def build_model(network: str, seed: int) -> Any:
    """The scenes network, lavt or rela, with random weights."""
    MMLogger.get_instance("mmengine", log_level="WARNING")
    torch.manual_seed(seed)
    model = MODELS.build(Config.fromfile(CONFIGS / f"{network}_scenes.py").model)
    model.init_weights()
    return model


def parse_arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("network", choices=("lavt", "rela"))
    parser.add_argument("--out", type=Path, required=True, help="folder for the weights and the log")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--scenes", type=int, default=6000)
    parser.add_argument("--held-out", type=int, default=60, help="scenes that are only measured on")
    parser.add_argument("--word-steps", type=int, default=2000, help="steps of stage 1: small scenes, mostly groups")
    parser.add_argument("--small-steps", type=int, default=6000, help="steps of stage 2: small scenes")
    parser.add_argument("--full-steps", type=int, default=6000, help="steps of stage 3: scenes of the benchmark's size")
    parser.add_argument("--images", type=int, default=8, help="images a step of stage 3; twice as many before")
    parser.add_argument("--rate", type=float, default=1e-3, help="peak learning rate")
    parser.add_argument("--report-every", type=int, default=100)
    parser.add_argument("--measure-every", type=int, default=1000, help="a multiple of --report-every")
    parser.add_argument("--threads", type=int, default=1)
    return parser.parse_args()


def main() -> None:
    """Train and write the weights."""
    args = parse_arguments()
    torch.set_num_threads(args.threads)
    args.out.mkdir(parents=True, exist_ok=True)
    name = f"refer_{args.network}_base"
    partial = args.out / f"{name}.partial.pt"

    model = build_model(args.network, args.seed)
    small = draw_refer_scenes(args.scenes, seed=SMALL_SEED, style=SMALL)
    full = draw_refer_scenes(args.scenes, seed=TRAIN_SEED)
    stages = [
        ReferStage(small, args.word_steps, 2 * args.images, group_share=0.6),
        ReferStage(small, args.small_steps, 2 * args.images, group_share=0.1),
        ReferStage(full, args.full_steps, args.images, group_share=0.1),
    ]
    held_out = draw_refer_scenes(args.held_out, seed=HELD_OUT_SEED)
    settings = ReferBaseSettings(rate=args.rate, seed=args.seed)
    trainer = ReferBaseTrainer(model, stages, settings)
    rows: list[dict[str, Any]] = []
    if partial.is_file():
        state = torch.load(partial, weights_only=True)
        trainer.resume(state, where=partial)
        rows = state["rows"]
    started, first_step = time.monotonic(), trainer.step

    def report(step: int, averages: dict[str, float]) -> None:
        row: dict[str, Any] = {"step": step} | {key: round(value, 4) for key, value in averages.items()}
        if step % args.measure_every == 0:
            row |= {f"held_out_{key}": round(value, 4) for key, value in measure(trainer, held_out).items()}
        rows.append(row)
        print(json.dumps(row | {"eta_s": seconds_left(started, first_step, step, trainer.num_steps)}), flush=True)

    def save() -> None:
        unfinished = partial.with_suffix(".new")
        torch.save(trainer.state() | {"rows": rows}, unfinished)
        unfinished.replace(partial)

    trainer.train(report=report, save=save, every=args.report_every)
    model.load_state_dict(trainer.averaged)
    figures = held_out_iou(model.eval(), held_out, seed=HELD_OUT_SEED)
    seat_class_words(model.network.text_encoder, list(START_FAMILIES), list(BENCHMARK_FAMILIES))
    weights = {k: v.half().contiguous() if v.is_floating_point() else v for k, v in model.state_dict().items()}
    path = args.out / f"{name}.safetensors"
    save_file(weights, path)
    summary = {
        "arguments": {key: str(value) for key, value in vars(args).items()},
        "seeds": {
            "weights and draws": args.seed,
            "small scenes": SMALL_SEED,
            "train scenes": TRAIN_SEED,
            "held-out scenes": HELD_OUT_SEED,
        },
        "torch": torch.__version__,
        "parameters": sum(p.numel() for p in model.parameters()),
        "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
        "held_out": figures,
        "log": rows,
    }
    (args.out / f"{name}_log.json").write_text(json.dumps(summary, indent=1))
    partial.unlink(missing_ok=True)


def measure(trainer: ReferBaseTrainer, held_out: Any) -> dict[str, float]:
    """Held-out figures of the averaged weights; the training weights come back afterwards."""
    model = trainer.model
    current = {name: value.clone() for name, value in model.state_dict().items()}
    model.load_state_dict(trainer.averaged)
    figures = held_out_iou(model.eval(), held_out, seed=HELD_OUT_SEED)
    model.train()
    model.load_state_dict(current)
    return figures


if __name__ == "__main__":
    main()
