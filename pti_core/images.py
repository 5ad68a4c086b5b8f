"""Files to targets: decode, check, crop, resize, and uint8 <-> [-1, 1].

What is refused is refused before the costly part wherever the header tells, with one sentence that names the image,
what was found, and the way out. ICC profiles are ignored (as the generators' training data were); EXIF orientation
is applied.
"""

from __future__ import annotations

import io
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from pti_core.config import ImageConfig

MIN_SIDE: Final = 16
"""Pixels of the smallest side accepted: below it there is no image to invert, and SSIM's window does not fit."""

# An exact list: Pillow hands EPS to Ghostscript, and other rare readers are no place for untrusted files.
FORMATS: Final = ("PNG", "JPEG", "WEBP", "TIFF", "BMP", "DIB", "GIF", "PPM", "JPEG2000", "AVIF")

SHOT: Final = 256
"""Pixels of a side, at most, of the pictures that a run keeps to look at (`shot`)."""

SHOT_QUALITY: Final = 85  # of WebP

_EXPECTED = "RGB with 8 bits a channel expected"
_ADD = "add it with --extend (existing=extend)"
_CONVERT = f"re-save it as RGB and {_ADD}, or start with --convert (convert=true; a new run)"
_GREY16 = ("I;16", "I;16B", "I;16L", "I;16N")
_COLOUR_MODES = {
    "L": "grey image (mode L)",
    "LA": "grey image with alpha (mode LA)",
    "P": "palette image (mode P)",
    "PA": "palette image with alpha (mode PA)",
    "CMYK": "CMYK image",
    "YCbCr": "YCbCr image",
}
_TRANSPOSE = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_ORIENTATION = 0x0112  # EXIF and TIFF tag
_BITS_PER_SAMPLE, _PHOTOMETRIC = 258, 262  # TIFF tags


class ImageError(ValueError):
    """An image that cannot become a target; the message names it and says what to do."""


def decode(data: bytes, image_id: str, config: ImageConfig) -> NDArray[np.uint8]:
    """Decode one file to RGB, `[H, W, 3]`, uint8.

    Without `config.convert` only 8-bit RGB is accepted, and RGBA whose alpha is 255 everywhere, since both lose
    nothing. With it grey, palette, CMYK and YCbCr become RGB, alpha is composited on white, and 16 bits are scaled to
    8 by the full range: rounded for grey, cut to the high byte for colour (all that Pillow gives; at most one level
    less). Animations, several pages, 1-bit, 32-bit and float images are refused either way.

    Raises ImageError, also for empty, truncated, too large (`config.max_megapixels`, from the header) and too small
    files.
    """
    if not data:
        found = "empty file (0 bytes), or a row of a table that has no bytes, maybe a path alone"
        raise _error(image_id, found, "an image expected", "remove it or fetch it again")
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as image:
            _check_size(image.size, image_id, config)
            _check_frames(image, image_id)
            deep = _is_deep(image)
            _check_mode(image, deep, image_id, config)
            image.load()
            rgb = _to_rgb(image, image_id, config)
            transpose = _TRANSPOSE.get(_orientation(image))
            return np.array(rgb if transpose is None else rgb.transpose(transpose), dtype=np.uint8)
    except (ImageError, MemoryError):
        raise
    except UnidentifiedImageError as error:
        found = "not an image, or damaged at its start"
        raise _error(image_id, found, f"one of {', '.join(FORMATS)} expected", "remove or re-save it") from error
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        limit = (
            f"at most {min(config.max_megapixels, 2e-6 * (Image.MAX_IMAGE_PIXELS or np.inf)):.4g} megapixels expected"
        )
        raise _error(image_id, "a size beyond Pillow's own limit", limit, "reduce the image") from error
    except Exception as error:  # Pillow's readers raise nearly anything on damaged files; a bad one costs itself only
        found = f"truncated or damaged ({type(error).__name__}: {error})"
        raise _error(image_id, found, "a whole file expected", "fetch or re-save it") from error


