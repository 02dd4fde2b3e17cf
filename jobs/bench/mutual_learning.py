"""Benches of SemiRES' mutual learning: a step's proposals read and matched, and what part of a step that is.

The released way keeps one JSON file of foreground runs per referred object. Every step parses it, paints all masks in a
loop over runs, stretches them to the square of the network, widens them to 64 bits, and compares them one after the
other. That is rebuilt here from its description; both ways must give the same pseudo-labels.
"""

import pipeline.models.mmcv_ops  # noqa: F401  isort: skip  (must come before mmdet)
import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from itertools import cycle, islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mmdet.models.data_preprocessors.data_preprocessor import MultiBranchDataPreprocessor
from mmengine.optim import OptimWrapper
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from jobs.bench.cases import Case, Timing, blob, write_library
from jobs.bench.stock_generator import synchronise
from jobs.config_files import load_config
from pipeline.data.referring.sample import ReferSample
from pipeline.distill.self_similarity import View
from pipeline.masks import rle
from pipeline.models.referring.refer_labels import refer_label
from pipeline.models.referring.semi_refer import SemiReferStudent
from pipeline.refine.build import build_refiner
from pipeline.stores.proposal_store import ProposalStore

CONFIGS = Path(__file__).parents[2] / "configs/_base_"
BATCH = 3
"""Unlabelled images of a step, and as many labelled ones (SemiRES: 3 + 3 per GPU)."""
Label = tuple[NDArray[np.bool_], bool]
"""A pseudo-label [H, W] bool, and whether it comes from proposals."""
_SENTENCE = "the red star on the left"


