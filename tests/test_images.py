"""Decoding: what is accepted bit for bit, what is refused with a reason, what --convert makes of it."""

from __future__ import annotations

import contextlib
import io
import struct
import zlib
from typing import Any

import numpy as np
import pytest
from PIL import Image

from pti_core.config import ImageConfig
from pti_core.images import ImageError, decode, fit, to_float, to_uint8

STRICT, CONVERT = ImageConfig(), ImageConfig(convert=True)
SIZE = 24
RNG = np.random.default_rng(0)
RGB = RNG.integers(0, 256, (SIZE, SIZE, 3), dtype=np.uint8)


def encoded(image: Image.Image | np.ndarray, kind: str = "PNG", **options: Any) -> bytes:
    buffer = io.BytesIO()
    (image if isinstance(image, Image.Image) else Image.fromarray(image)).save(buffer, kind, **options)
    return buffer.getvalue()


def png(values: np.ndarray, bits: int = 16, size: tuple[int, int] | None = None) -> bytes:
    """A PNG written by hand: 16 bits in colour, which Pillow cannot write, or a header of any size."""
    height, width = size or values.shape[:2]
    colour = 0 if values.ndim == 2 else {2: 4, 3: 2, 4: 6}[values.shape[2]]
    rows = b"".join(b"\0" + row.astype(f">u{bits // 8}").tobytes() for row in values)

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    header = struct.pack(">IIBBBBB", width, height, bits, colour, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def refused(data: bytes, config: ImageConfig = STRICT) -> str:
    with pytest.raises(ImageError) as caught:
        decode(data, "a/b.png", config)
    message = str(caught.value)
    assert message.startswith("image_id 'a/b.png': ")
    assert ";" in message
    assert "\n" not in message
    return message


@pytest.mark.parametrize("kind", ["PNG", "BMP", "TIFF", "PPM"])
def test_lossless_rgb_is_kept_bit_for_bit(kind: str) -> None:
    pixels = decode(encoded(RGB, kind), "a", STRICT)
    assert pixels.dtype == np.uint8
    np.testing.assert_array_equal(pixels, RGB)


@pytest.mark.parametrize("kind", ["JPEG", "WEBP", "JPEG2000", "AVIF"])
def test_lossy_formats(kind: str) -> None:
    smooth = np.zeros((SIZE, SIZE, 3), np.uint8) + np.arange(SIZE, dtype=np.uint8)[:, None, None] * 8
    assert np.abs(decode(encoded(smooth, kind), "a", STRICT).astype(int) - smooth).mean() < 4


GREY, ALPHA = RGB[..., 0], RNG.integers(0, 255, (SIZE, SIZE), dtype=np.uint8)
RGBA = np.dstack([RGB, ALPHA])
ON_WHITE = (RGB * (ALPHA[..., None] / 255.0)) + 255 - ALPHA[..., None]
GREY_RGB = np.dstack([GREY] * 3).astype(float)
DEEP = RNG.integers(0, 65536, (SIZE, SIZE, 4)).astype(np.uint16)
PALETTE = Image.fromarray(RGB).quantize(16)
PALETTE_RGB = np.asarray(PALETTE.convert("RGB")).astype(float)
CMYK = Image.fromarray(255 - RGB).convert("CMYK")
KINDS = {
    "grey": (encoded(GREY), "grey image (mode L)", GREY_RGB, 0),
    "grey with alpha": (
        encoded(Image.merge("LA", [Image.fromarray(GREY), Image.fromarray(ALPHA)])),
        "grey image with alpha",
        GREY_RGB * (ALPHA[..., None] / 255.0) + 255 - ALPHA[..., None],
        1,
    ),
    "palette": (encoded(PALETTE), "palette image (mode P)", PALETTE_RGB, 0),
    "gif": (encoded(PALETTE, "GIF"), "palette image (mode P)", PALETTE_RGB, 0),
    "cmyk": (encoded(CMYK, "TIFF"), "CMYK image", 255.0 - RGB, 1),
    "alpha": (encoded(RGBA), "transparent image (mode RGBA)", ON_WHITE, 1),
    "16-bit grey": (png(DEEP[..., 0]), "16-bit image", np.dstack([DEEP[..., 0] / 257] * 3), 0.5),
    "16-bit grey tiff": (encoded(DEEP[..., 0], "TIFF"), "16-bit image", np.dstack([DEEP[..., 0] / 257] * 3), 0.5),
    "16-bit grey pgm": (
        b"P5 24 24 65535\n" + DEEP[..., 0].astype(">u2").tobytes(),
        "16-bit image",
        np.dstack([DEEP[..., 0] / 257] * 3),
        0.5,
    ),
    "16-bit rgb": (png(DEEP[..., :3]), "16-bit image", DEEP[..., :3] / 257, 1),
    "16-bit ppm": (
        b"P6 24 24 65535\n" + DEEP[..., :3].astype(">u2").tobytes(),
        "16-bit image",
        DEEP[..., :3] / 257,
        1,
    ),
    "16-bit rgba": (
        png(DEEP),
        "16-bit image",
        (DEEP[..., :3] * (DEEP[..., 3:] / 65535) + 65535 - DEEP[..., 3:]) / 257,
        2,
    ),
}


@pytest.mark.parametrize("kind", KINDS)
def test_colour_modes_are_refused_or_converted(kind: str) -> None:
    data, found, expected, tolerance = KINDS[kind]
    message = refused(data)
    assert found in message
    assert "--convert" in message
    converted = decode(data, "a", CONVERT)
    assert converted.shape == (SIZE, SIZE, 3)
    assert np.abs(converted - expected).max() <= tolerance + 1e-6


def test_message_reads_as_documented() -> None:
    expected = "palette image (mode P), RGB with 8 bits a channel expected"
    add = "add it with --extend (existing=extend)"
    way_out = f"re-save it as RGB and {add}, or start with --convert (convert=true; a new run)"
    assert refused(encoded(PALETTE)) == f"image_id 'a/b.png': {expected}; {way_out}"


def test_16_bit_white_is_inverted_where_tiff_says_that_white_is_zero() -> None:
    data = encoded(Image.fromarray(DEEP[..., 0]), "TIFF", tiffinfo={262: 0})
    np.testing.assert_allclose(decode(data, "a", CONVERT)[..., 0], 255 - DEEP[..., 0] / 257, atol=0.51)


def test_opaque_alpha_loses_nothing_and_is_accepted() -> None:
    opaque = np.dstack([RGB, np.full((SIZE, SIZE), 255, np.uint8)])
    np.testing.assert_array_equal(decode(encoded(opaque), "a", STRICT), RGB)


def test_colour_key_counts_as_transparency_only_where_it_occurs() -> None:
    assert "transparent" in refused(encoded(RGB, transparency=tuple(RGB[0, 0].tolist())))
    absent = (1, 2, 3)
    assert not (absent == RGB).all(-1).any()
    np.testing.assert_array_equal(decode(encoded(RGB, transparency=absent), "a", STRICT), RGB)


@pytest.mark.parametrize("mode", ["1", "F", "I", "LAB"])
@pytest.mark.parametrize("config", [STRICT, CONVERT], ids=["strict", "convert"])
def test_unsupported_modes_are_refused_either_way(mode: str, config: ImageConfig) -> None:
    message = refused(encoded(Image.new(mode, (SIZE, SIZE)), "TIFF"), config)
    assert f"(mode {mode})" in message
    assert "--convert" not in message


@pytest.mark.parametrize("config", [STRICT, CONVERT], ids=["strict", "convert"])
def test_no_image(config: ImageConfig) -> None:
    assert "empty file (0 bytes)" in refused(b"", config)
    assert "not an image" in refused(b"<html>404</html>", config)
    assert "not an image" in refused(
        b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 64 64\n", config
    )  # never Ghostscript


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "BMP", "TIFF", "GIF", "PPM", "JPEG2000", "AVIF"])
@pytest.mark.parametrize("share", [0.9, 0.5, 0.1])
def test_truncated(kind: str, share: float) -> None:
    noise = RNG.integers(0, 256, (64, 64, 3), dtype=np.uint8)
    data = encoded(noise, kind)
    message = refused(data[: int(share * len(data))], CONVERT)
    assert "truncated or damaged" in message or "not an image" in message


