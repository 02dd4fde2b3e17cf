"""``export-proposals``: a proposal library for tools that read COCO results or SA-1B."""

import json
import os
import shutil
import uuid
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO

from data_schemas.manifest import ImageKey
from data_schemas.proposals import Proposal
from jobs.exchange.formats import Format, coco_entry, sa1b_document
from jobs.progress import Progress
from pipeline.errors import InputError
from pipeline.images import resolve_inside
from pipeline.stores.index import StoreIndex
from pipeline.stores.proposal_store import ProposalStore


def run(store: str, out: Path, *, format: Format, category_id: int = 1, overwrite: bool = False) -> None:
    """Do the command; see ``s4m-pipeline export-proposals --help``.

    Args:
        store: Local folder or address of a finished library.
        out: The JSON file, or for ``sa1b`` the folder; it is there complete or not at all.
        format: Which form.
        category_id: What every mask of COCO results is said to be.
        overwrite: Replace what is there; a folder only if nothing but JSON files is in it.

    Raises:
        InputError: No library, an unfinished one, or ``out`` is in the way.
        StoreDamagedError: A file of the library is damaged.
    """
    listed = StoreIndex.open(store, "proposals").images
    planned = listed.between(0, len(listed))
    library = ProposalStore.open(store)
    ids, set_aside = set(library.image_ids()), library.quarantined()
    images = sorted((image for image in planned if image.image_id in ids), key=lambda image: image.image_id)
    if len(images) + len(set_aside) < len(planned):
        raise InputError(
            "the library is not finished",
            where=store,
            expected=f"{len(planned)} images",
            got=f"{len(images)} done, {len(set_aside)} set aside",
            fix="run the command that makes it again; it goes on where it was interrupted",
        )
    _refuse_in_the_way(out, format, overwrite=overwrite)
    with Progress("exported", len(images)) as progress:
        rows = _rows(library, images, progress)
        is_list = format == "coco-results"
        num = _write_results(rows, out, category_id) if is_list else _write_folder(rows, out, images)
    print(f"{num} masks of {len(images)} images; {out}")
    if set_aside:
        print(f"note: {len(set_aside)} images had been set aside and are not in it")


def _rows(
    library: ProposalStore, images: Sequence[ImageKey], progress: Progress
) -> Iterator[tuple[ImageKey, list[Proposal]]]:
    for image in images:
        yield image, library.read(image.image_id)
        progress.advance()


def _refuse_in_the_way(out: Path, format: Format, *, overwrite: bool) -> None:
    if not out.exists() or (format == "sa1b" and out.is_dir() and not any(out.iterdir())):
        return
    if out.is_dir() != (format == "sa1b"):
        expected = "a folder" if format == "sa1b" else "a file"
        raise InputError(f"{format} is written into {expected}", where=out, got="the other", fix="name another place")
    if not overwrite:
        raise InputError("this would be overwritten", where=out, fix="--overwrite, or name another place")
    others = [path for path in out.rglob("*") if path.is_file() and path.suffix != ".json"] if out.is_dir() else []
    if others:
        raise InputError(
            "a folder with other files in it is not overwritten",
            where=out,
            expected="JSON files only",
            got=", ".join(path.name for path in others[:3]),
            fix="name another folder",
        )


def _write_results(rows: Iterator[tuple[ImageKey, list[Proposal]]], out: Path, category_id: int) -> int:
    """One entry a line; returns how many."""
    num = 0
    out.parent.mkdir(parents=True, exist_ok=True)
    with _partial(out) as partial:
        with partial.open("w", encoding="utf-8") as file:
            file.write("[")
            for image, proposals in rows:
                for proposal in proposals:
                    file.write(",\n" if num else "\n")
                    _dump(coco_entry(image.image_id, proposal, category_id), file)
                    num += 1
            file.write("\n]\n")
            _flush(file)
        partial.replace(out)
    return num


def _write_folder(rows: Iterator[tuple[ImageKey, list[Proposal]]], out: Path, images: Sequence[ImageKey]) -> int:
    """One file for each image, named as the image; returns the number of masks."""
    num, names = 0, _file_names(images)
    out.parent.mkdir(parents=True, exist_ok=True)
    with _partial(out) as partial:
        partial.mkdir()
        for image, proposals in rows:
            path = resolve_inside(partial, names[image.image_id])
            path.parent.mkdir(parents=True, exist_ok=True)
            with path.open("w", encoding="utf-8") as file:
                _dump(sa1b_document(image, proposals, first_id=num + 1), file)
                file.write("\n")
                _flush(file)
            num += len(proposals)
        if out.exists():
            with _partial(out) as old:
                out.rename(old)
                partial.rename(out)
        else:
            partial.rename(out)
    return num


def _file_names(images: Sequence[ImageKey]) -> dict[int, str]:
    """Image id -> ``folder/name.json`` for ``folder/name.jpg``; the whole name stays where two would share one."""
    short = {image.image_id: str(Path(image.file_name).with_suffix(".json")) for image in images}
    counts: dict[str, int] = {}
    for name in short.values():
        counts[name] = counts.get(name, 0) + 1
    names = {
        image.image_id: short[image.image_id] if counts[short[image.image_id]] == 1 else f"{image.file_name}.json"
        for image in images
    }
    # x.jpg, x.png and x.jpg.jpg: the id tells apart what the names do not.
    taken = Counter(names.values())
    return {
        image_id: name if taken[name] == 1 else f"{name.removesuffix('.json')}.{image_id}.json"
        for image_id, name in names.items()
    }


@contextmanager
def _partial(out: Path) -> Iterator[Path]:
    """A name beside ``out``, of which nothing is left afterwards."""
    partial = out.with_name(f"{out.name}.{uuid.uuid4().hex}.partial")
    try:
        yield partial
    finally:
        if partial.is_dir():
            shutil.rmtree(partial)
        else:
            partial.unlink(missing_ok=True)


def _dump(values: object, file: TextIO) -> None:
    json.dump(values, file, separators=(",", ":"), allow_nan=False)


def _flush(file: TextIO) -> None:
    file.flush()
    os.fsync(file.fileno())
