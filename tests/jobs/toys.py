"""Small stages and data sets for the tests of the jobs; the stages import nothing heavy."""

import json
import os
import signal
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
from PIL import Image

from pipeline.errors import StoreDamagedError


@dataclass(frozen=True)
class ToyJob:
    images: tuple[int, ...]
    poisoned: Mapping[int, str] = field(default_factory=dict)

    def one_at_a_time(self) -> None:
        return None

    def without(self, image_id: int, reason: str) -> "ToyJob":
        return replace(self, poisoned={**self.poisoned, image_id: reason})


@dataclass(frozen=True)
class HastyJob(ToyJob):
    """Touches the next image while it is at one."""

    read_ahead: bool = True

    def one_at_a_time(self) -> "HastyJob | None":
        return replace(self, read_ahead=False) if self.read_ahead else None


@dataclass(frozen=True)
class HastyStage:
    """Squares ids; whoever touches the image ``deadly`` dies."""

    deadly: int

    def __call__(self, job: HastyJob, tell: Callable[[int | None], None] = lambda _: None) -> dict[int, object]:
        answer: dict[int, object] = dict(job.poisoned)
        left = [image_id for image_id in job.images if image_id not in job.poisoned]
        for position, image_id in enumerate(left):
            if job.read_ahead:
                self._touch(left[position : position + 2])
            tell(image_id)
            self._touch([image_id])
            answer[image_id] = image_id**2
        tell(None)
        return answer

    def _touch(self, images: list[int]) -> None:
        if self.deadly in images:
            os.kill(os.getpid(), signal.SIGKILL)


@dataclass(frozen=True)
class CountsThreads:
    """How many threads the libraries of its process would use."""

    def __call__(self, job: ToyJob, tell: Callable[[int | None], None] = lambda _: None) -> dict[int, object]:
        import cv2
        import torch

        return {job.images[0]: (torch.get_num_threads(), cv2.getNumThreads())}


@dataclass(frozen=True)
class ToyStage:
    """Squares ids; some images kill the process, some sleep; every attempt leaves a line in a log."""

    log: Path
    kills: Mapping[int, int] = field(default_factory=dict)
    """Image id -> how many attempts end in SIGKILL."""
    sleeps: Mapping[int, float] = field(default_factory=dict)
    raises: Mapping[int, Exception] = field(default_factory=dict)

    def __call__(self, job: ToyJob, tell: Callable[[int | None], None] = lambda _: None) -> dict[int, object]:
        answer: dict[int, object] = {}
        for image_id in job.images:
            if image_id in job.poisoned:
                answer[image_id] = job.poisoned[image_id]
                continue
            tell(image_id)
            with self.log.open("a") as file:
                file.write(f"{image_id} {os.getpid()}\n")
            if attempts(self.log, image_id) <= self.kills.get(image_id, 0):
                os.kill(os.getpid(), signal.SIGKILL)
            time.sleep(self.sleeps.get(image_id, 0))
            if image_id in self.raises:
                raise self.raises[image_id]
            answer[image_id] = image_id**2
        tell(None)
        return answer


@dataclass(frozen=True)
class KillsItsActor:
    """From its child process kills the parent, the first ``deaths`` times."""

    log: Path
    deaths: int

    def __call__(self, job: ToyJob, tell: Callable[[int | None], None] = lambda _: None) -> dict[int, object]:
        with self.log.open("a") as file:
            file.write(f"{job.images[0]} {os.getpid()}\n")
        if attempts(self.log, job.images[0]) <= self.deaths:
            os.kill(os.getppid(), signal.SIGKILL)
            time.sleep(1)
        return ToyStage(self.log.with_suffix(".done"))(job, tell)


@dataclass(frozen=True)
class MakeToyStage:
    stage: Callable[..., object]
    dies: bool = False

    def __call__(self) -> Callable[..., object]:
        if self.dies:
            os._exit(7)
        return self.stage


def attempts(log: Path, image_id: int) -> int:
    return sum(line.split()[0] == str(image_id) for line in log.read_text().splitlines()) if log.exists() else 0


def fake_sam(_settings: object) -> object:
    """In place of the SAM of the settings, also in other processes."""
    from tests.fakes import FakeSam

    return FakeSam()


DAMAGE = StoreDamagedError("a toy is broken", where="shelf", expected="whole", got="parts", fix="glue it")


def write_images(folder: Path, count: int = 6, size_hw: tuple[int, int] = (24, 32)) -> None:
    """Flat rectangles on a flat ground: image ``i`` has two of them."""
    folder.mkdir(parents=True, exist_ok=True)
    for i in range(count):
        image = np.full((*size_hw, 3), 20 + i, np.uint8)
        image[4:12, 4 : 12 + i] = (200, 40 + i, 40)
        image[14:20, 18:28] = (40, 200, 40 + i)
        Image.fromarray(image).save(folder / f"{i:02}.png")


def write_coco(folder: Path, count: int = 6, *, labelled: int = 6) -> Path:
    """Those images with their rectangles as polygons, ids from 10 on; only the first ``labelled`` have any."""
    write_images(folder, count)
    images, annotations = [], []
    for i in range(count):
        images.append({"id": 10 + i, "file_name": f"{i:02}.png", "height": 24, "width": 32})
        for x0, y0, x1, y1 in [(4, 4, 12 + i, 12), (18, 14, 28, 20)][: 2 if i < labelled else 0]:
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": 10 + i,
                    "category_id": 1,
                    "iscrowd": 0,
                    "area": (x1 - x0) * (y1 - y0),
                    "bbox": [x0, y0, x1 - x0, y1 - y0],
                    "segmentation": [[x0, y0, x1, y0, x1, y1, x0, y1]],
                }
            )
    path = folder / "instances.json"
    content = {"images": images, "annotations": annotations, "categories": [{"id": 1, "name": "box"}]}
    path.write_text(json.dumps(content))
    return path


def store_files(store: Path) -> dict[str, bytes]:
    """Relative path -> bytes, less locks and the resolved configuration, which names its store."""
    paths = [
        p for p in store.rglob("*") if p.is_file() and not p.name.startswith(".") and p.name != "precompute_sam.py"
    ]
    return {p.relative_to(store).as_posix(): p.read_bytes() for p in paths}
