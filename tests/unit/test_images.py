"""Every accepted kind of file, and every way a file can be bad."""

import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageFile, ImageOps

from pipeline import images
from pipeline.errors import ImageError, InputError
from pipeline.images import image_size, read_image, resolve_inside

SHARED = Path(__file__).parents[2].parent / "shared"
RGB = np.random.default_rng(0).integers(0, 256, (5, 7, 3), dtype=np.uint8)


def smooth(height=40, width=64):
    y, x = np.mgrid[0:height, 0:width]
    return np.stack([4 * y, 3 * x, 2 * (x + y)], axis=-1).astype(np.uint8)


def save(path, array_or_image, **options):
    image = array_or_image if isinstance(array_or_image, Image.Image) else Image.fromarray(array_or_image)
    image.save(path, **options)
    return path


@pytest.mark.parametrize("name", ["a.png", "a.bmp", "a.tif", "a.webp"])
def test_lossless_rgb_is_exact_and_writable(tmp_path, name):
    path = save(tmp_path / name, RGB, **({"lossless": True} if name.endswith("webp") else {}))
    pixels = read_image(path)
    np.testing.assert_array_equal(pixels, RGB)
    assert pixels.dtype == np.uint8
    assert pixels.flags.c_contiguous
    assert image_size(path) == (5, 7)


def test_jpeg_is_close(tmp_path):
    path = save(tmp_path / "a.jpg", smooth(), quality=95)
    assert np.abs(read_image(path).astype(int) - smooth()).mean() < 3


def test_the_content_counts_not_the_suffix(tmp_path):
    save(tmp_path / "a.png", RGB)
    (tmp_path / "a.png").rename(tmp_path / "a.jpg")
    np.testing.assert_array_equal(read_image(tmp_path / "a.jpg"), RGB)


def test_grey_and_one_bit(tmp_path):
    grey = RGB[..., 0]
    np.testing.assert_array_equal(read_image(save(tmp_path / "g.png", grey)), np.stack([grey] * 3, -1))
    bits = grey > 99
    expected = np.stack([bits * 255] * 3, -1)
    np.testing.assert_array_equal(read_image(save(tmp_path / "b.png", Image.fromarray(bits))), expected)


def test_palette_with_transparency_shows_the_palette_colour(tmp_path):
    image = Image.fromarray(np.array([[0, 1], [2, 1]], np.uint8), "L")
    image = image.convert("P")
    image.putdata([0, 1, 2, 1])
    image.putpalette([10, 20, 30, 40, 50, 60, 70, 80, 90])
    path = save(tmp_path / "p.png", image, transparency=1)
    expected = [[[10, 20, 30], [40, 50, 60]], [[70, 80, 90], [40, 50, 60]]]
    np.testing.assert_array_equal(read_image(path), expected)


def test_alpha_is_dropped_not_composited(tmp_path):
    alpha = np.zeros((5, 7, 1), np.uint8)  # fully transparent: compositing would give one colour
    np.testing.assert_array_equal(read_image(save(tmp_path / "a.png", np.concatenate([RGB, alpha], -1))), RGB)
    la = np.concatenate([RGB[..., :1], alpha], -1)
    np.testing.assert_array_equal(read_image(save(tmp_path / "la.png", la)), RGB[..., [0, 0, 0]])


@pytest.mark.parametrize("name", ["a.png", "a.tif"])
def test_sixteen_bit_grey_is_divided_by_257(tmp_path, name):
    values = np.array([[0, 128, 129, 257, 32768, 65278, 65535]], np.uint16)
    path = save(tmp_path / name, values)
    np.testing.assert_array_equal(read_image(path)[..., 0], np.round(values / 257).astype(np.uint8))
    assert read_image(path).shape == (1, 7, 3)


