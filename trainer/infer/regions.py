"""Connected areas of one class on the map of a whole slide: outlines for viewers, numbers for scores of lesions.

The map is read block by block, two at a time. The pieces of regions in each (`pieces.py`) are then put together where
they meet, and their outlines are smoothed. Two blocks and the outlines are in memory.

Frames: pixels of the map, whose (0, 0) is level-0 (0, 0), and level-0 pixels.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import shapely
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from shapely.geometry import LinearRing, Polygon
from shapely.geometry.base import BaseGeometry

from trainer.files import replace_file
from trainer.infer.pieces import NO_PIECE, Piece, pieces_of

ReadClasses = Callable[[int, int, int, int], np.ndarray]
"""read(x, y, width, height) in map pixels -> uint8 [height, width] class ids; 255 is not predicted."""
ReadProbability = Callable[[int, int, int, int, int], np.ndarray]
"""read(class_id, x, y, width, height) -> uint8 [height, width], 255 is certain."""
Box = tuple[int, int, int, int]
"""(x, y, width, height), map pixels."""
MIN_AREA_PX = 16
"""Smaller regions are dropped: below 4 x 4 pixels an outline is little but cut corners."""
_BLOCK_PX = 2048
"""A block takes 160 MiB."""
_THREADS = 2
"""Blocks at a time."""
_TOLERANCE_PX = 0.34
"""How far an outline may move to lose points. With corners cut, parts of outlines are at least 0.707 map pixels apart,
the side of one pixel's diamond: moved by less than half of it, none cross, though each ring is simplified by itself.
(GEOS can see to that for all together, but takes minutes where a region has 10,000 holes.) Cutting corners moves by
0.36, so together it is less than a pixel."""
_DECIMALS = 2


@dataclass(frozen=True)
class Region:
    """An area of one class, of pixels that touch by their sides.

    Fields:
      class_id: of any class but the first.
      polygon: the outline with its holes, level-0 pixels, valid; within one map pixel of the pixels' edges.
      area_px: number of its map pixels.
      area_um2: the same in um2; None where mpp is not known.
      mean_probability: of its class over its pixels, 0-1.
      peak: (x, y) level-0 pixels, the centre of its most probable pixel: of equals the topmost, then leftmost one.
      peak_probability: 0-1.
    """

    class_id: int
    polygon: Polygon
    area_px: int
    area_um2: float | None
    mean_probability: float
    peak: tuple[float, float]
    peak_probability: float


def regions_of(
    read_classes: ReadClasses,
    read_probability: ReadProbability,
    width: int,
    height: int,
    class_names: Sequence[str],
    downsample: float,
    mpp: float | None,
    *,
    min_area_px: int = MIN_AREA_PX,
    block_px: int = _BLOCK_PX,
) -> list[Region]:
    """All regions of all classes but the first, largest first.

    Args:
      read_classes, read_probability: called from threads, several at a time.
      width, height: of the map.
      class_names: their number says which ids are classes.
      downsample: level-0 pixels per map pixel.
      mpp: micrometres per map pixel, None where nobody knows.
      min_area_px: smaller regions are dropped, map pixels.
      block_px: side of what is read at a time; the result does not depend on it.
    """
    boxes = [
        (x, y, min(block_px, width - x), min(block_px, height - y))
        for y in range(0, height, block_px)
        for x in range(0, width, block_px)
    ]
    in_block = partial(_in_block, read_classes, read_probability, len(class_names), min_area_px)
    pieces: list[Piece] = []
    meetings: list[np.ndarray] = []
    above, left = np.full(width, NO_PIECE), np.full(0, NO_PIECE)
    with ThreadPoolExecutor(_THREADS, "regions") as pool:
        for (x, _, columns, _), (found, edges) in zip(boxes, pool.map(in_block, boxes), strict=True):
            top, bottom, first, last = (np.where(edge == NO_PIECE, NO_PIECE, edge + len(pieces)) for edge in edges)
            pieces += found
            meetings.append(_meetings(above[x : x + columns], top))
            if x > 0:
                meetings.append(_meetings(left, first))
            above[x : x + columns], left = bottom, last
    groups = _joined(pieces, np.concatenate(meetings, axis=1))
    regions = [_region(group, downsample, mpp) for group in groups if sum(p.area for p in group) >= min_area_px]
    return sorted(regions, key=lambda region: (-region.area_px, region.peak[::-1]))


def _in_block(
    read_classes: ReadClasses, read_probability: ReadProbability, num_classes: int, min_area_px: int, box: Box
) -> tuple[list[Piece], tuple[np.ndarray, ...]]:
    """The pieces of a block, and those along its top, bottom, left and right."""
    classes = read_classes(*box)
    classes = np.where(classes < num_classes, classes, 0)
    own = _own_probability(classes, box, read_probability)
    found, numbers = pieces_of(classes, own, box[:2], min_area_px)
    return found, tuple(edge.copy() for edge in (numbers[0], numbers[-1], numbers[:, 0], numbers[:, -1]))


def _own_probability(classes: np.ndarray, box: Box, read_probability: ReadProbability) -> np.ndarray:
    """[h, w] uint8: of each pixel's own class; 0 in the first class."""
    own = np.zeros(classes.shape, np.uint8)
    for class_id in np.unique(classes[classes > 0]).tolist():
        np.copyto(own, read_probability(class_id, *box), where=classes == class_id)
    return own


