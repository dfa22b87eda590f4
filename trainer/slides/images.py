"""Whole image files (PNG, JPEG, TIFF) as arrays, for slides without a pyramid and for mask images.

Nothing here knows what a pixel means: slides turn it into RGB (`to_rgb`), masks into labels.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import tifffile
from PIL import Image

TIFF_SUFFIXES = (".tif", ".tiff")
IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", *TIFF_SUFFIXES)
MAX_IMAGE_PIXELS = 1 << 27
"""Larger images are refused: they are held in memory whole (as RGB this is 400 MB). A pyramid has no such limit."""
_PLAIN_MODES = ("1", "L", "P", "LA", "RGB", "RGBA", "I", "F", "I;16", "I;16B", "I;16L")
"""Pillow's modes that are taken as they are; others (CMYK, YCbCr, ...) are colours that Pillow turns into RGB."""


class ImageFault(Exception):
    """An image that cannot be used; the caller says whose image it is."""


@dataclass(frozen=True)
class RawImage:
    """Pixels as stored.

    Args:
      pixels: bool, uint8 or uint16 [h, w] or [h, w, channels]; bool is a 1-bit image.
      palette: [n, 3] uint8 colours where pixels are palette positions, else None.
    """

    pixels: np.ndarray
    palette: np.ndarray | None = None


def read_image(path: Path) -> RawImage:
    """The first image of a file.

    Raises:
      ImageFault: not an image, damaged, too large, or of a pixel type without a fixed range (float, 32-bit).
    """
    try:
        raw = _read_tiff(path) if path.suffix.lower() in TIFF_SUFFIXES else _read_other(path)
    except ImageFault:
        raise
    except Exception as error:  # decoders raise nearly everything on damaged files
        raise ImageFault(f"cannot be decoded: {error}") from error
    if raw.pixels.dtype not in (np.bool_, np.uint8, np.uint16) or raw.pixels.ndim not in (2, 3):
        shape = "x".join(map(str, raw.pixels.shape))
        raise ImageFault(f"has pixels of type {raw.pixels.dtype}, shape {shape}; 1, 8 or 16-bit images can be read")
    return raw


def to_rgb(raw: RawImage) -> np.ndarray:
    """[h, w, 3] uint8. 16 bits keep the upper 8; grey is repeated; transparency is laid over white.

    Raises:
      ImageFault: a number of channels that is not grey or RGB, with or without alpha.
    """
    pixels = raw.pixels
    if raw.palette is not None:
        return raw.palette[np.minimum(pixels, len(raw.palette) - 1)]
    if pixels.dtype == np.bool_:
        pixels = pixels * np.uint8(255)
    elif pixels.dtype == np.uint16:
        pixels = (pixels >> 8).astype(np.uint8)
    if pixels.ndim == 2:
        pixels = pixels[..., None]
    channels = pixels.shape[2]
    if channels not in (1, 2, 3, 4):
        raise ImageFault(f"has {channels} channels; grey and RGB images can be read")
    if channels in (2, 4):
        pixels = over_white(pixels)
    return np.ascontiguousarray(np.broadcast_to(pixels, (*pixels.shape[:2], 3)))


def over_white(pixels: np.ndarray) -> np.ndarray:
    """[h, w, c + alpha] uint8 -> [h, w, c] uint8, as seen on a white background."""
    colours, alpha = pixels[..., :-1], pixels[..., -1:]
    if alpha.min(initial=255) == 255:
        return np.ascontiguousarray(colours)
    weight = alpha.astype(np.uint16)
    return ((colours * weight + 255 * (255 - weight) + 127) // 255).astype(np.uint8)


def check_pixel_count(width: int, height: int) -> None:
    if width * height > MAX_IMAGE_PIXELS:
        raise ImageFault(
            f"has {width} x {height} pixels, too many to hold whole (limit {MAX_IMAGE_PIXELS / 1e6:.0f} M)"
        )


def _read_other(path: Path) -> RawImage:
    with Image.open(path) as file:
        check_pixel_count(*file.size)
        image = file if file.mode in _PLAIN_MODES else file.convert("RGB")
        palette = None
        if image.mode == "P":
            image.load()
            palette = np.array(image.getpalette("RGB"), np.uint8).reshape(-1, 3)
        return RawImage(np.array(image), palette)


def _read_tiff(path: Path) -> RawImage:
    with tifffile.TiffFile(path) as file:
        page = file.pages.first
        check_pixel_count(page.imagewidth, page.imagelength)
        return normalised_tiff(page, page.asarray())


def normalised_tiff(page: tifffile.TiffPage, pixels: np.ndarray) -> RawImage:
    """Pixels of a TIFF page (or of one of its tiles) with channels last, black as 0 and the palette in 8 bits."""
    if pixels.ndim == 3 and page.planarconfig == tifffile.PLANARCONFIG.SEPARATE and page.samplesperpixel > 1:
        pixels = np.moveaxis(pixels, 0, -1)
    if pixels.ndim == 3 and pixels.shape[2] == 1:
        pixels = pixels[..., 0]
    if page.photometric == tifffile.PHOTOMETRIC.MINISWHITE:
        pixels = ~pixels
    palette = None
    if page.photometric == tifffile.PHOTOMETRIC.PALETTE and page.colormap is not None:
        palette = (np.asarray(page.colormap).T // 257).astype(np.uint8)
    return RawImage(pixels, palette)
