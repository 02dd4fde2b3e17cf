"""The one image decoder: any accepted file into the canonical frame, 8-bit RGB with EXIF orientation applied.

The header is checked before a pixel is decoded, so that a small file of huge dimensions costs nothing, and a
truncated file is an error and never a picture with a grey fill. What comes out, by what goes in:

========================  ==========================================================================
grey, 1-bit, palette      spread to three channels; a transparent palette entry shows its colour
RGBA, LA                  alpha is dropped, not composited
16-bit grey               ``round(v / 257)``: 0 stays 0, 65535 becomes 255; samples of fewer bits come out dark,
                          which a process warns of once
16-bit RGB(A)             Pillow keeps the high byte, at most one level away from ``v / 257``
CMYK JPEG                 Pillow's plain conversion, without colour profile
animated, several pages   the first frame
32-bit or float samples   refused: their range is not known
========================  ==========================================================================
"""

import logging
import os
import struct
import warnings
from pathlib import Path, PureWindowsPath
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFile, UnidentifiedImageError

from pipeline.errors import ImageError, InputError

_LOG = logging.getLogger(__name__)
FORMATS = ("JPEG", "PNG", "TIFF", "BMP", "WEBP")
SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".tif", ".tiff", ".bmp", ".webp"})
MAX_PIXELS = 200_000_000
_DARK = 2**14
"""A 16-bit image without a sample from here on may hold 10, 12 or 14 bits."""
_told_dark: list[Path] = []
"""The first such image that this process read."""
_ORIENTATION_TAG = 0x0112
_PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_KNOWN_BEGINNINGS = {b"GIF8": "GIF", b"%PDF": "PDF", b"PK\x03\x04": "ZIP archive", b"\x00\x00\x00": "HEIF or video"}


def read_image(path: str | Path, *, max_pixels: int = MAX_PIXELS) -> NDArray[np.uint8]:
    """Decode a whole image file into the canonical frame.

    Args:
        path: a JPEG, PNG, TIFF, BMP or WEBP file, told by its content and not by its name.
        max_pixels: height times width above which the file is refused by its header alone. Pillow's own limit
            (twice ``PIL.Image.MAX_IMAGE_PIXELS``, about 179 million) holds as well.

    Returns:
        [H, W, 3] uint8 RGB, C-contiguous, EXIF orientation applied (once).

    Raises:
        ImageError: missing, empty, truncated, damaged, too large, or not of an accepted format or sample type.
    """
    # Another library may have set this global; with it a truncated file decodes to a grey fill without a word.
    ImageFile.LOAD_TRUNCATED_IMAGES = False
    path = Path(path)
    try:
        with path.open("rb") as file, _open_header(file, path, max_pixels) as image:
            orientation = _orientation(image, file)
            pixels = _to_rgb(image, path)
    except ImageError:
        raise
    except FileNotFoundError as error:
        raise _missing(path) from error
    except Exception as error:  # decoders of damaged data raise nearly anything
        raise _undecodable(path, error) from error
    return np.ascontiguousarray(_turn(pixels, orientation))


def image_size(path: str | Path, *, max_pixels: int = MAX_PIXELS) -> tuple[int, int]:
    """Canonical (height, width) in pixels, read from the header alone.

    Raises:
        ImageError: as :func:`read_image`, but damage behind the header is not seen.
    """
    path = Path(path)
    try:
        with path.open("rb") as file, _open_header(file, path, max_pixels) as image:
            width, height = image.size
            return (width, height) if _orientation(image, file) >= 5 else (height, width)
    except ImageError:
        raise
    except FileNotFoundError as error:
        raise _missing(path) from error
    except Exception as error:
        raise _undecodable(path, error) from error


def resolve_inside(root: str | Path, file_name: str) -> Path:
    """Join ``file_name`` to ``root`` and prove that the result lies inside, symbolic links followed.

    Args:
        root: image folder; may itself be a symbolic link.
        file_name: relative path as annotation files give it.

    Returns:
        Absolute path; it need not exist.

    Raises:
        InputError: empty, absolute (POSIX or Windows), with ``..``, NUL or a lone surrogate, or leading out through a
            link.
    """
    reason = _unsafe_reason(file_name)
    if reason is None:
        base = os.path.realpath(root)
        target = os.path.realpath(os.path.join(base, file_name))
        if os.path.commonpath([base, target]) == base:
            return Path(target)
        reason = "a symbolic link leads out of the image folder"
    raise InputError(
        f"file name refused: {reason}",
        where=root,
        expected="a relative path to a file inside the image folder",
        got=repr(file_name),
        fix="correct file_name in the annotation file, or pass the folder that holds the image as image root",
    )


def _unsafe_reason(file_name: str) -> str | None:
    if not file_name.strip():
        return "it is empty"
    if "\0" in file_name:
        return "it holds a NUL character"
    if any("\ud800" <= character <= "\udfff" for character in file_name):
        return "it holds half a character (a surrogate), which cannot be written down as UTF-8"
    if os.path.isabs(file_name) or PureWindowsPath(file_name).is_absolute():
        return "it is an absolute path"
    if ".." in file_name.replace("\\", "/").split("/"):
        return "it climbs out with '..'"
    return None