def _meetings(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """[2, N] pairs of pieces on both sides of a border of blocks."""
    pairs = np.stack([one, other])
    return np.unique(pairs[:, (pairs != NO_PIECE).all(axis=0)], axis=1)


def _joined(pieces: Sequence[Piece], meetings: np.ndarray) -> Iterable[list[Piece]]:
    """Pieces by region; `meetings` [2, N] of any classes."""
    class_ids = np.array([piece.class_id for piece in pieces], np.int64)
    one, other = meetings[:, class_ids[meetings[0]] == class_ids[meetings[1]]]
    graph = coo_array((np.ones(len(one), bool), (one, other)), shape=(len(pieces), len(pieces)))
    groups: dict[int, list[Piece]] = {}
    for piece, region in zip(pieces, connected_components(graph, directed=False)[1].tolist(), strict=True):
        groups.setdefault(region, []).append(piece)
    return groups.values()


def _region(pieces: Sequence[Piece], downsample: float, mpp: float | None) -> Region:
    area = sum(piece.area for piece in pieces)
    peak, y, x = min(piece.peak for piece in pieces)
    return Region(
        class_id=pieces[0].class_id,
        polygon=_smoothed(shapely.union_all([piece.outline for piece in pieces]), downsample),
        area_px=area,
        area_um2=None if mpp is None else area * mpp**2,
        mean_probability=sum(piece.probability_sum for piece in pieces) / area / 255,
        peak=((x + 0.5) * downsample, (y + 0.5) * downsample),
        peak_probability=-peak / 255,
    )


def _smoothed(outline: BaseGeometry, downsample: float) -> Polygon:
    """An outline along pixel edges in map pixels, as a smooth one in level-0 pixels."""
    rings = [LinearRing(_cut_corners(ring)) for ring in shapely.get_rings(shapely.normalize(outline))]
    simple = shapely.simplify(rings, _TOLERANCE_PX, preserve_topology=False)
    shell, *holes = [(shapely.get_coordinates(ring) * downsample).round(_DECIMALS) for ring in simple]
    return shapely.normalize(Polygon(shell, holes))


def _cut_corners(ring: Any) -> np.ndarray:
    """[N, 2]: the middles of all pixel edges along a ring, in order. The same pixels' centres lie inside."""
    points = shapely.get_coordinates(shapely.segmentize(ring, 1)).round()
    return (points[:-1] + points[1:]) / 2


def write_geojson(
    path: Path, regions: Iterable[Region], class_names: Sequence[str], colours: Sequence[tuple[int, int, int]]
) -> None:
    """Write regions as QuPath's annotations, named 'tumour 1', 'tumour 2', ... in the order given.

    `trainer.slides.annotations` reads the file too, the class names as groups.

    Args:
      colours: RGB of each class.
    """

    def write(file: BinaryIO) -> None:
        counts = [0] * len(class_names)
        file.write(b'{"type": "FeatureCollection", "features": [')
        for number, region in enumerate(regions):
            counts[region.class_id] += 1
            name, colour = class_names[region.class_id], colours[region.class_id]
            feature = _feature(region, name, f"{name} {counts[region.class_id]}", colour)
            file.write(b",\n" if number else b"\n")
            file.write(json.dumps(feature, allow_nan=False).encode())
        file.write(b"\n]}\n")

    replace_file(path, write)


def _feature(region: Region, class_name: str, name: str, colour: tuple[int, int, int]) -> dict[str, Any]:
    area = {"Area px": region.area_px} if region.area_um2 is None else {"Area µm^2": region.area_um2}
    return {
        "type": "Feature",
        "geometry": shapely.geometry.mapping(region.polygon),
        "properties": {
            "objectType": "annotation",
            "name": name,
            "classification": {"name": class_name, "color": list(colour)},
            "measurements": {
                **area,
                "Mean probability": region.mean_probability,
                "Peak probability": region.peak_probability,
            },
        },
    }
