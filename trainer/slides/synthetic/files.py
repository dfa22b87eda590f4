"""A painted slide as a pyramidal TIFF, and its layout as the ASAP XML of CAMELYON16. Each file appears whole or not."""

from __future__ import annotations

import xml.etree.ElementTree as ET
from collections.abc import Callable
from pathlib import Path

import numpy as np
import tifffile

from trainer.slides.synthetic.layout import Outline, SlideLayout

UM_PER_PX = 0.5
TILE_PX = 256
JPEG_QUALITY = 85
SMALLEST_LEVEL_PX = 256
TUMOUR_GROUP, EXCLUSION_GROUP = "_0", "_2"  # the names in CAMELYON16's published files
GROUP_COLOURS = {TUMOUR_GROUP: "#F4FA58", EXCLUSION_GROUP: "#64FE2E"}


def write_slide(path: Path, image: np.ndarray) -> None:
    """Tiled JPEG TIFF whose levels, each half of the one before, OpenSlide's generic-tiff reader sees.

    Args:
      image: uint8 [size, size, 3], level 0. Chroma is not subsampled: a marker's colour stays within its 8 x 8 blocks.
    """
    levels = [image]
    while min(levels[-1].shape[:2]) >= 2 * SMALLEST_LEVEL_PX:
        levels.append(_halved(levels[-1]))
    _write_whole(path, lambda part: _write_levels(part, levels))


def write_annotation(path: Path, layout: SlideLayout) -> None:
    """Outlines of the tumour compartments, and of the islands in them as exclusions, in level-0 pixels."""
    tumours = [compartment for compartment in layout.compartments if compartment.is_tumour]
    outlines = [(TUMOUR_GROUP, tumour.outline, 96) for tumour in tumours]
    outlines += [(EXCLUSION_GROUP, tumour.island, 48) for tumour in tumours if tumour.island is not None]
    root = ET.Element("ASAP_Annotations")
    annotations = ET.SubElement(root, "Annotations")
    for number, (group, outline, num_points) in enumerate(outlines):
        annotations.append(_annotation(number, group, outline, num_points))
    groups = ET.SubElement(root, "AnnotationGroups")
    for name, colour in GROUP_COLOURS.items():
        group_element = ET.SubElement(groups, "Group", Name=name, PartOfGroup="None", Color=colour)
        ET.SubElement(group_element, "Attributes")
    ET.indent(root, "\t")
    _write_whole(path, lambda part: ET.ElementTree(root).write(part, encoding="utf-8", xml_declaration=True))


def _annotation(number: int, group: str, outline: Outline, num_points: int) -> ET.Element:
    attributes = {"Name": f"Annotation {number}", "Type": "Polygon", "PartOfGroup": group}
    element = ET.Element("Annotation", attributes, Color=GROUP_COLOURS[TUMOUR_GROUP])
    coordinates = ET.SubElement(element, "Coordinates")
    for order, (x, y) in enumerate(outline.polygon(num_points)):
        ET.SubElement(coordinates, "Coordinate", Order=str(order), X=f"{x:.3f}", Y=f"{y:.3f}")
    return element


def _write_levels(path: Path, levels: list[np.ndarray]) -> None:
    with tifffile.TiffWriter(path) as tiff:
        for level, image in enumerate(levels):
            px_per_cm = 1e4 / UM_PER_PX / 2**level
            tiff.write(
                image,
                photometric="rgb",
                tile=(TILE_PX, TILE_PX),
                compression="jpeg",
                compressionargs={"level": JPEG_QUALITY},
                subsampling=(1, 1),
                resolution=(px_per_cm, px_per_cm),
                resolutionunit="CENTIMETER",
                subfiletype=0 if level == 0 else 1,  # 1: reduced image, which OpenSlide asks of every further level
                software="widefield make-slides",
                metadata=None,
            )


def _halved(image: np.ndarray) -> np.ndarray:
    """Means of 2 x 2 pixels; an odd last row or column is left out."""
    height, width = image.shape[0] // 2 * 2, image.shape[1] // 2 * 2
    total = np.zeros((height // 2, width // 2, 3), np.uint16)
    for row in (0, 1):
        for col in (0, 1):
            total += image[row:height:2, col:width:2]
    return ((total + 2) // 4).astype(np.uint8)


def _write_whole(path: Path, write: Callable[[Path], None]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.part")
    try:
        write(part)
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)