def _open_header(file: BinaryIO, path: Path, max_pixels: int) -> Image.Image:
    """Open without decoding; the format list keeps Pillow's rarer parsers away from untrusted bytes."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow warns at half its limit; ours is checked below
            image = Image.open(file, formats=FORMATS)
    except UnidentifiedImageError as error:
        raise ImageError(
            "not an image of an accepted format",
            where=path,
            expected=", ".join(FORMATS),
            got=_sniff(file),
            fix="replace or convert the file, or remove it from the data set",
        ) from error
    except Image.DecompressionBombError as error:
        raise _too_large(path, max_pixels, str(error)) from error
    if image.width * image.height > max_pixels:
        raise _too_large(path, max_pixels, f"{image.height} x {image.width} pixels")
    return image


def _too_large(path: Path, max_pixels: int, got: str) -> ImageError:
    return ImageError(
        "image refused by its header: too many pixels",
        where=path,
        expected=f"at most {max_pixels} pixels",
        got=got,
        fix="tile or scale the image down, or remove it from the data set",
    )


def _missing(path: Path) -> ImageError:
    return ImageError("image file not found", where=path, fix="check the image root and the file name")


def _undecodable(path: Path, error: Exception) -> ImageError:
    return ImageError(
        "image cannot be decoded: truncated or damaged",
        where=path,
        expected="a complete image file",
        got=f"{type(error).__name__}: {error}",
        fix="fetch the file again, or remove it from the data set",
    )


def _sniff(file: BinaryIO) -> str:
    file.seek(0)
    head = file.read(256)
    if not head:
        return "an empty file (0 bytes)"
    if head.lstrip()[:1] == b"<":
        return "text that looks like HTML or XML (a failed download?)"
    known = next((name for start, name in _KNOWN_BEGINNINGS.items() if head.startswith(start)), None)
    return known or f"unknown content beginning with {head[:8]!r}"


def _orientation(image: Image.Image, file: BinaryIO) -> int:
    """EXIF orientation 1 to 8 that is still to be applied.

    Pillow applies a TIFF's own orientation itself, to size and pixels. In a PNG the EXIF chunk may follow the
    pixels; Pillow would decode everything to see it, so the chunks are walked here.
    """
    if image.format == "TIFF":
        return 1
    if image.format == "PNG" and "exif" not in image.info:
        image.info["exif"] = _png_exif(file)
    value = image.getexif().get(_ORIENTATION_TAG, 1)
    return value if isinstance(value, int) and 1 <= value <= 8 else 1


def _png_exif(file: BinaryIO) -> bytes:
    """Payload of the first ``eXIf`` chunk, or nothing; the file position is kept."""
    position = file.tell()
    try:
        file.seek(len(_PNG_SIGNATURE))
        while len(header := file.read(8)) == 8:
            length, kind = struct.unpack(">I4s", header)
            if kind == b"eXIf":
                return file.read(length)
            file.seek(length + 4, os.SEEK_CUR)
        return b""
    finally:
        file.seek(position)


def _to_rgb(image: Image.Image, path: Path) -> NDArray[np.uint8]:
    if image.mode.startswith("I"):
        return _from_integers(np.asarray(image), path)
    if image.mode in ("F", "LAB"):
        raise _unknown_range(path, f"mode {image.mode}")
    return np.asarray(image.convert("RGB"), dtype=np.uint8)


def _from_integers(values: NDArray[np.generic], path: Path) -> NDArray[np.uint8]:
    """Grey samples of more than 8 bits: 16-bit values to 8 by 257, anything outside 16 bits refused."""
    wide = values.astype(np.int64)
    low, top = (wide.min(), wide.max()) if wide.size else (0, 0)
    if low < 0 or top > 65535:
        raise _unknown_range(path, f"integers from {low} to {top}")
    if 0 < top < _DARK and not _told_dark:
        _told_dark.append(path)
        text = "%s comes out dark, and others may: its largest 16-bit sample is %d of 65535, which becomes %d of 255; "
        _LOG.warning(text + "rescale the files if theirs are of 10, 12 or 14 bits", path, top, (top + 128) // 257)
    grey = ((wide + 128) // 257).astype(np.uint8)  # 65535 / 255 = 257; +128 rounds
    return np.repeat(grey[..., None], 3, axis=-1)


def _unknown_range(path: Path, got: str) -> ImageError:
    return ImageError(
        "image samples have no known range",
        where=path,
        expected="8-bit colour or grey, palette, 1-bit, CMYK, or 16-bit",
        got=got,
        fix="convert the image to 8-bit or 16-bit, or remove it from the data set",
    )


def _turn(pixels: NDArray[np.uint8], orientation: int) -> NDArray[np.uint8]:
    """Bring stored pixels [H, W, 3] upright, by the EXIF orientation they were stored with."""
    if orientation >= 5:  # 5 to 8 have rows and columns exchanged
        pixels = pixels.swapaxes(0, 1)
    flip_rows = orientation in (3, 4, 7, 8)
    flip_columns = orientation in (2, 3, 6, 7)
    return pixels[:: -1 if flip_rows else 1, :: -1 if flip_columns else 1]