def test_sixteen_bits_of_which_few_are_used_are_told_of_once(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(images, "_told_dark", [])
    for top in (0, 16384):
        read_image(save(tmp_path / "a.png", np.full((4, 4), top, np.uint16)))
    assert caplog.text == ""
    for name in ("b.png", "c.png"):
        pixels = read_image(save(tmp_path / name, np.full((4, 4), 4095, np.uint16)))
        assert (pixels == 16).all()
    (record,) = caplog.records
    assert str(tmp_path / "b.png") in record.getMessage()
    assert "4095 of 65535, which becomes 16 of 255" in record.getMessage()


def sixteen_bit_rgb_png(values):
    """A PNG of 16-bit RGB samples, written chunk by chunk: Pillow cannot write one."""
    height, width, _ = values.shape
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    return png_bytes(struct.pack(">IIBBBBB", width, height, 16, 2, 0, 0, 0), zlib.compress(rows))


def png_bytes(header, data, *, after=b""):
    def chunk(kind, payload):
        return struct.pack(">I", len(payload)) + kind + payload + struct.pack(">I", zlib.crc32(kind + payload))

    exif = chunk(b"eXIf", after) if after else b""
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", data) + exif + chunk(b"IEND", b"")


def test_sixteen_bit_rgb_png_is_within_one_level(tmp_path):
    values = np.random.default_rng(1).integers(0, 65536, (4, 6, 3))
    (tmp_path / "deep.png").write_bytes(sixteen_bit_rgb_png(values))
    assert np.abs(read_image(tmp_path / "deep.png") - values / 257).max() <= 1


def test_cmyk_jpeg(tmp_path):
    path = save(tmp_path / "c.jpg", Image.fromarray(smooth()).convert("CMYK"), quality=95)
    with Image.open(path) as image:
        assert image.mode == "CMYK"
    assert np.abs(read_image(path).astype(int) - smooth()).mean() < 3


def test_wide_integers_and_floats_are_refused(tmp_path):
    wide = save(tmp_path / "i.tif", Image.fromarray(np.array([[0, 70_000]], np.int32)))
    real = save(tmp_path / "f.tif", Image.fromarray(np.array([[0.5, 1.0]], np.float32)))
    for path in (wide, real):
        with pytest.raises(ImageError, match="no known range"):
            read_image(path)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("name", ["a.png", "a.tif", "a.webp"])
def test_exif_orientation_is_applied_once(tmp_path, orientation, name):
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {"lossless": True} if name.endswith("webp") else {}
    path = save(tmp_path / name, RGB, exif=exif, **options)
    image = Image.fromarray(RGB)
    image.getexif()[0x0112] = orientation
    expected = np.asarray(ImageOps.exif_transpose(image))  # Pillow's own table, on an image in memory
    np.testing.assert_array_equal(read_image(path), expected)
    assert image_size(path) == expected.shape[:2]


def test_exif_of_a_jpeg(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # stored rows run right to left: the stored left edge is the top
    path = save(tmp_path / "a.jpg", smooth(40, 64), exif=exif, quality=95)
    assert image_size(path) == (64, 40)
    assert np.abs(read_image(path).astype(int) - np.rot90(smooth(40, 64), -1)).mean() < 3


def test_png_exif_behind_the_pixels_is_seen_without_decoding(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    rows = b"".join(b"\0" + row.tobytes() for row in RGB)
    header = struct.pack(">IIBBBBB", 7, 5, 8, 2, 0, 0, 0)
    payload = exif.tobytes().removeprefix(b"Exif\0\0")
    (tmp_path / "late.png").write_bytes(png_bytes(header, zlib.compress(rows), after=payload))
    assert image_size(tmp_path / "late.png") == (7, 5)
    np.testing.assert_array_equal(read_image(tmp_path / "late.png"), np.rot90(RGB, -1))


def test_first_frame_of_animations_and_pages(tmp_path):
    frames = [Image.fromarray(RGB), Image.fromarray(255 - RGB)]
    for name, options in (("a.png", {}), ("a.tif", {}), ("a.webp", {"lossless": True})):
        frames[0].save(tmp_path / name, save_all=True, append_images=frames[1:], **options)
        np.testing.assert_array_equal(read_image(tmp_path / name), RGB)


@pytest.mark.parametrize(
    ("name", "options"), [("a.jpg", {}), ("a.png", {}), ("a.tif", {}), ("a.bmp", {}), ("a.webp", {})]
)
@pytest.mark.parametrize("share", [0.5, 0.9, 0.99])
def test_truncated_files_raise(tmp_path, name, options, share, monkeypatch):
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", True)  # as a careless library leaves it
    noise = np.random.default_rng(2).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    data = save(tmp_path / name, noise, **options).read_bytes()
    (tmp_path / name).write_bytes(data[: int(share * len(data))])
    with pytest.raises(ImageError) as caught:
        read_image(tmp_path / name)
    assert str(tmp_path / name) in str(caught.value)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "empty file"),
        (b"<!DOCTYPE html><html>404</html>", "HTML"),
        (b"GIF89a" + bytes(64), "GIF"),
        (b"%PDF-1.7", "PDF"),
        (b"\x01\x02\x03\x04\x05\x06\x07\x08\x09", "unknown content"),
    ],
)
def test_what_is_not_an_image_says_what_it_is(tmp_path, content, said):
    (tmp_path / "a.jpg").write_bytes(content)
    for reader in (read_image, image_size):
        with pytest.raises(ImageError, match=said):
            reader(tmp_path / "a.jpg")


