"""Bench of a student's step: SAM's work read from the store or from kept embeddings, against SAM in every step.

The released way encodes every augmented view anew, one image at a time, and prompts SAM in the view's own pixels. Both
ways step through the same stream from the same weights, with the same network, teacher masks, ARP and losses.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors.torch import save_file

from data_schemas.pseudo_labels import OUTCOMES
from jobs.bench.cases import Case
from jobs.bench.generators import random_backend
from jobs.bench.stepping import Stepper
from jobs.precompute_sam import run as precompute
from jobs.training.runs import read_training_config
from pipeline.data.coco import load_coco
from pipeline.data.splits import draw_split, save_split
from pipeline.models.panel_hook import pixels
from pipeline.models.semi_student import SemiStudent
from pipeline.refine.embedding_cache import EmbeddingCache
from pipeline.sam.interface import SamBackend
from pipeline.sam.sam2_backend import build_backend
from pipeline.scenes.dataset import SceneFiles, write_scenes

CONFIGS = Path(__file__).parents[2] / "configs"
SEED = 730_000
"""Of the scenes; not the benchmark's."""
_TINY = "sam2.1_hiera_tiny"


class OnlineStudent(SemiStudent):
    """The released way: SAM sees the view itself, in every step; nothing is precomputed or kept."""

    def loss(self, multi_batch_inputs: dict[str, Any], multi_batch_data_samples: dict[str, Any]) -> dict[str, Any]:
        """As of a student, each unlabelled view taken for an image of its own."""
        samples = multi_batch_data_samples["unsup"]
        views = pixels(multi_batch_inputs["unsup"], self)
        self.views: dict[int, NDArray[np.uint8]] = {}
        for sample, view in zip(samples, views, strict=True):
            height, width = sample.img_shape[:2]
            self.views[id(sample)] = np.ascontiguousarray(view[:height, :width])
            sample.set_metainfo({"homography_matrix": np.eye(3, dtype=np.float32), "ori_shape": (height, width)})
        return super().loss(multi_batch_inputs, multi_batch_data_samples)

    def _image(self, sample: Any) -> NDArray[np.uint8]:
        return self.views[id(sample)]


def student_step(folder: Path) -> Iterator[Case]:
    """CPI-U from the store and points from kept embeddings, against points asked online, with two sizes of SAM."""
    data = make_data(folder, num_images=16)
    train_teacher(folder, data, steps=60)
    backends: Mapping[str, Callable[[], SamBackend]] = {
        "scenes-nano, 384 pixels": lambda: build_backend("scenes-nano"),
        f"{_TINY}'s geometry, random weights, 1024 pixels": lambda: random_backend(_TINY, device="cpu"),
    }
    for name, make in backends.items():
        backend = make()
        for refiner in ("cpi_u", "points"):
            yield step_case(folder, data, refiner=refiner, backend=backend, sam=name)


def make_data(folder: Path, *, num_images: int) -> SceneFiles:
    """Scenes with a split and a library of proposals."""
    scenes = write_scenes(folder / "scenes", num_train=num_images, num_val=1, seed=SEED)
    coco = load_coco(scenes.annotations("train"), scenes.image_root)
    save_split(draw_split(coco, percent=50, seed=0), scenes.root / "split.json")
    options = {
        "images": scenes.annotations("train"),
        "image_root": scenes.image_root,
        "split": scenes.root / "split.json",
        "store": folder / "store",
        "targets": "['proposals']",
    }
    precompute(CONFIGS / "sam/scenes.py", cfg_options=[f"{key}={value}" for key, value in options.items()])
    return scenes


def step_case(folder: Path, data: SceneFiles, *, refiner: str, backend: SamBackend, sam: str) -> Case:
    """One step of each way; whatever a way keeps from its first pass over the images is there already."""
    steppers = {}
    for way, name in (("ours", refiner), ("online", "points")):
        stepper = make_stepper(folder, data, f"student/scenes_{name}", online=way == "online")
        if name == "points":
            cache = None if way == "online" else EmbeddingCache(backend, size=512)
            stepper.model.refiner = replace(stepper.model.refiner, sam=backend, embed=cache)
            stepper.model.embeddings = cache
        stepper.fill_embeddings()
        steppers[way] = stepper
    config = steppers["ours"].config
    return Case(
        ours=steppers["ours"].step,
        other=steppers["online"].step,
        other_name="points, SAM encodes every view in every step",
        sizes={"ours": {"cpi_u": "CPI-U from the store", "points": "points, embeddings kept"}[refiner]}
        | {"SAM": sam, "unlabelled images a step": config.batch_size, "view": "192 x 192"},
        check=same_start,
    )


def train_teacher(folder: Path, data: SceneFiles, *, steps: int) -> None:
    """A teacher that has seen the labelled scenes for a minute: it is sure of some masks."""
    stepper = make_stepper(folder, data, "teacher/scenes_supervised")
    for _ in range(steps):
        stepper.step()
    save_file(stepper.model.state_dict(), teacher_file(folder))


def teacher_file(folder: Path) -> Path:
    """Its weights."""
    return folder / "teacher.safetensors"


def make_stepper(folder: Path, data: SceneFiles, config: str, *, online: bool = False) -> Stepper:
    """A training on the scenes, with the config's own network and batch."""
    options: dict[str, Any] = {
        "data_root": data.root,
        "checkpoint_interval": 100_000,
        "log_interval": 100_000,
        "panel_interval": 0,
    }
    if config.startswith("student/"):
        options |= {
            "store": folder / "store",
            "teacher_checkpoint": teacher_file(folder),
            "burn_in": 0,
            "model.pseudo_labels.score_threshold": 0.4,  # for a teacher this young
        }
    read = read_training_config(CONFIGS / f"{config}.py", [f"{key}={value}" for key, value in options.items()])
    if online:
        read.model["type"] = OnlineStudent
    return Stepper(read, folder / f"{Path(config).name}{'_online' if online else ''}")


def same_start(ours: Mapping[str, float], online: Mapping[str, float]) -> None:
    """Raise AssertionError unless the first steps had the same labelled losses and as many teacher masks, some."""
    labelled = [name for name in ours if name.startswith("sup/")]
    assert labelled
    for name in labelled:
        assert ours[name] == online[name], f"{name}: {ours[name]} and {online[name]}"
    counts = [sum(step[f"refiner/{name}"] for name in OUTCOMES) for step in (ours, online)]
    assert counts[0] == counts[1] > 0, f"teacher masks: {counts}"


BENCHES: Mapping[str, Callable[[Path], Iterator[Case]]] = {"student_step": student_step}