def fit(pixels: NDArray[np.uint8], resolution: int, image_id: str, config: ImageConfig) -> NDArray[np.uint8]:
    """Bring `[H, W, 3]` uint8 to `[resolution, resolution, 3]`: the central square, then a resize.

    A square of the right size comes back bit for bit. Both ways the filter is Lanczos, whose support grows with the
    reduction in Pillow (so it does not alias); FFHQ and NVIDIA's `dataset_tool` are made with it. Pillow's shortcut
    `reducing_gap` is not used: its result would depend on the size of the input.

    Raises ImageError for an image that is not square with `config.fit == "refuse"`, and for a wrong shape or dtype.
    """
    if pixels.dtype != np.uint8 or pixels.ndim != 3 or pixels.shape[2] != 3:
        found = f"{pixels.dtype} {list(pixels.shape)}"
        raise _error(image_id, found, "uint8 [H, W, 3] expected", "decode it with images.decode")
    height, width = pixels.shape[:2]
    if height != width and config.fit == "refuse":
        found = f"{width} x {height} pixels"
        way_out = f"crop it and {_ADD}, or start with --set image.fit=crop (a new run)"
        raise _error(image_id, found, "a square image expected", way_out)
    side = min(height, width)
    top, left = (height - side) // 2, (width - side) // 2
    square = np.ascontiguousarray(pixels[top : top + side, left : left + side])
    if side == resolution:
        return square
    resized = Image.fromarray(square).resize((resolution, resolution), Image.Resampling.LANCZOS)
    return np.array(resized, dtype=np.uint8)


