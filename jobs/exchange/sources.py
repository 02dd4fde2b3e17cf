"""What ``import-proposals`` reads: checked whole, once, before a store is written, and then read image by image.

Neither source is ever in memory as a whole: a COCO results list is kept as the places of its entries in the file (24
bytes each), an SA-1B folder as the names of its files.
"""

import hashlib
import json
from abc import ABC, abstractmethod
from array import array
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path, PurePosixPath

import numpy as np

from data_schemas.manifest import ImageKey
from data_schemas.proposals import Proposal
from jobs.exchange.formats import Format, Tally, read_proposal, repeated
from jobs.exchange.json_stream import item_at, items
from pipeline.data.coco_entries import is_id
from pipeline.data.coco_problems import MAX_TOLD, Problems
from pipeline.errors import AnnotationError, InputError
from pipeline.stores.proposal_pages import MAX_ROWS

Told = Callable[[int], None]
"""Is given the bytes that were read since it was last called."""
_SA1B = "{image: {file_name, height, width}, annotations: [...]}"
_AMG = "with SAM 1: python scripts/amg.py --convert-to-rle ..., and its --output here"
_MOST_PROBLEMS = 1000
"""After so many the rest of a file is not looked at."""


class Source(ABC):
    """Masks of images, from somewhere else."""

    form: Format

    def __init__(self, path: Path, images: Sequence[ImageKey]) -> None:
        """Nothing is read yet."""
        self.path, self.images, self.tally = path, images, Tally()

    @property
    @abstractmethod
    def num_bytes(self) -> int:
        """Of all that will be read."""

    @abstractmethod
    def sha256(self) -> str:
        """Digest of everything in it."""

    @abstractmethod
    def check(self, told: Told) -> None:
        """Look at every mask and fill ``tally``; must come before :meth:`read`.

        Raises:
            AnnotationError: All problems, the first 20 of them told.
            InputError: Masks of images that are not among ``images``, or more of one image than a library holds.
        """

    @abstractmethod
    def read(self, image: ImageKey) -> list[Proposal]:
        """The masks of one image, in the order of the source; none is legal."""

    def refuse_unknown(self, names: set[str]) -> None:
        """Raise InputError where there are any."""
        if names:
            told = ", ".join(sorted(names, key=lambda name: (len(name), name))[:MAX_TOLD])
            raise InputError(
                "masks of images that the set does not have",
                where=self.path,
                expected=f"{'image ids' if self.form == 'coco-results' else 'file names'} of the "
                f"{len(self.images)} images of --images",
                got=f"{told}{' ...' if len(names) > MAX_TOLD else ''} ({len(names)} in all)",
                fix="give --images the set that these masks were made for",
            )

    def refuse_too_many(self, counts: Mapping[str, int]) -> None:
        """Raise InputError where an image, by its name for the user, has more masks than a library holds."""
        over = {name: count for name, count in counts.items() if count > MAX_ROWS}
        if over:
            told = ", ".join(f"{name}: {count}" for name, count in list(over.items())[:MAX_TOLD])
            raise InputError(
                "more masks of one image than a library holds",
                where=self.path,
                expected=f"at most {MAX_ROWS} of an image",
                got=f"{told}{' ...' if len(over) > MAX_TOLD else ''} ({len(over)} images in all)",
                fix="keep the best of these images in the source, then run the same command again",
            )