@pytest.mark.filterwarnings("ignore::UserWarning")  # Pillow's, about damaged tags
def test_flipped_bytes_never_raise_anything_else() -> None:
    for kind in ("PNG", "JPEG", "TIFF", "GIF", "WEBP"):
        data = encoded(RGB, kind)
        for _ in range(40):
            broken = bytearray(data)
            for position in RNG.integers(0, len(data), 4):
                broken[position] ^= int(RNG.integers(1, 256))
            with contextlib.suppress(ImageError):
                assert decode(bytes(broken), "a", CONVERT).dtype == np.uint8


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_huge_is_refused_by_its_header() -> None:
    assert "at most 100 megapixels" in refused(png(RGB, bits=8, size=(10000, 20000)))  # beyond Pillow's limit too
    assert "10000 x 10001 pixels, at most 100 megapixels" in refused(png(RGB, bits=8, size=(10001, 10000)))
    small = ImageConfig(max_megapixels=0.0005)
    message = refused(encoded(RGB), small)
    assert "24 x 24 pixels, at most 0.0005 megapixels expected; reduce it and add it with --extend (exi" in message
    assert message.endswith("or start a run with --set image.max_megapixels=...")
    beyond = ImageConfig(max_megapixels=1e6)
    assert "Pillow's own limit" in refused(png(RGB, bits=8, size=(30000, 30000)), beyond)