def to_float(pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
    """`[N, H, W, 3]` uint8 to `[N, 3, H, W]` float32 in [-1, 1]: x / 127.5 - 1."""
    planes = np.ascontiguousarray(np.moveaxis(pixels, -1, -3), dtype=np.float32)
    return planes / np.float32(127.5) - np.float32(1)


def to_uint8(images: NDArray[np.floating[Any]]) -> NDArray[np.uint8]:
    """`[N, 3, H, W]` in [-1, 1] to `[N, H, W, 3]` uint8, rounded; values outside are clipped.

    The inverse of `to_float`. Raises ValueError where a value is NaN, which no pixel can show.
    """
    if np.isnan(images).any():
        raise ValueError("images hold NaN; they cannot be written as 8-bit pixels")
    levels = np.rint((np.clip(images, -1, 1) + 1) * 127.5).astype(np.uint8)
    return np.ascontiguousarray(np.moveaxis(levels, -3, -1))


def picture(pixels: NDArray[np.uint8]) -> Image.Image:
    """A picture `[H, W, 1 or 3]` as an RGB image of Pillow."""
    return Image.fromarray(np.repeat(pixels, 3, axis=2) if pixels.shape[2] == 1 else pixels)


def shot(pixels: NDArray[np.uint8]) -> bytes:
    """A picture `[H, W, 1 or 3]` as WebP to look at, reduced to `SHOT` pixels a side where it is larger."""
    small = picture(pixels)
    small.thumbnail((SHOT, SHOT), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    small.save(buffer, "WEBP", quality=SHOT_QUALITY)
    return buffer.getvalue()


def _error(image_id: str, found: str, expected: str, way_out: str) -> ImageError:
    return ImageError(f"image_id {image_id!r}: {found}, {expected}; {way_out}")


def _check_size(size: tuple[int, int], image_id: str, config: ImageConfig) -> None:
    width, height = size
    found = f"{width} x {height} pixels"
    if width * height > config.max_megapixels * 1e6:
        limit = f"at most {config.max_megapixels:g} megapixels expected"
        way_out = f"reduce it and {_ADD}, or start a run with --set image.max_megapixels=..."
        raise _error(image_id, found, limit, way_out)
    if min(size) < MIN_SIDE:
        raise _error(image_id, found, f"sides of at least {MIN_SIDE} expected", "remove it or use a larger original")


def _check_frames(image: Image.Image, image_id: str) -> None:
    """Refuse animations and pages; MPO is a camera's JPEG whose first picture is the photo, the others previews."""
    frames = getattr(image, "n_frames", 1)
    if frames > 1 and image.format != "MPO":
        raise _error(
            image_id, f"{frames} frames or pages", "a single image expected", "save the one you want by itself"
        )


def _is_deep(image: Image.Image) -> bool:
    """Whether the file has more than 8 bits a channel: Pillow shows it in the mode for grey only.

    JPEG 2000 and AVIF of 10 or 12 bits are reduced by their own decoders and not recognised.
    """
    if image.mode in _GREY16:
        return True
    if image.format == "TIFF":
        bits = getattr(image, "tag_v2", {}).get(_BITS_PER_SAMPLE, (8,))
        return image.mode not in ("I", "F") and max(bits) > 8
    for tile in image.tile if hasattr(image, "tile") else ():
        args = tile.args if isinstance(tile.args, tuple) else (tile.args,)
        if any(isinstance(a, str) and ";16" in a for a in args):  # PNG, and PGM (mode I)
            return True
        if tile.codec_name == "ppm" and isinstance(args[-1], int) and args[-1] > 255:  # the maximum of a PPM
            return True
    return False


def _check_mode(image: Image.Image, deep: bool, image_id: str, config: ImageConfig) -> None:
    mode = image.mode
    if mode not in ("RGB", "RGBA", "RGBX", *_COLOUR_MODES) and not deep:
        found = {"1": "1-bit image", "F": "float image", "I": "32-bit integer image"}.get(mode, "image")
        raise _error(image_id, f"{found} (mode {mode})", _EXPECTED, "re-save it as RGB")
    if config.convert:
        return
    if deep:
        raise _error(image_id, f"16-bit image (mode {mode})", _EXPECTED, _CONVERT)
    if mode in _COLOUR_MODES:
        raise _error(image_id, _COLOUR_MODES[mode], _EXPECTED, _CONVERT)


def _to_rgb(image: Image.Image, image_id: str, config: ImageConfig) -> Image.Image:
    """A loaded image of a checked mode as RGB, of the same size."""
    if image.mode in (*_GREY16, "I"):
        return Image.fromarray(_grey16_to_8(image)).convert("RGB")
    if not image.has_transparency_data:
        return image if image.mode == "RGB" else image.convert("RGB")
    rgba = image.convert("RGBA")
    if rgba.getchannel("A").getextrema() == (255, 255):
        return rgba.convert("RGB")
    if not config.convert:
        raise _error(image_id, f"transparent image (mode {image.mode})", "an opaque one expected", _CONVERT)
    return Image.alpha_composite(Image.new("RGBA", rgba.size, (255, 255, 255, 255)), rgba).convert("RGB")


def _grey16_to_8(image: Image.Image) -> NDArray[np.uint8]:
    """16-bit grey `[H, W]` scaled by its full range; Pillow's own conversion clips at 255 instead."""
    tags: Any = getattr(image, "tag_v2", {}) if image.format == "TIFF" else {}
    maximum = 2 ** tags.get(_BITS_PER_SAMPLE, (16,))[0] - 1  # TIFF also has 12 bits
    values = np.asarray(image).astype(np.float32)
    levels: NDArray[np.uint8] = np.rint(np.clip(values * (255.0 / maximum), 0, 255)).astype(np.uint8)
    return 255 - levels if tags.get(_PHOTOMETRIC) == 0 else levels  # 0: white is zero, which Pillow leaves so


def _orientation(image: Image.Image) -> int:
    """EXIF orientation, 1 to 8. Pillow turns TIFF by itself and then drops the tag. Damaged EXIF counts as none."""
    try:
        return int(image.getexif().get(_ORIENTATION, 1))
    except Exception:  # the pixels are whole; EXIF readers raise nearly anything on damaged blocks
        return 1
