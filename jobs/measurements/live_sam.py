"""How far training on precomputed targets is from the paper's way, a SAM that is asked about every view.

    python -m jobs.measurements.live_sam CONFIG --sam scenes-nano [--cfg-options KEY=VALUE]

Takes labelled images of a teacher's config with a store, the network as its training starts, and three kinds of views:
the whole image, the whole image mirrored, and the config's own. On each view both losses are taken at the same points:
their values, and the cosine between their gradients by the network's features. What that cosine means is told by
another one, of the store's loss at two draws of its points.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pipeline.models.mmcv_ops  # noqa: F401  isort: skip  (before mmdet)
import numpy as np
import torch
from mmdet.datasets.transforms import RandomFlip
from mmdet.registry import MODELS, TRANSFORMS
from mmengine.dataset import Compose
from mmengine.registry import DATASETS, init_default_scope
from torch import Tensor

from jobs.provenance import provenance
from jobs.training.distillation_checks import FROM_STORE
from jobs.training.runs import check, read_training_config
from jobs.training.starting_weights import initialise
from pipeline.data.coco import write_json
from pipeline.data.instance_dataset import InstanceDataset, seeded
from pipeline.data.transforms import LoadSimilarityTargets, PackSample
from pipeline.distill.live_sam import LiveSam, LiveSamSettings
from pipeline.errors import ConfigError, PipelineError, StoreMismatchError
from pipeline.models.mask2former import loss_from_store, shown_to_sam

VIEWS = ("whole", "mirrored", "training")


@dataclass(frozen=True)
class Figures:
    """Means over the views of one kind."""

    views: int
    loss_store: float
    loss_live: float
    loss_difference: float
    """Mean of the absolute differences."""
    gradient_cosine: float
    """Between the gradients of both losses."""
    redraw_cosine: float
    """Between the gradients of the store's loss at two draws of its points: what chance alone does."""


class Comparison:
    """A teacher's network, its labelled images and its store, beside a SAM."""

    def __init__(self, config: Any, sam: LiveSamSettings) -> None:
        """Build what the config names.

        Raises:
            ConfigError: a config without a store, or a student's.
            StoreMismatchError: the store was made by another SAM.
            PipelineError: see ``jobs.training.runs.check``.
        """
        init_default_scope("mmdet")
        self.stream = config.train_dataloader.dataset
        transforms = list(self.stream.dataset.pipeline) if "dataset" in self.stream else []
        is_load = [FROM_STORE in str(dict(each)["type"]) for each in transforms]
        if sum(is_load) != 1:
            raise ConfigError(
                "precomputed targets are to be compared",
                where="train_dataloader.dataset",
                expected=f"a teacher's config with {FROM_STORE}, such as configs/teacher/scenes_structural.py",
                got=[str(dict(each)["type"]).rpartition(".")[2] for each in transforms],
            )
        place = is_load.index(True)
        self.geometry = transforms[:place]
        self.load: LoadSimilarityTargets = TRANSFORMS.build({**dict(transforms[place]), "keep_view": True})
        self.images: InstanceDataset = DATASETS.build({**dict(self.stream.dataset), "pipeline": []})
        self.model = MODELS.build(config.model)
        initialise(self.model, config)
        self.model.train()
        self.sam = LiveSam(sam)
        identity, backend = self.load.store.identity, self.sam.backend(torch.device("cpu"))
        if identity.sam_sha256 != backend.sha256:
            raise StoreMismatchError(
                "the store was made by another SAM",
                where=self.load.store_uri,
                expected=f"{backend.name}, {backend.sha256[:12]}",
                got=f"{identity.sam_name}, {identity.sam_sha256[:12]}",
                fix="name the store's SAM with --sam",
            )

    def figures(self, kind: str, count: int) -> Figures:
        """Compare on views of one kind, of the first ``count`` images (again from the first where there are fewer)."""
        flip = {"type": RandomFlip, "prob": 1.0, "direction": "horizontal"}
        geometry = Compose({"whole": [], "mirrored": [flip], "training": self.geometry}[kind])
        rows = [row for number in range(count) if (row := self._row(geometry, number)) is not None]
        store, live, cosine, redraw = np.array(rows).T
        means = [float(each.mean()) for each in (store, live, abs(store - live), cosine, redraw)]
        return Figures(len(rows), *means)

    def _row(self, geometry: Compose, number: int) -> tuple[float, ...] | None:
        """Of one view: both losses, the cosine of their gradients, that of two draws; None where no object is left."""
        with seeded([number]):
            record = geometry(self.images.record(number % len(self.images)))
        if record is None:
            return None
        drawn = []
        for draw in (0, 1):
            with seeded([number, draw]):
                drawn.append(PackSample().transform(self.load.transform(dict(record))))
        ready = [self._ready(each) for each in drawn]
        features = self._features(ready[0][0])
        first, again = (loss_from_store([(features[0], sample)]) for _, sample in ready)
        live = self.sam.structural([shown_to_sam(features[0], ready[0][1])])
        slopes = [torch.autograd.grad(loss, features)[0].flatten() for loss in (first, live, again)]
        cosines = [float(torch.cosine_similarity(slopes[0], other, dim=0)) for other in slopes[1:]]
        return float(first.detach()), float(live.detach()), *cosines

    def _ready(self, packed: dict[str, Any]) -> tuple[Tensor, Any]:
        ready = self.model.data_preprocessor({key: [value] for key, value in packed.items()}, True)
        return ready["inputs"], ready["data_samples"][0]

    @torch.no_grad()
    def _features(self, inputs: Tensor) -> Tensor:
        """[1, C, h, w], a leaf that wants gradients."""
        maps = self.model.extract_feat(inputs)
        is_encoder = self.model.structural_feature == "encoder"
        found: Tensor = maps[-1] if is_encoder else self.model.panoptic_head.pixel_decoder(maps)[0]
        return found.float().detach().requires_grad_(True)


def compare(config_path: Path, cfg_options: Sequence[str], sam: LiveSamSettings, *, count: int) -> dict[str, Figures]:
    """Kind of view -> figures, each over at most ``count`` views.

    Raises:
        PipelineError: see :class:`Comparison`.
    """
    config = read_training_config(config_path, list(cfg_options))
    check(config, where=config_path)
    comparison = Comparison(config, sam)
    return {kind: comparison.figures(kind, count) for kind in VIEWS}


def main(arguments: Sequence[str] | None = None) -> None:
    """Compare, print, write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])  # type: ignore[union-attr]
    parser.add_argument("config", type=Path, help="of a teacher, with a store")
    parser.add_argument("--sam", default="scenes-nano", help="the store's")
    parser.add_argument("--features", choices=("decoder", "encoder"), default="decoder", help="the store's")
    parser.add_argument("--views", type=int, default=20, help="of each kind")
    parser.add_argument("--cfg-options", action="append", default=[], metavar="KEY=VALUE")
    parser.add_argument("--out", type=Path, help="JSON file")
    args = parser.parse_args(arguments)
    if args.views < 1:
        parser.error("--views must be 1 or more")
    try:
        sam = LiveSamSettings(args.sam, features=args.features, device="cpu")
        found = compare(args.config, args.cfg_options, sam, count=args.views)
    except PipelineError as error:
        sys.exit(str(error))
    for kind, figures in found.items():
        print(kind, json.dumps({name: round(value, 5) for name, value in asdict(figures).items()}))
    if args.out:
        machine = {key: value for key, value in provenance().items() if key != "command"}
        write_json({"provenance": machine, **{kind: asdict(each) for kind, each in found.items()}}, args.out)


if __name__ == "__main__":
    main()
