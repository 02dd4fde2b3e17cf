"""What a finished demo leaves behind, in small: scenes, a store, and runs with random weights that are sure."""

from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import save_file

from jobs import precompute_sam
from jobs.bench import steps as bench_steps
from jobs.config_files import write_resolved
from jobs.settings import load_settings
from jobs.training.run_directory import DONE, RESOLVED
from jobs.training.runs import read_training_config
from pipeline.scenes.dataset import SceneFiles
from tests.jobs.toy_networks import fresh_network
from tests.toy_scenes import small_scenes

CONFIGS = Path(__file__).parents[2] / "configs"
SURE = ("model.pseudo_labels.score_threshold=0.0", "model.pseudo_labels.min_soft_area=0.0")


@dataclass(frozen=True)
class ToyDemo:
    root: Path
    scenes: SceneFiles


def write_demo(root: Path) -> ToyDemo:
    scenes = small_scenes(root / "scenes", num_train=6)
    settings = {
        "images": str(scenes.annotations("train")),
        "image_root": str(scenes.image_root),
        "split": str(scenes.root / "split.json"),
        "store": str(root / "store"),
        "sam": {"name": "scenes-nano"},
        "proposals": {"points_per_side": 4, "pred_iou_threshold": 0.2, "stability_score_threshold": 0.2},
    }
    precompute_sam.precompute(load_settings(settings, where="here"))
    data = f"data_root={scenes.root}"
    for number, name in enumerate(("supervised", "structural")):
        run = root / f"teacher_{name}"
        run.mkdir()
        store = [f"store={root / 'store'}"] if name == "structural" else []
        write_resolved(read_training_config(CONFIGS / f"teacher/scenes_{name}.py", [data, *store]), run / RESOLVED)
        state = fresh_network([data], number).state_dict()
        torch.save({"state_dict": state}, run / "iter_1.pth")
        (run / DONE).write_text("{}")
    save_file(state, bench_steps.teacher_file(root))
    for name in ("points", "cpi_u"):
        run = root / f"student_{name}"
        run.mkdir()
        options = [data, f"store={root / 'store'}", *SURE]
        write_resolved(read_training_config(CONFIGS / f"student/scenes_{name}.py", options), run / RESOLVED)
    return ToyDemo(root, scenes)