def test_missing_file_and_folder(tmp_path):
    with pytest.raises(ImageError, match="not found"):
        read_image(tmp_path / "none.png")
    with pytest.raises(ImageError):
        read_image(tmp_path)


def test_bomb_is_refused_by_its_header(tmp_path):
    size = 30_000
    rows = zlib.compressobj(9)
    data = b"".join([*(rows.compress(bytes(size + 1)) for _ in range(300)), rows.flush()])
    for side, name in ((size, "bomb.png"), (12_000, "large.png")):
        (tmp_path / name).write_bytes(png_bytes(struct.pack(">IIBBBBB", side, side, 8, 0, 0, 0, 0), data))
    for reader in (read_image, image_size):
        with pytest.raises(ImageError, match="too many pixels"):
            reader(tmp_path / "bomb.png")
    with pytest.raises(ImageError, match="12000 x 12000"):
        read_image(tmp_path / "large.png", max_pixels=100_000_000)
    assert image_size(tmp_path / "large.png") == (12_000, 12_000)  # allowed, and no warning


def test_names_inside_the_root(tmp_path):
    (tmp_path / "real" / "sub").mkdir(parents=True)
    (tmp_path / "link").symlink_to(tmp_path / "real")
    assert resolve_inside(tmp_path / "link", "sub/a.png") == tmp_path / "real" / "sub" / "a.png"
    assert resolve_inside(tmp_path / "real", "a..b.png").name == "a..b.png"
    assert resolve_inside(tmp_path / "real", "ü é.png").name == "ü é.png"


@pytest.mark.parametrize(
    "name",
    [
        "../a.png",
        "sub/../../a.png",
        "/etc/hostname",
        "..\\a.png",
        "C:\\a.png",
        "a\0.png",
        "",
        " ",
        "out/a.png",
        "a\ud800.png",
    ],
)
def test_names_that_leave_the_root_are_refused(tmp_path, name):
    root = tmp_path / "root"
    root.mkdir()
    (tmp_path / "root2").mkdir()
    (root / "out").symlink_to(tmp_path / "root2")  # a neighbour whose name begins like the root's
    with pytest.raises(InputError) as caught:
        resolve_inside(root, name)
    assert repr(name) in str(caught.value)


@pytest.mark.skipif(not SHARED.exists(), reason="the real images are not beside this checkout")
@pytest.mark.parametrize("folder", ["dsb2018", "coco_photos"])
def test_real_images(folder):
    paths = sorted((SHARED / "data" / folder / "images").iterdir())
    sizes = [image_size(path) for path in paths]
    assert all(height > 0 and width > 0 for height, width in sizes)
    for path, size in list(zip(paths, sizes, strict=True))[::9]:
        assert read_image(path).shape == (*size, 3)
