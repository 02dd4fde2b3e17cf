"""The demo's picture: what the refiners make of the teacher's masks on a few unlabelled scenes."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from data_schemas.manifest import ShardRecord
from data_schemas.pseudo_labels import PseudoLabel
from pipeline.data.coco import CocoImage, CocoSet
from pipeline.images import read_image
from pipeline.masks import rle
from pipeline.scenes.contact_sheet import OUTLINE_COLOURS, draw_outlines
from pipeline.stores.files import open_files
from pipeline.stores.pseudo_label_store import read_pseudo_labels
from pipeline.stores.shards import read_manifest, read_records

Pixels = NDArray[np.uint8]
_HEADER, _GAP, _SCALE = 22, 4, 1


def read_labels(folder: Path) -> dict[int, list[PseudoLabel]]:
    """Rows of a finished pseudo-label run by image id."""
    files = open_files(folder)
    manifest = read_manifest(files)
    records = read_records(files, manifest.parts["pseudo_labels"].shard_ids if manifest else ())
    labels: dict[int, list[PseudoLabel]] = {}
    for label in read_pseudo_labels(files, [record for record in records.values() if isinstance(record, ShardRecord)]):
        labels.setdefault(label.image_id, []).append(label)
    return labels


def draw_refinement(coco: CocoSet, image_ids: Sequence[int], runs: Mapping[str, Path], path: Path) -> None:
    """Write a grid: one scene a row; ground truth, the teacher's masks, then each refiner's.

    Args:
        coco: The scenes with their ground truth.
        image_ids: Which ones.
        runs: Refiner's name -> folder of its pseudo-label run over at least these scenes.
        path: PNG to write.
    """
    labels = {name: read_labels(folder) for name, folder in runs.items()}
    first = next(iter(labels.values()))
    rows = [_titles(["ground truth", "teacher", *labels], coco.by_id[image_ids[0]].width)]
    for image_id in image_ids:
        image = coco.by_id[image_id]
        pixels = read_image(coco.path_of(image))
        truth = [(annotation.rle, annotation.category_id) for annotation in coco.annotations[image_id]]
        teacher = [(_mask(label.network_rle, image), label.category_id) for label in first.get(image_id, [])]
        refined = [
            [(_mask(label.refined_rle, image), label.category_id) for label in found.get(image_id, [])]
            for found in labels.values()
        ]
        columns = [truth, teacher, *refined]
        rows.append(_joined([_tile(pixels, column) for column in columns]))
    path.parent.mkdir(parents=True, exist_ok=True)
    cv2.imwrite(str(path), np.concatenate(rows)[..., ::-1])


def _mask(counts: str, image: CocoImage) -> rle.Rle:
    return {"size": [image.height, image.width], "counts": counts}


def _tile(pixels: Pixels, objects: Sequence[tuple[rle.Rle, int]]) -> Pixels:
    masks = np.stack([rle.decode(mask) for mask, _ in objects]) if objects else np.zeros((0, *pixels.shape[:2]), bool)
    colours = [OUTLINE_COLOURS[(category - 1) % len(OUTLINE_COLOURS)] for _, category in objects]
    return draw_outlines(pixels, masks, colours, scale=_SCALE)


def _joined(tiles: Sequence[Pixels]) -> Pixels:
    gap = np.zeros((tiles[0].shape[0], _GAP, 3), np.uint8)
    row = np.concatenate([part for tile in tiles for part in (tile, gap)], axis=1)
    return np.concatenate([row, np.zeros((_GAP, row.shape[1], 3), np.uint8)])


def _titles(names: Sequence[str], width: int) -> Pixels:
    canvas = np.zeros((_HEADER, len(names) * (width * _SCALE + _GAP), 3), np.uint8)
    for column, name in enumerate(names):
        at = (column * (width * _SCALE + _GAP) + 4, _HEADER - 7)
        cv2.putText(canvas, name, at, cv2.FONT_HERSHEY_SIMPLEX, 0.45, (230, 230, 230), 1, cv2.LINE_AA)
    return canvas