class CocoResults(Source):
    """A JSON list of {image_id, category_id, segmentation, score}, in any order of images."""

    form = "coco-results"

    def __init__(self, path: Path, images: Sequence[ImageKey]) -> None:
        """See the base class."""
        super().__init__(path, images)
        self._ids, self._starts, self._ends = array("q"), array("q"), array("q")
        self._order = np.zeros(0, np.int64)

    @property
    def num_bytes(self) -> int:
        """See the base class."""
        return self.path.stat().st_size

    def sha256(self) -> str:
        """See the base class."""
        with self.path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()

    def check(self, told: Told) -> None:
        """See the base class."""
        by_id = {image.image_id: image for image in self.images}
        problems, unknown, hashes, end = Problems(self.path), set[str](), array("q"), 0
        for item in items(self.path):
            where = f"result {item.place}"
            told(item.end - end)
            end = item.end
            image_id = item.value.get("image_id")
            image = by_id.get(image_id) if isinstance(image_id, int) and is_id(image_id) else None
            if image is None:
                unknown.add(repr(image_id))
                continue
            try:
                proposal = read_proposal(item.value, image, self.form, where=where, tally=self.tally)
            except AnnotationError as error:
                problems.add_error(error, where)
                if len(problems.found) >= _MOST_PROBLEMS:
                    break
                continue
            if proposal is not None:
                hashes.append(hash((image.image_id, proposal)))
                self._ids.append(image.image_id)
                self._starts.append(item.start)
                self._ends.append(item.end)
        problems.raise_if_any()
        self.refuse_unknown(unknown)
        images, counts = np.unique(np.asarray(self._ids), return_counts=True)
        self.refuse_too_many({f"image {i}": n for i, n in zip(images.tolist(), counts.tolist(), strict=True)})
        self._order = np.argsort(np.asarray(self._ids), kind="stable")
        self._refuse_repeated(hashes)

    def read(self, image: ImageKey) -> list[Proposal]:
        """See the base class."""
        ids = np.asarray(self._ids)
        first = np.searchsorted(ids, image.image_id, "left", self._order)
        last = np.searchsorted(ids, image.image_id, "right", self._order)
        found = []
        for place in self._order[first:last]:
            values = item_at(self.path, self._starts[place], self._ends[place])
            proposal = read_proposal(values, image, self.form, where=str(self.path), tally=Tally())
            assert proposal is not None  # entries without a pixel were not noted
            found.append(proposal)
        return found

    def _refuse_repeated(self, hashes: Sequence[int]) -> None:
        _, firsts, counts = np.unique(np.asarray(hashes, np.int64), return_index=True, return_counts=True)
        by_id = {image.image_id: image for image in self.images}
        for first in firsts[counts > 1]:
            # Equal hashes of unequal masks are next to impossible, but would be the user's loss.
            twice = repeated(self.read(by_id[self._ids[first]]))
            if twice is not None:
                raise _repeated(self.path, f"image {self._ids[first]}", twice)


class Sa1bFolder(Source):
    """JSON files, one for each image: {image: {file_name, height, width}, annotations: [...]}, or the list alone.

    Images are told by ``file_name``: the ids of SA-1B are its own. A list alone, as SAM 1's ``amg.py`` writes it, is of
    the image that its file is named after.
    """

    form = "sa1b"

    def __init__(self, path: Path, images: Sequence[ImageKey]) -> None:
        """See the base class; lists the folder."""
        super().__init__(path, images)
        self._files = sorted(file for file in path.rglob("*.json") if file.is_file())
        if not self._files:
            expected = "JSON files, one for each image"
            raise InputError("no masks here", where=path, expected=expected, got="none", fix=_AMG)
        self._file_of: dict[int, Path] = {}
        self._by_stem = _by_stem(images)

    @property
    def num_bytes(self) -> int:
        """See the base class."""
        return sum(file.stat().st_size for file in self._files)

    def sha256(self) -> str:
        """See the base class."""
        digest = hashlib.sha256()
        for file in self._files:
            digest.update(f"{file.relative_to(self.path).as_posix()}\0".encode())
            digest.update(hashlib.sha256(file.read_bytes()).digest())
        return digest.hexdigest()

    def check(self, told: Told) -> None:
        """See the base class."""
        by_name = {image.file_name: image for image in self.images}
        problems, unknown, counts = Problems(self.path), set[str](), dict[str, int]()
        for file in self._files:
            told(file.stat().st_size)
            entry = file.relative_to(self.path).as_posix()
            try:
                about, annotations = _read_document(file)
                image = self._named_like(file) if about is None else by_name.get(str(about.get("file_name")))
                if image is None:
                    unknown.add(repr((about or {}).get("file_name")))
                    continue
                self._check_image(image, about)
                self._file_of[image.image_id] = file
                found = self._proposals(annotations, image, entry, self.tally)
                counts[entry] = len(found)
            except AnnotationError as error:
                problems.add_error(error, str(error.where or entry))
                if len(problems.found) >= _MOST_PROBLEMS:
                    break
                continue
            twice = repeated(found)
            if twice is not None:
                raise _repeated(self.path, entry, twice)
        problems.raise_if_any()
        self.refuse_unknown(unknown)
        self.refuse_too_many(counts)

    def read(self, image: ImageKey) -> list[Proposal]:
        """See the base class."""
        file = self._file_of.get(image.image_id)
        if file is None:
            return []
        return self._proposals(_read_document(file)[1], image, str(file), Tally())

    def _named_like(self, file: Path) -> ImageKey:
        """The image that a list of masks is of; an AnnotationError where none is, or several may be."""
        whole = file.relative_to(self.path).with_suffix("").as_posix()
        found = self._by_stem.get(whole) or self._by_stem.get(file.stem, [])
        if len(found) == 1:
            return found[0]
        raise AnnotationError(
            "a list of masks, not clear of which image" if found else "not a file of SA-1B, nor named after an image",
            expected=f"{_SA1B}, or a list in IMAGE.json for one of the {len(self.images)} images of --images",
            got=f"{file.name} for {' and '.join(image.file_name for image in found[:5])}" if found else file.name,
        )

    def _check_image(self, image: ImageKey, about: Mapping[str, object] | None) -> None:
        # Of a list alone the masks know the size.
        size = [image.height, image.width] if about is None else [about.get("height"), about.get("width")]
        if size != [image.height, image.width]:
            expected = f"{image.height} x {image.width}"
            raise AnnotationError("the image has another size", expected=expected, got=f"{size[0]} x {size[1]}")
        if image.image_id in self._file_of:
            other = self._file_of[image.image_id].relative_to(self.path).as_posix()
            raise AnnotationError("a second file of one image", expected=f"one for {image.file_name}", got=other)

    def _proposals(
        self, annotations: Sequence[Mapping[str, object]], image: ImageKey, entry: str, tally: Tally
    ) -> list[Proposal]:
        ids = [values["id"] for values in annotations if "id" in values]
        if len(set(map(repr, ids))) < len(ids):
            raise AnnotationError("an annotation id is given twice", got=ids[:5])
        read = [
            read_proposal(values, image, self.form, where=f"{entry}, annotation {place}", tally=tally)
            for place, values in enumerate(annotations)
        ]
        return [proposal for proposal in read if proposal is not None]