def test_too_small() -> None:
    assert "15 x 24 pixels, sides of at least 16" in refused(encoded(np.ascontiguousarray(RGB[:, :15])))
    assert decode(encoded(np.ascontiguousarray(RGB[:16, :16])), "a", STRICT).shape == (16, 16, 3)


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "PNG", "TIFF", "AVIF"])
def test_animations_and_pages_are_refused(kind: str) -> None:
    frames = [Image.fromarray(RGB), Image.fromarray(255 - RGB)]
    data = encoded(frames[0], kind, save_all=True, append_images=frames[1:])
    assert "2 frames or pages" in refused(data, CONVERT)


def test_a_camera_jpeg_with_previews_is_its_first_picture() -> None:
    photo = np.zeros((SIZE, SIZE, 3), np.uint8) + np.arange(SIZE, dtype=np.uint8)[:, None, None] * 8
    data = encoded(Image.fromarray(photo), "MPO", save_all=True, append_images=[Image.fromarray(RGB)])
    assert np.abs(decode(data, "a", STRICT).astype(int) - photo).mean() < 4


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation(orientation: int) -> None:
    pixels = np.ascontiguousarray(RGB[:16])
    exif = Image.Exif()
    exif[0x0112] = orientation
    turns = [
        lambda a: a,
        np.fliplr,
        lambda a: np.rot90(a, 2),
        np.flipud,
        lambda a: a.transpose(1, 0, 2),
        lambda a: np.rot90(a, -1),
        lambda a: np.rot90(a, 2).transpose(1, 0, 2),
        np.rot90,
    ]
    np.testing.assert_array_equal(decode(encoded(pixels, exif=exif), "a", STRICT), turns[orientation - 1](pixels))
    tiff = encoded(pixels, "TIFF", tiffinfo={274: orientation})
    np.testing.assert_array_equal(decode(tiff, "a", STRICT), turns[orientation - 1](pixels))


def test_damaged_exif_does_not_cost_the_image() -> None:
    np.testing.assert_array_equal(decode(encoded(RGB, exif=b"Exif\0\0nonsense"), "a", STRICT), RGB)


def test_fit_crops_the_centre_and_keeps_the_right_size() -> None:
    np.testing.assert_array_equal(fit(RGB, SIZE, "a", STRICT), RGB)
    wide = np.concatenate([RGB[:, :4], RGB, RGB[:, :4]], axis=1)
    np.testing.assert_array_equal(fit(wide, SIZE, "a", STRICT), RGB)
    with pytest.raises(ImageError, match=r"image_id 'a': 32 x 24 pixels, a square image expected"):
        fit(wide, SIZE, "a", ImageConfig(fit="refuse"))
    with pytest.raises(ImageError, match="uint8"):
        fit(RGB[..., :1], SIZE, "a", STRICT)


def test_fit_resizes_without_aliasing() -> None:
    board = np.indices((256, 256)).sum(0) % 2 * 255
    small = fit(np.dstack([board.astype(np.uint8)] * 3), 32, "a", STRICT)
    assert np.abs(small[2:-2, 2:-2].astype(int) - 127.5).max() <= 2
    ramp = np.broadcast_to(np.arange(32, dtype=np.uint8)[None, :, None] * 8, (32, 32, 3))
    large = fit(np.ascontiguousarray(ramp), 64, "a", STRICT)
    assert large.shape == (64, 64, 3)
    assert np.abs(np.diff(large[32, 8:-8, 0].astype(int)) - 4).max() <= 1


def test_to_float_and_back_is_exact() -> None:
    levels = np.arange(256, dtype=np.uint8).reshape(1, 16, 16, 1).repeat(3, axis=3)
    images = to_float(levels)
    assert images.shape == (1, 3, 16, 16)
    assert images.dtype == np.float32
    assert (images.min(), images.max()) == (-1, 1)
    np.testing.assert_array_equal(to_uint8(images), levels)
    np.testing.assert_array_equal(to_uint8(images * 3), to_uint8(np.clip(images * 3, -1, 1)))
    with pytest.raises(ValueError, match="NaN"):
        to_uint8(images * np.nan)
