"""How near our masks are to ``SAM2AutomaticMaskGenerator``'s, on the same weights and images; no image is left out.

    python -m jobs.measurements.parity --out docs/results/parity.json [--photos FOLDER ...] [--images N]

P0: both in float32: logits, predicted IoUs, order of the candidates, masks. P1: ours in bfloat16 against the stock
generator in float32, beside the stock generator in bfloat16 against itself in float32: the noise that half precision
makes anyway. P3: the bytes of every mask are what pycocotools makes of its pixels. P4: odd images.
"""

import argparse
import json
import resource
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from data_schemas.proposals import Proposal
from jobs.bench.generators import lenient_settings, random_backend, scene
from jobs.bench.stock_generator import our_codes, stock_codes, stock_generator, watched_scores
from jobs.provenance import provenance
from pipeline.images import read_image
from pipeline.masks import rle
from pipeline.sam.crops import crops_of
from pipeline.sam.generator_settings import GeneratorSettings
from pipeline.sam.sam2_backend import Sam2Backend, build_backend
from pipeline.sam.segment_everything import point_grid, segment_everything, stable_masks
from pipeline.scenes.cache import draw_by_index
from pipeline.scenes.render import SceneStyle

SEED = 7_400_000
SAME, GOOD, FAIR = 0.999, 0.9, 0.75
Image = NDArray[np.uint8]


@dataclass(frozen=True)
class Subject:
    """A SAM, settings for it, and images."""

    name: str
    backend: Sam2Backend
    settings: GeneratorSettings
    images: Sequence[Image]


def p0(subject: Subject) -> dict[str, Any]:
    """Both in float32, image by image; the worst of all images, and sums."""
    rows = [_p0_image(subject, image) for image in subject.images]
    masks = sum(row["masks"] for row in rows)
    return {
        "images": len(rows),
        "masks": masks,
        "images with another number of masks": sum(row["masks"] != row["stock_masks"] for row in rows),
        "same bytes, %": 100 * sum(row["same_bytes"] for row in rows) / max(1, masks),
        "IoU at least 0.999, %": 100 * sum(row["twins"] for row in rows) / max(1, masks),
        "largest difference of a logit": max(row["logit"] for row in rows),
        "largest difference of a predicted IoU": max(row["iou"] for row in rows),
        "images with the candidates in the same order": sum(row["same_order"] for row in rows),
    }


