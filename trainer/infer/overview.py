"""One small picture of a predicted slide: what was found, and where."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import shapely
from PIL import Image, ImageDraw, ImageFont

from trainer.files import replace_file
from trainer.infer.regions import Region

_OVERSAMPLING = 2
"""Pillow's lines have hard edges: everything is drawn this much larger, then reduced."""
_LINE_PX, _CASING_PX = 2, 4
"""A dark casing keeps yellow visible on pink and on white."""
_SIMPLER_PX = 0.5
"""How far outlines may move before they are drawn, in pixels of the larger picture: they have those of the map."""
_DARK, _PAPER = (38, 38, 46), (255, 255, 255)
_FONT_PX, _MARGIN_PX, _SWATCH_PX, _GAP_PX = 15, 14, 14, 28


def write_overview(
    path: Path,
    thumbnail: np.ndarray,
    regions: Sequence[Region],
    thumbnail_downsample: float,
    class_names: Sequence[str],
    colours: Sequence[tuple[int, int, int]],
) -> None:
    """Write a PNG: the slide with the outlines of all regions, and below it a legend with number and area per class.

    Args:
      thumbnail: [h, w, 3] uint8, the whole slide.
      thumbnail_downsample: level-0 pixels per pixel of the thumbnail.
      colours: RGB of each class.
    """
    slide = Image.fromarray(np.ascontiguousarray(thumbnail))
    large = slide.resize((slide.width * _OVERSAMPLING, slide.height * _OVERSAMPLING), Image.Resampling.BICUBIC)
    _draw_outlines(ImageDraw.Draw(large), regions, _OVERSAMPLING / thumbnail_downsample, colours)
    outlined = large.resize(slide.size, Image.Resampling.BOX)
    legend = _legend(slide.width, _legend_entries(regions, class_names), colours)
    picture = Image.new("RGB", (slide.width, slide.height + legend.height), _PAPER)
    picture.paste(outlined, (0, 0))
    picture.paste(legend, (0, slide.height))
    replace_file(path, lambda file: picture.save(file, "PNG", compress_level=3))  # 6, twice the time, saves nothing


def _draw_outlines(
    draw: ImageDraw.ImageDraw, regions: Sequence[Region], scale: float, colours: Sequence[tuple[int, int, int]]
) -> None:
    """All casings first, so that none crosses the line of a neighbour."""
    rings = [
        (colours[region.class_id], [(x, y) for x, y in (shapely.get_coordinates(ring) * scale).tolist()])
        for region in regions
        for ring in shapely.simplify(shapely.get_rings(region.polygon), _SIMPLER_PX / scale)
    ]
    for _, points in rings:
        draw.line(points, _DARK, _CASING_PX * _OVERSAMPLING, "curve")
    for colour, points in rings:
        draw.line(points, colour, _LINE_PX * _OVERSAMPLING, "curve")


def _legend_entries(regions: Sequence[Region], class_names: Sequence[str]) -> list[tuple[int, str]]:
    """(class id, text) of all classes but the first."""
    entries = []
    for class_id, name in enumerate(class_names[1:], 1):
        own = [region for region in regions if region.class_id == class_id]
        text = f"{name}: {len(own)} region{'' if len(own) == 1 else 's'}" if own else f"{name}: none"
        areas = [region.area_um2 for region in own if region.area_um2 is not None]
        if areas:
            text += f", {sum(areas) / 1e6:.3g} mm2"  # Pillow's font has no raised 2
        entries.append((class_id, text))
    return entries


def _legend(width: int, entries: Sequence[tuple[int, str]], colours: Sequence[tuple[int, int, int]]) -> Image.Image:
    """Entries side by side, in as many lines as they need."""
    font = ImageFont.load_default(_FONT_PX)
    places, x, line = [], _MARGIN_PX, 0
    for _, text in entries:
        length = _SWATCH_PX + _MARGIN_PX // 2 + math.ceil(font.getlength(text))
        if x > _MARGIN_PX and x + length > width - _MARGIN_PX:
            x, line = _MARGIN_PX, line + 1
        places.append((x, _MARGIN_PX + line * (_FONT_PX + _MARGIN_PX // 2)))
        x += length + _GAP_PX
    height = 2 * _MARGIN_PX + _FONT_PX + line * (_FONT_PX + _MARGIN_PX // 2)
    legend = Image.new("RGB", (width, height), _PAPER)
    draw = ImageDraw.Draw(legend)
    for (class_id, text), (left, top) in zip(entries, places, strict=True):
        draw.rectangle((left, top, left + _SWATCH_PX, top + _SWATCH_PX), colours[class_id], _DARK)
        draw.text((left + _SWATCH_PX + _MARGIN_PX // 2, top + _SWATCH_PX / 2), text, _DARK, font, anchor="lm")
    return legend