def labels_against_released(
    scratch: Path, *, num_images: int = 12, proposals: int = 100, side: int = 480
) -> Iterator[Case]:
    """A step's pseudo-labels from the teacher's logits, by IOM and by CPI; every step has other images."""
    store = ProposalStore.open(
        write_library(scratch / "store", num_images=num_images, proposals_per_image=proposals, side=side)
    )
    files = [scratch / f"{image_id}.json" for image_id in range(num_images)]
    for image_id, file in enumerate(files):
        file.write_text(json.dumps(one_based_runs(store, image_id)))
    logits = [_teacher_logits(store, image_id, side) for image_id in range(num_images)]
    bytes_of = {"store": sum(f.stat().st_size for f in (scratch / "store").rglob("*.parquet")) // num_images}
    bytes_of["json"] = sum(file.stat().st_size for file in files) // num_images
    for name, rule in (("iom", released_iom), ("cpi", released_cpi)):
        mine, theirs = (cycle(range(num_images)) for _ in range(2))
        refiner = build_refiner(name, proposals=store)
        yield Case(
            ours=partial(_labels, mine, partial(_ours, logits, refiner, side)),
            other=partial(_labels, theirs, partial(_released, logits, files, rule, side)),
            other_name="JSON, all masks decoded, stretched, one by one",
            sizes={
                "rule": name,
                "images": BATCH,
                "proposals an image": proposals,
                "image": f"{side} x {side}",
                "bytes an image": f"{bytes_of['store']} / {bytes_of['json']}",
            },
            check=_same_labels,
        )


def _labels(turns: Iterator[int], label: Callable[[int], Label]) -> list[Label]:
    return [label(image_id) for image_id in islice(turns, BATCH)]


def _ours(logits: Sequence[Tensor], refiner: Any, side: int, image_id: int) -> Label:
    view = View(torch.eye(3), (side, side), (side, side), (side, side))
    rng = np.random.default_rng(0)
    label = refer_label(logits[image_id], view, refiner=refiner, image_id=image_id, image=None, rng=rng)
    return label.mask, label.outcome == "matched"


def _released(
    logits: Sequence[Tensor],
    files: Sequence[Path],
    rule: Callable[[Tensor, Tensor], Tensor | None],
    side: int,
    image_id: int,
) -> Label:
    masks = released_masks(json.loads(files[image_id].read_text()), side)
    own = (logits[image_id].sigmoid() > 0.5).long()
    found = rule(own, masks)
    return (own if found is None else found).bool().numpy(), found is not None


def _same_labels(mine: Sequence[Label], theirs: Sequence[Label]) -> None:
    for (mask, matched), (other, other_matched) in zip(mine, theirs, strict=True):
        assert matched == other_matched
        np.testing.assert_array_equal(mask, other)


def _teacher_logits(store: ProposalStore, image_id: int, side: int) -> Tensor:
    """What a teacher might say: something like a proposal, a little moved, or something else."""
    rng = np.random.default_rng([3, image_id])
    if rng.random() < 0.25:
        mask = blob(rng, side, side)
    else:
        library = store.read_masks(image_id)
        mask = np.roll(library.union(np.array([rng.integers(len(library))])), side // 60, axis=1)
    return torch.from_numpy(np.where(mask, np.float32(2), np.float32(-2)))


def one_based_runs(store: ProposalStore, image_id: int) -> list[dict[str, list[int]]]:
    """An image's proposals in the released form: flat pairs of a run's start, counted from 1, and its length."""
    library = store.read_masks(image_id)
    entries = []
    for code in library.rles(np.arange(len(library))):
        runs = rle.runs(code)
        pairs = np.stack([runs[:, 0] + 1, runs[:, 1] - runs[:, 0]], axis=1)
        entries.append({"counts": pairs.reshape(-1).tolist(), "size": list(library.size_hw)})
    return entries


def released_masks(entries: Sequence[Mapping[str, list[int]]], side: int) -> Tensor:
    """All masks of such a file, stretched to a square: [K, side, side] int64."""
    height, width = entries[0]["size"]
    masks = np.zeros((len(entries), height, width), np.uint8)
    for mask, entry in zip(masks, entries, strict=True):
        flat, counts = np.zeros(height * width, np.uint8), entry["counts"]
        for start, length in zip(counts[0::2], counts[1::2], strict=True):
            flat[start - 1 : start - 1 + length] = 1
        mask[:] = flat.reshape(width, height).T
    stretched = functional.interpolate(torch.from_numpy(masks)[None], size=(side, side), mode="nearest")[0]
    return stretched.long()


def released_iom(own: Tensor, masks: Tensor) -> Tensor | None:
    """The best proposal above an IoU of 0.5, mask by mask; None where there is none."""
    best, found = 0.5, None
    for mask in masks:
        shared = (own * mask).sum()
        iou = float(shared / (own.sum() + mask.sum() - shared))
        if iou > best:
            best, found = iou, mask
    return found


def released_cpi(own: Tensor, masks: Tensor) -> Tensor | None:
    """The union of proposals that contain, or lie in, 0.7 of the other; mask by mask; None where there is none."""
    union = torch.zeros_like(own)
    for mask in masks:
        shared = (own * mask).sum()
        if float(shared / (own.sum() + 1e-9)) > 0.7 or float(shared / mask.sum()) > 0.7:
            union = ((union + mask) > 0).long()
    return union if bool(union.any()) else None


def share_of_step(scratch: Path, *, rounds: int = 15) -> Iterator[Case]:
    """What reading and matching take of a step of the small LAVT; on a GPU also of the paper's, at 480 pixels."""
    yield _share(scratch / "small", "lavt_scenes", side=192, proposals=30, rounds=rounds, device="cpu")
    if torch.cuda.is_available():
        yield _share(scratch / "large", "lavt_swin_b", side=480, proposals=100, rounds=rounds, device="cuda")


def _share(scratch: Path, config: str, *, side: int, proposals: int, rounds: int, device: str) -> Case:
    num_images = 2 * BATCH
    write_library(scratch / "store", num_images=num_images, proposals_per_image=proposals, side=side)
    model = _student(config, scratch / "store").to(device).train()
    wrapper = OptimWrapper(torch.optim.AdamW(model.student.parameters(), lr=1e-5))
    labels, steps = [], []
    inner = model.refined_labels

    def timed(*args: Any) -> Any:
        synchronise()
        started = time.perf_counter()
        found = inner(*args)
        labels.append(time.perf_counter() - started)
        return found

    model.refined_labels = timed  # type: ignore[method-assign]
    batch = _batch(side)
    for _ in range(rounds + 1):
        synchronise()
        started = time.perf_counter()
        model.train_step(batch, wrapper)
        synchronise()
        steps.append(time.perf_counter() - started)
    return Case(
        ours=lambda: None,
        other=lambda: None,
        other_name="the whole step",
        sizes={"network": config, "device": device, "images": f"{BATCH} + {BATCH}", "image": f"{side} x {side}"}
        | {"proposals an image": proposals},
        check=lambda _mine, _theirs: None,
        timing=Timing(labels[1:], steps[1:]),  # the first step warms up
    )


def _student(config: str, store: Path) -> SemiReferStudent:
    segmentor = load_config(CONFIGS / f"{config}.py").model
    preprocessor = segmentor.pop("data_preprocessor")
    # No weights are fetched: how long a step takes does not depend on them. A small BERT makes it shorter, if anything.
    segmentor.network.text_encoder.name = "tiny-bert"
    segmentor.network.text_encoder.train_layers = "all"
    if segmentor.network.decoder.norm_cfg.type == "SyncBN":
        segmentor.network.decoder.norm_cfg.type = "BN"
    return SemiReferStudent(
        segmentor=segmentor,
        data_preprocessor={"type": MultiBranchDataPreprocessor, "data_preprocessor": preprocessor},
        refiner={"name": "cpi", "store": str(store)},
    )


def _batch(side: int) -> dict[str, Any]:
    """Noise as images; image ids are the store's."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (2 * BATCH, 3, side, side), dtype=torch.uint8, generator=generator)
    samples = []
    for image_id in range(2 * BATCH):
        about = {"img_id": image_id, "img_path": "", "sentence": _SENTENCE, "has_target": True}
        shape = {"ori_shape": (side, side), "img_shape": (side, side), "homography_matrix": np.eye(3, dtype=np.float32)}
        sample = ReferSample(metainfo=about | shape)
        if image_id < BATCH:
            sample.gt_mask = torch.from_numpy(blob(np.random.default_rng(image_id), side, side))
        samples.append(sample)
    return {
        "inputs": {"sup": list(images[:BATCH]), "unsup": list(images[BATCH:])},
        "data_samples": {"sup": samples[:BATCH], "unsup": samples[BATCH:]},
    }


BENCHES: dict[str, Callable[[Path], Iterator[Case]]] = {
    "refer_labels": labels_against_released,
    "refer_labels_share": share_of_step,
}
