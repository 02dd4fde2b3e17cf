"""``convert-cityscapes``: Cityscapes' fine annotations become COCO files with RLE masks."""

import hashlib
import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jobs.progress import Progress
from pipeline.data.cityscapes import (
    THING_CLASSES,
    VOID_KEY,
    CityscapesFile,
    list_files,
    objects,
    read_ids,
    regions,
    void,
)
from pipeline.data.coco import write_json
from pipeline.errors import InputError

PARTS = ("train", "val")
_MADE_BY = "s4m-pipeline convert-cityscapes"


def run(root: Path, *, out: Path | None = None, parts: Sequence[str] = PARTS, overwrite: bool = False) -> None:
    """Do the command; see ``s4m-pipeline convert-cityscapes --help``.

    A file of the same ground truth is left alone, so that a run that was interrupted goes on with the next part.

    Args:
        root: Folder with ``leftImg8bit`` and ``gtFine``.
        out: Folder for ``train.json`` and ``val.json``; ``root/annotations`` by default. The images stay where they
            are: their root is ``root/leftImg8bit/<part>``.
        parts: Some of train, val.
        overwrite: Replace files of other ground truth.

    Raises:
        InputError: another layout, images without ground truth, ground truth that is not Cityscapes', or a file of
            other ground truth, or of no Cityscapes at all, in the way.
    """
    folder = out or root / "annotations"
    wrong = [part for part in parts if part not in PARTS]
    if wrong or not parts:
        raise InputError("no such part", where="--part", expected=" or ".join(PARTS), got=", ".join(wrong) or "none")
    if folder.is_file() or folder.suffix == ".json":
        raise InputError("a folder is wanted", where="--out", got=folder, fix=f"--out {folder.with_suffix('')}")
    listed = {part: list_files(root, part) for part in dict.fromkeys(parts)}
    # All is refused before anything is written.
    digests = {part: _digest(files, part) for part, files in listed.items()}
    done = [part for part, digest in digests.items() if _is_done(folder / f"{part}.json", digest, overwrite=overwrite)]
    for part, files in listed.items():
        file = folder / f"{part}.json"
        if part in done:
            print(f"{part}: all {len(files)} images are converted; {file}")
            continue
        content = _converted(files, part, digests[part])
        write_json(content, file)
        print("\n".join(_summary(content, part, file)), flush=True)


def _digest(files: Sequence[CityscapesFile], part: str) -> str:
    """sha256 over names and ground truth, byte for byte: seconds for all of Cityscapes."""
    digest = hashlib.sha256()
    with Progress(f"{part}: compared", len(files)) as progress:
        for file in files:
            digest.update(file.name.encode())
            digest.update(hashlib.sha256(file.truth.read_bytes()).digest())
            progress.advance()
    return digest.hexdigest()


def _is_done(file: Path, digest: str, *, overwrite: bool) -> bool:
    if not file.exists():
        return False
    try:
        content = json.loads(file.read_bytes())
        info = content["info"]
        is_ours, source = info["made_by"] == _MADE_BY, str(info["source_sha256"])
    except (OSError, ValueError, KeyError, TypeError):
        is_ours, source = False, ""
    if not is_ours:
        raise InputError(
            "a file is in the way that this command did not write",
            where=file,
            fix="choose another folder with --out, or move the file away",
        )
    if source != digest and not overwrite:
        raise InputError(
            "a conversion of other ground truth is there",
            where=file,
            expected=f"source {digest[:12]}",
            got=f"source {source[:12]}",
            fix="choose another folder with --out, or --overwrite",
        )
    return source == digest


def _converted(files: Sequence[CityscapesFile], part: str, digest: str) -> dict[str, Any]:
    """A COCO data set; ids of images and annotations count from 1, in the order of names and of instance ids."""
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    voids: list[dict[str, Any]] = []
    with Progress(f"{part}: converted", len(files)) as progress:
        for image_id, file in enumerate(files, start=1):
            ids = read_ids(file)
            found, size_hw = regions(ids), (ids.shape[0], ids.shape[1])
            images.append({"id": image_id, "file_name": file.name, "height": size_hw[0], "width": size_hw[1]})
            for entry in objects(found):
                annotations.append({"id": len(annotations) + 1, "image_id": image_id, **entry})
            ignored = void(found, size_hw)
            if ignored is not None:
                voids.append({"image_id": image_id, "segmentation": dict(ignored)})
            progress.advance()
    categories = [{"id": category.category_id, "name": category.name} for category in THING_CLASSES]
    return {
        "info": {"made_by": _MADE_BY, "part": part, "source_sha256": digest},
        "images": images,
        "annotations": annotations,
        "categories": categories,
        VOID_KEY: voids,
    }


def _summary(content: dict[str, Any], part: str, file: Path) -> list[str]:
    """Counts of images, and of the objects and groups of each class."""
    instances = Counter(entry["category_id"] for entry in content["annotations"] if not entry["iscrowd"])
    groups = Counter(entry["category_id"] for entry in content["annotations"] if entry["iscrowd"])
    with_objects = {entry["image_id"] for entry in content["annotations"] if not entry["iscrowd"]}
    lines = [f"{part}: {len(content['images'])} images, {len(with_objects)} with objects; {file}"]
    for category in THING_CLASSES:
        number, of = instances[category.category_id], groups[category.category_id]
        lines.append(f"  {category.name:10}  {number:6} objects, {of:5} groups")
    return lines