def open_source(path: Path, images: Sequence[ImageKey]) -> Source:
    """A folder is in SA-1B's form or SAM 1's, a file a COCO results list.

    Raises:
        InputError: Neither.
    """
    if path.is_dir():
        return Sa1bFolder(path, images)
    if path.is_file():
        return CocoResults(path, images)
    expected = "a COCO results file, or a folder of JSON files"
    raise InputError("no masks to import", where=path, expected=expected, got="none", fix=_AMG)


def _by_stem(images: Sequence[ImageKey]) -> dict[str, list[ImageKey]]:
    """Images by name without its ending, and by that without its folders."""
    found: dict[str, list[ImageKey]] = {}
    for image in images:
        whole = PurePosixPath(image.file_name).with_suffix("")
        for name in {whole.as_posix(), whole.name}:
            found.setdefault(name, []).append(image)
    return found


def _read_document(file: Path) -> tuple[Mapping[str, object] | None, list[Mapping[str, object]]]:
    """The image and the annotations of one file; None for the image of a list of annotations alone."""
    try:
        values = json.loads(file.read_bytes())
    except OSError as error:
        raise AnnotationError("cannot be read", got=error.strerror) from error
    except (ValueError, RecursionError) as error:
        raise AnnotationError("not JSON", expected="one complete document", got=str(error)) from error
    if isinstance(values, list):
        values, about = {"annotations": values}, None
    else:
        about = values.get("image", ()) if isinstance(values, dict) else ()
    annotations = values.get("annotations") if isinstance(values, dict) else None
    is_list = isinstance(annotations, list) and all(isinstance(entry, dict) for entry in annotations)
    if not isinstance(about, dict | None) or not is_list:
        raise AnnotationError("not a file of SA-1B", expected=f"{_SA1B}, or a list of annotations")
    assert isinstance(annotations, list)
    return about, annotations


def _repeated(path: Path, entry: str, twice: Proposal) -> AnnotationError:
    return AnnotationError(
        "a mask is there twice, with the same scores",
        where=f"{path}, {entry}",
        expected="every mask once",
        got=f"{twice.area} pixels in the box {list(twice.bbox_xywh)}",
        fix="was one list appended to itself? write the file again",
    )
