"""Look at a proposal library: ``python -m jobs.look_at_store STORE --images FILE --image-root DIR --out FILE.png``.

Draws a few images beside the outlines of their proposals, and beside the annotated instances where there are any;
says how many instances the library covers.
"""

import argparse
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from data_schemas.proposals import Proposal
from jobs.config_files import load_config
from pipeline.data.coco import CocoImage, CocoSet, load_coco, load_images
from pipeline.errors import InputError, PipelineError
from pipeline.evaluation.library_recall import LibraryRecall, library_recall
from pipeline.images import read_image
from pipeline.masks import rle
from pipeline.scenes.contact_sheet import OUTLINE_COLOURS, draw_outlines
from pipeline.stores.proposal_store import ProposalStore

Pixels = NDArray[np.uint8]
_GAP = 6


def main() -> None:
    """Parse the command line, print the figures, write the picture."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("store", help="folder or address of a finished store")
    parser.add_argument("--images", type=Path, help="COCO file, or a plain folder of images")
    parser.add_argument("--image-root", type=Path)
    parser.add_argument("--config", type=Path, help="a config of configs/sam instead of --images and --image-root")
    parser.add_argument("--cfg-options", action="append", default=[], metavar="KEY=VALUE", help="of that config")
    parser.add_argument("--out", type=Path, required=True, help="PNG to write")
    parser.add_argument("--num", type=int, default=4, help="images to draw, spread over the set")
    parser.add_argument("--height", type=int, default=320, help="of a drawn image in pixels")
    args = parser.parse_args()
    if args.config:
        config = load_config(args.config, args.cfg_options)
        args.images, args.image_root = Path(config.images), Path(config.image_root)
    if args.images is None:
        parser.error("name the images: --images FILE --image-root DIR, or --config FILE")
    try:
        print(look(args.store, args.images, args.image_root, args.out, num=args.num, height=args.height))
    except PipelineError as error:
        parser.exit(error.exit_code, f"error: {error}\n")


def look(store_uri: str, images: Path, image_root: Path | None, out: Path, *, num: int, height: int) -> str:
    """Draw ``num`` images and measure all of them.

    Args:
        store_uri: A store with a proposal library.
        images: COCO file or folder; the images of the store or more.
        image_root: Folder of the images; a folder given as ``images`` by default.
        out: PNG to write.
        num: Images to draw, spread over the set.
        height: Of a drawn image in pixels.

    Returns:
        A few lines about the whole library.

    Raises:
        PipelineError: no such store, images that are missing or not in it.
    """
    library = ProposalStore.open(store_uri)
    root = image_root or images
    coco = load_images(images, root) if images.is_dir() else load_coco(images, root)
    stored = set(library.image_ids())
    shown = [image for image in coco.images if image.image_id in stored]
    if not shown:
        raise InputError("the store has none of these images", where=store_uri, got=f"{len(coco.images)} others")
    chosen = [shown[i] for i in np.linspace(0, len(shown) - 1, min(num, len(shown))).round().astype(int)]
    out.parent.mkdir(parents=True, exist_ok=True)
    cv2.imwrite(str(out), _stacked([_row(coco, image, library.read(image.image_id), height) for image in chosen]))
    recall, total = LibraryRecall((), ()), 0
    for image in shown:
        proposals = library.read(image.image_id)
        total += len(proposals)
        truth = [entry.rle for entry in coco.annotations[image.image_id] if not entry.iscrowd]
        recall += library_recall(truth, [rle.of_proposal(proposal) for proposal in proposals])
    lines = [f"{len(shown)} images, {total} proposals, {total / len(shown):.1f} an image"]
    if recall.best_of_instances:
        lines.append(
            f"{len(recall.best_of_instances)} instances: recall {recall.at(0.5):.3f} at IoU 0.5, {recall.at(0.75):.3f} "
            f"at 0.75; {recall.proposals_on_objects or 0.0:.0%} of the proposals lie on an instance (IoU over 0.5)"
        )
    return "\n".join([*lines, f"picture: {out}"])


def _row(coco: CocoSet, image: CocoImage, proposals: list[Proposal], height: int) -> Pixels:
    """BGR: the image, its instances if the set knows any, its proposals (the smallest on top)."""
    pixels = read_image(coco.path_of(image))
    truth = [entry.rle for entry in coco.annotations[image.image_id] if not entry.iscrowd]
    by_area = [rle.of_proposal(p) for p in sorted(proposals, key=lambda p: -p.area)]
    columns = [
        pixels,
        *([_outlined(pixels, truth, height)] if any(coco.annotations.values()) else []),
        _outlined(pixels, by_area, height),
    ]
    tiles = [_resized(column, height) for column in columns]
    gap = np.zeros((height, _GAP, 3), np.uint8)
    return np.concatenate([part for tile in tiles for part in (tile, gap)], axis=1)[..., ::-1]


def _outlined(pixels: Pixels, masks: list[rle.Rle], height: int) -> Pixels:
    """Outlines drawn at the size of the picture, so that their width is one pixel of it."""
    small = _resized(pixels, height)
    size = (small.shape[1], small.shape[0])
    scaled = [cv2.resize(rle.decode(m).astype(np.uint8), size, interpolation=cv2.INTER_AREA) > 0 for m in masks]
    dense = np.stack(scaled) if scaled else np.zeros((0, *small.shape[:2]), bool)
    return draw_outlines(small, dense, [OUTLINE_COLOURS[i % len(OUTLINE_COLOURS)] for i in range(len(dense))])


def _resized(pixels: Pixels, height: int) -> Pixels:
    width = max(1, round(pixels.shape[1] * height / pixels.shape[0]))
    smaller = height < pixels.shape[0]
    resized = cv2.resize(pixels, (width, height), interpolation=cv2.INTER_AREA if smaller else cv2.INTER_NEAREST)
    return np.asarray(resized, np.uint8)


def _stacked(rows: list[Pixels]) -> Pixels:
    width = max(row.shape[1] for row in rows)
    padded = [np.pad(row, ((0, _GAP), (0, width - row.shape[1]), (0, 0))) for row in rows]
    return np.concatenate(padded)


if __name__ == "__main__":
    main()
