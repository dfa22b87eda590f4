"""Outlines and boxes as SVG paths, pixels as data URIs, label areas as rings. Pure functions of arrays."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterable, Sequence

import numpy as np
from PIL import Image

from trainer.slides.geometry import mask_rings

_DENSITY_CELLS = 200
"""Cells along the longer side of a density picture."""
_LABEL_TOLERANCE_PX = 0.4
"""Less than a pixel of a contact sheet: outlines keep their course and lose two thirds of their points."""


def rings_path(rings: Iterable[np.ndarray]) -> str:
    """SVG path data of closed rings, [N, 2] (x, y) each; to 0.1 px, which no screen shows."""
    return "".join("M" + "L".join(f"{round(x, 1):.9g} {round(y, 1):.9g}" for x, y in ring) + "z" for ring in rings)


def boxes_path(points: np.ndarray, side: int) -> str:
    """SVG path data of squares with top-left corners [N, 2] (x, y): one path, however many there are."""
    return "".join(f"M{x} {y}h{side}v{side}h-{side}z" for x, y in points.tolist())


def flags_path(points: np.ndarray, side: int) -> str:
    """The upper left corners of those squares as triangles: a mark that hides nothing of what is inside."""
    leg = max(1, side // 5)
    return "".join(f"M{x} {y}h{leg}l-{leg} {leg}z" for x, y in points.tolist())


def density(points: np.ndarray, side: int, size: tuple[int, int]) -> tuple[np.ndarray, int]:
    """How densely squares cover a slide.

    Args:
      points: [N, 2] (x, y) top-left corners; side: of the squares; size: (width, height) of the slide; level-0 pixels.
    Returns:
      [h, w] float in [0, 1], 1 where they are densest; and the side of a cell, level-0 pixels. A cell is a whole number
      of squares, so that a grid without gaps is even.
    """
    cell = side * max(1, -(-max(size) // (side * _DENSITY_CELLS)))
    shape = -(-size[1] // cell), -(-size[0] // cell)
    centres = (points + side // 2) // cell
    counts = np.zeros(shape)
    np.add.at(counts, (np.minimum(centres[:, 1], shape[0] - 1), np.minimum(centres[:, 0], shape[1] - 1)), 1)
    return counts / max(counts.max(), 1), cell


def label_rings(labels: np.ndarray) -> dict[int, list[np.ndarray]]:
    """Borders of each label but the first in a patch, along pixel borders.

    Args:
      labels: [h, w] uint8.
    Returns:
      label -> rings [N, 2] (x, y) in pixels of the patch.
    """
    return {
        int(label): [np.clip(ring, 0, labels.shape[::-1]) for ring in mask_rings(labels == label, _LABEL_TOLERANCE_PX)]
        for label in np.unique(labels)
        if label != 0
    }


def largest(rings: Sequence[np.ndarray], count: int) -> list[np.ndarray]:
    """The `count` rings with the largest extent, all where there are not more."""
    extent = np.array([np.ptp(ring, axis=0).max() for ring in rings])
    return [rings[i] for i in np.sort(np.argsort(-extent, kind="stable")[:count])]


def jpeg_uri(image: np.ndarray, quality: int = 80) -> str:
    """[h, w, 3] uint8 as a data URI."""
    file = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(image)).save(file, "JPEG", quality=quality, optimize=True)
    return _data_uri("jpeg", file)


def shade_uri(opacity: np.ndarray, colour: str) -> str:
    """One colour ('#rrggbb') at opacities [h, w] in [0, 1] as a data URI."""
    file, pixels = io.BytesIO(), np.empty((*opacity.shape, 4), np.uint8)
    pixels[..., :3] = list(bytes.fromhex(colour[1:]))
    pixels[..., 3] = opacity * 255
    Image.fromarray(pixels).save(file, "PNG", optimize=True)
    return _data_uri("png", file)


def _data_uri(kind: str, file: io.BytesIO) -> str:
    return f"data:image/{kind};base64,{base64.b64encode(file.getvalue()).decode()}"