def _p0_image(subject: Subject, image: Image) -> dict[str, Any]:
    backend, settings = subject.backend, subject.settings
    ours = segment_everything(backend, image, settings)
    with watched_scores() as scores_seen:
        stock = stock_generator(backend.model, settings).generate(image)
    mine, theirs = our_codes(ours), stock_codes(stock)
    best = rle.pairwise_iou(mine, theirs).max(axis=1, initial=0.0) if mine else np.zeros(0)
    known = {code["counts"] for code in theirs}
    embedding = backend.embed([image])[0]
    points = point_grid(settings.points_per_side, image.shape[:2], backend.input_hw)
    kept = stable_masks(backend, embedding, points, crops_of(image.shape[:2], 0, 0.0)[0], settings)
    scores = torch.cat([candidates.predicted_iou for candidates, _ in kept]).cpu()
    return {
        "masks": len(mine),
        "stock_masks": len(theirs),
        "same_bytes": sum(code["counts"] in known for code in mine),
        "twins": int((best >= SAME).sum()),
        "same_order": _is_order(scores, scores_seen[0]),
        **_decoder_differences(backend, image, points[:: max(1, len(points) // 64)]),
    }


def _is_order(ours: torch.Tensor, stock: torch.Tensor) -> bool:
    """Whether our candidates are the stock one's in the same order; empty masks, which stock keeps, may be missing."""
    rest = iter(stock.tolist())
    return all(any(abs(score - other) < 1e-4 for other in rest) for score in ours.tolist())


def _decoder_differences(backend: Sam2Backend, image: Image, points: torch.Tensor) -> dict[str, float]:
    """Largest differences over some clicks before anything is filtered."""
    labels = torch.ones(len(points), 1, dtype=torch.int32)
    ours = backend.decode_points(backend.embed([image])[0], points[:, None], labels)
    predictor = stock_generator(backend.model, GeneratorSettings()).predictor
    predictor.set_image(image)
    xy = backend._to_model_xy(points, (image.shape[0], image.shape[1]))[:, None]
    with torch.no_grad():
        _, ious, logits = predictor._predict(xy, labels.to(xy.device), multimask_output=True, return_logits=True)
    # The stock predictor hands logits on cut at 32.
    return {
        "logit": float((ours.logits.clamp(-32, 32) - logits).abs().max()),
        "iou": float((ours.predicted_iou - ious).abs().max()),
    }


def p1(subject: Subject) -> dict[str, Any]:
    """Half precision: ours and the stock generator's, each against the stock generator's float32."""
    backend = subject.backend
    reference, ours, stock = [], [], []
    for image in subject.images:
        generator = stock_generator(backend.model, subject.settings)
        reference.append(stock_codes(generator.generate(image)))
        with torch.autocast(backend.device.type, dtype=torch.bfloat16):
            stock.append(stock_codes(generator.generate(image)))
        backend.precision = "bf16"  # on a CPU too, where nobody would run it, but rounding is the same
        try:
            ours.append(our_codes(segment_everything(backend, image, subject.settings)))
        finally:
            backend.precision = "fp32"
    mine, theirs = agreement(ours, reference), agreement(stock, reference)
    names = [name for name in mine if name != "mean difference of counts"]
    return {
        "images": len(reference),
        "ours in bf16": mine,
        "stock in bf16": theirs,
        "no worse by more than 0.5 points": all(mine[name] >= theirs[name] - 0.5 for name in names),
    }


def agreement(found: Sequence[Sequence[rle.Rle]], reference: Sequence[Sequence[rle.Rle]]) -> dict[str, float]:
    """Greedy one-to-one matching by IoU, over all images together; percent but for the last."""
    ious = [match(mine, theirs) for mine, theirs in zip(found, reference, strict=True)]
    pairs = np.concatenate(ious)
    num_found, num_reference = sum(map(len, found)), sum(map(len, reference))
    return {
        **{f"recall at {at}": 100 * float((pairs >= at).sum()) / max(1, num_reference) for at in (GOOD, FAIR)},
        **{f"precision at {at}": 100 * float((pairs >= at).sum()) / max(1, num_found) for at in (GOOD, FAIR)},
        "mean IoU of pairs": 100 * float(pairs.mean()) if len(pairs) else 0.0,
        "mean difference of counts": float(
            np.mean([abs(len(mine) - len(theirs)) for mine, theirs in zip(found, reference, strict=True)])
        ),
    }


def match(found: Sequence[rle.Rle], reference: Sequence[rle.Rle]) -> NDArray[np.float64]:
    """IoUs of pairs, the best first, no mask twice; pairs that share nothing are none."""
    table = rle.pairwise_iou(found, reference)
    pairs = []
    while table.size and table.max() > 0:
        row, column = np.unravel_index(table.argmax(), table.shape)
        pairs.append(table[row, column])
        table[row], table[:, column] = 0, 0
    return np.array(pairs)


def p3(subject: Subject) -> dict[str, int]:
    """Whether the code, area and box of every mask are those of its pixels."""
    wrong = checked = 0
    for image in subject.images:
        for each in segment_everything(subject.backend, image, subject.settings):
            checked += 1
            wrong += not _is_sound(each)
    return {"masks": checked, "wrong": wrong}


def _is_sound(each: Proposal) -> bool:
    mask = rle.decode(rle.of_proposal(each))
    code = rle.encode(mask)
    facts = code["counts"], int(mask.sum()), rle.bbox_xywh(code)
    return facts == (each.rle_counts, each.area, each.bbox_xywh)


def p4(subject: Subject) -> dict[str, Any]:
    """Odd images: how many masks, all sound, and the memory that the process ever took."""
    rng = np.random.default_rng(0)
    odd = {
        "blank": np.zeros((480, 640, 3), np.uint8),
        "grey": np.full((480, 640, 3), 127, np.uint8),
        "noise": rng.integers(0, 256, (480, 640, 3), np.uint8),
        "one row": rng.integers(0, 256, (1, 500, 3), np.uint8),
        "one column": rng.integers(0, 256, (500, 1, 3), np.uint8),
        "one pixel": rng.integers(0, 256, (1, 1, 3), np.uint8),
        "6000 x 4000": scene((4000, 6000)),
    }
    found = {}
    for name, image in odd.items():
        proposals = segment_everything(subject.backend, image, subject.settings)
        found[name] = {"masks": len(proposals), "sound": all(map(_is_sound, proposals))}
    return {**found, "peak memory, MB": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024}


def subjects(photos: Sequence[Path], num_images: int) -> list[Subject]:
    """What is compared: the embedded SAM on scenes and photos, SAM 2.1 tiny's geometry with random weights."""
    nano = build_backend("scenes-nano")
    lenient = GeneratorSettings(points_per_side=16, pred_iou_threshold=0.4, stability_score_threshold=0.5)
    scenes = [draw_by_index(i, group="benchmark", style=SceneStyle(), seed=SEED).image for i in range(num_images)]
    tiny = random_backend("sam2.1_hiera_tiny", device="cpu")
    small = scene((240, 320))
    tiny_settings = replace(lenient_settings(tiny, small, points_per_side=4), box_nms_threshold=0.9)
    found = [
        Subject("scenes-nano, scenes", nano, lenient, scenes),
        Subject("sam2.1_hiera_tiny with random weights, a scene", tiny, tiny_settings, [small]),
    ]
    for folder in photos:
        paths = sorted(path for path in folder.rglob("*") if path.suffix.lower() in (".jpg", ".png"))
        images = [read_image(path) for path in islice(paths, 0, None, max(1, len(paths) // num_images))][:num_images]
        found.append(Subject(f"scenes-nano, {folder.name}", nano, lenient, images))
    return found


def report(photos: Sequence[Path], num_images: int) -> dict[str, Any]:
    """Everything, by subject."""
    all_subjects = subjects(photos, num_images)
    first = all_subjects[0]
    found: dict[str, Any] = {"P0": {}, "P1": {}, "P3": {}}
    # First, because it says the memory that the process ever took.
    found["P4"] = {first.name: p4(first)}
    for subject in all_subjects:
        print(f"{subject.name}: {len(subject.images)} images", flush=True)
        found["P0"][subject.name] = p0(subject)
        found["P1"][subject.name] = p1(subject)
        found["P3"][subject.name] = p3(subject)
    about = {key: value for key, value in provenance().items() if key != "command"}
    return {**dict(sorted(found.items())), **about, "threads": torch.get_num_threads()}


def markdown(results: Mapping[str, Any]) -> str:
    """Tables for reading."""
    lines = ["# Parity with SAM2AutomaticMaskGenerator", "", "Made by `python -m jobs.measurements.parity`.", ""]
    for name, title in {
        "P0": "float32 against float32",
        "P3": "codes",
        "P1": "half precision",
        "P4": "odd images",
    }.items():
        lines += [f"## {name}: {title}", ""]
        for subject, values in results[name].items():
            lines += [f"**{subject}**", "", *[f"- {key}: {_told(value)}" for key, value in values.items()], ""]
    return "\n".join(lines)


def _told(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{key} {_told(each)}" for key, each in value.items())
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def main() -> None:
    """Compare, write JSON and, beside it, tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])  # type: ignore[union-attr]
    parser.add_argument("--out", type=Path, required=True, help="a .json file; tables go beside it as .md")
    parser.add_argument("--photos", type=Path, nargs="*", default=[], help="folders of images")
    parser.add_argument("--images", type=int, default=10, help="of each sort")
    args = parser.parse_args()
    results = report(args.photos, args.images)
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(json.dumps(results, indent=1) + "\n")
    args.out.with_suffix(".md").write_text(markdown(results))
    print(markdown(results))


if __name__ == "__main__":
    main()
