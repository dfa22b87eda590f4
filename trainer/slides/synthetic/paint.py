"""A slide's layout as pixels: two stain maps, haematoxylin and eosin, turned into RGB by the Beer-Lambert law.

Everything but the markers is painted without looking at the labels (`_markers` alone reads `is_tumour`), so two layouts
that differ in labels only give images that are equal, bit for bit, outside the markers.
"""

from __future__ import annotations

import math

import numpy as np
from scipy import ndimage

from trainer.slides.synthetic.layout import MARKER_RADIUS_PX, SlideLayout

# Optical density per unit of stain in R, G, B. Haematoxylin: Ruifrok & Johnston 2001, "Quantification of histochemical
# staining". Eosin: the reference vector of Macenko et al. 2009, "A method for normalizing histology slides"; Ruifrok's
# eosin (0.07, 0.99, 0.11) came out magenta.
HAEMATOXYLIN_OD = (0.65, 0.70, 0.29)
EOSIN_OD = (0.2159, 0.8012, 0.5581)
GLASS_RGB = (243, 241, 244)

FAR_PX = -60.0  # depth of stroma farther than this from any compartment
NUCLEUS_PITCH_PX = 17
STROMA_PITCH_PX = 34


def paint_slide(layout: SlideLayout) -> np.ndarray:
    """uint8 [size, size, 3], RGB, level 0 of the slide."""
    rng = np.random.default_rng(layout.texture_seed)
    size = layout.l0_size
    tissue = _tissue(rng, layout)
    depth, room = _depth(layout)
    nest = np.clip(depth + 0.5, 0, 1)

    eosin = 0.36 + 0.07 * _smooth_noise(rng, size, 48) + _fibres(rng, depth)
    eosin += nest * (0.40 + 0.05 * _smooth_noise(rng, size, 12) - eosin)
    haem = 0.09 + 0.02 * _smooth_noise(rng, size, 32)
    haem += nest * (0.30 + 0.05 * _smooth_noise(rng, size, 16) - haem)

    tissue *= 1 - _clefts(rng, depth)
    nuclei = np.zeros((size, size), np.float32)
    _stamp(nuclei, *_nest_nuclei(rng, room))
    _stamp(nuclei, *_stroma_nuclei(rng, depth, tissue))
    haem += nuclei * (1.15 + 0.25 * _smooth_noise(rng, size, 6) - haem)
    eosin -= 0.1 * nuclei
    eosin += 0.02 * rng.standard_normal(eosin.shape, np.float32)

    _markers(layout, haem, eosin)
    strength = [rng.normal(1, 0.06), rng.normal(1, 0.06)]  # of the two stains: no two laboratories' slides look alike
    return _to_rgb(haem * tissue * strength[0], eosin * tissue * strength[1])


def _to_rgb(haem: np.ndarray, eosin: np.ndarray) -> np.ndarray:
    rgb = np.empty((*haem.shape, 3), np.uint8)
    for channel, (h, e, white) in enumerate(zip(HAEMATOXYLIN_OD, EOSIN_OD, GLASS_RGB, strict=True)):
        light = np.exp(-h * haem - e * eosin)
        rgb[..., channel] = np.clip(white * light + 0.5, 0, 255)
    return rgb


def _smooth_noise(rng: np.random.Generator, size: int, cell: int) -> np.ndarray:
    """float32 [size, size], mean 0, standard deviation about 1, smooth over `cell` px."""
    if cell > 8:  # smooth enough to be made at a quarter of the size and enlarged: a third of the time
        return _enlarge(_smooth_noise(rng, -(-size // 4) + 1, cell // 4), 4, size)
    num = -(-size // cell) + 2
    coarse = 1.8 * rng.standard_normal((num, num), np.float32)  # the filters take the deviation down to 0.55 (measured)
    field = coarse.repeat(cell, axis=0).repeat(cell, axis=1)
    for _ in range(2):
        field = ndimage.uniform_filter(field, cell, mode="nearest")
    return field[cell : cell + size, cell : cell + size]


def _enlarge(coarse: np.ndarray, factor: int, size: int) -> np.ndarray:
    """[size, size] by linear interpolation between samples `factor` px apart, the first at the image's corner."""
    wide = np.ascontiguousarray(_stretch(np.ascontiguousarray(coarse.T), factor).T)
    return _stretch(wide, factor)[:size, :size]


def _stretch(rows: np.ndarray, factor: int) -> np.ndarray:
    fine = np.empty(((len(rows) - 1) * factor, rows.shape[1]), np.float32)
    for phase in range(factor):
        fine[phase::factor] = rows[:-1] + (phase + 0.5) / factor * (rows[1:] - rows[:-1])
    return fine


def _tissue(rng: np.random.Generator, layout: SlideLayout) -> np.ndarray:
    """Share of tissue per pixel; the smooth outline is frayed by up to 10 px."""
    step = 4
    num = -(-layout.l0_size // step) + 1
    at = np.arange(num) * step
    depth, _ = layout.tissue.depth(at[None, :], at[:, None])
    fray = 3 * _smooth_noise(rng, num, 6) + 3 * _smooth_noise(rng, num, 2)  # in px of level 0
    return _enlarge(np.clip((depth + np.clip(fray, -10, 10)) / step + 0.5, 0, 1), step, layout.l0_size)


def _depth(layout: SlideLayout) -> tuple[np.ndarray, np.ndarray]:
    """How deep each pixel lies inside a compartment, in px (negative in stroma), and the room there for nuclei.

    Both are distances along the radius. An island counts as stroma; the marker's place has no room, whatever the label.
    """
    depth = np.full((layout.l0_size, layout.l0_size), FAR_PX, np.float32)
    room = depth.copy()
    for compartment in layout.compartments:
        outline = compartment.outline
        box, (x, y) = _box(outline.l0_x, outline.l0_y, outline.l0_reach - FAR_PX, layout.l0_size)
        inside, distance = outline.depth(x, y)
        if compartment.island is not None:
            inside = np.minimum(inside, -compartment.island.depth(x, y)[0])
        depth[box] = np.maximum(depth[box], inside)
        room[box] = np.maximum(room[box], np.minimum(inside, distance - np.float32(MARKER_RADIUS_PX)))
    return depth, room


def _box(
    l0_x: float, l0_y: float, reach: float, size: int
) -> tuple[tuple[slice, slice], tuple[np.ndarray, np.ndarray]]:
    """The pixels within `reach` of a point: slices into the image, and the x and y of the pixels' centres."""
    left, right = max(0, math.floor(l0_x - reach)), min(size, math.ceil(l0_x + reach))
    top, bottom = max(0, math.floor(l0_y - reach)), min(size, math.ceil(l0_y + reach))
    x, y = np.arange(left, right) + 0.5, np.arange(top, bottom) + 0.5
    return (slice(top, bottom), slice(left, right)), (x[None, :], y[:, None])


def _fibres(rng: np.random.Generator, depth: np.ndarray) -> np.ndarray:
    """Eosin of collagen: waves that run along the compartments' outlines and meander where there are none near."""
    size = depth.shape[0]
    phase = 0.10 * depth + 2.2 * _smooth_noise(rng, size, 40) + 0.5 * _smooth_noise(rng, size, 10)
    return 0.13 * np.sin(2.4 * phase) * (1 + 0.5 * _smooth_noise(rng, size, 24))


def _clefts(rng: np.random.Generator, depth: np.ndarray) -> np.ndarray:
    """Share of white per pixel: thin retraction clefts beside compartments and slits between fibres."""
    size = depth.shape[0]
    where, course = _smooth_noise(rng, size, 40), _smooth_noise(rng, size, 28)
    beside = np.clip(2.5 * (where - 0.9), 0, 1) * np.clip(2.6 - np.abs(depth + 4.5), 0, 1)
    between = np.clip(2.5 * (-where - 0.9), 0, 1) * np.clip(1.6 - 16 * np.abs(course), 0, 1) * (depth < -4)
    return np.maximum(beside, between)


def _scatter(rng: np.random.Generator, size: int, pitch: float, jitter: float) -> tuple[np.ndarray, np.ndarray]:
    """Points of a jittered hexagonal grid: x and y, all inside the image."""
    row, col = np.mgrid[0 : int(size / (0.866 * pitch)) + 1, 0 : int(size / pitch) + 1]
    x = (col + 0.5 * (row % 2)) * pitch + rng.normal(0, jitter, row.shape)
    y = row * 0.866 * pitch + rng.normal(0, jitter, row.shape)
    is_inside = (x >= 0) & (y >= 0) & (x < size) & (y < size)
    return x[is_inside], y[is_inside]


def _nest_nuclei(rng: np.random.Generator, room: np.ndarray) -> tuple[np.ndarray, ...]:
    x, y = _scatter(rng, room.shape[0], NUCLEUS_PITCH_PX, 3.2)
    keep = (room[y.astype(int), x.astype(int)] > 6) & (rng.random(x.shape) < 0.93)
    x, y = x[keep], y[keep]
    long = rng.normal(5.4, 0.7, x.shape).clip(3.5, 7.5)
    return (
        x,
        y,
        long,
        long * rng.uniform(0.65, 1, x.shape),
        rng.uniform(0, math.pi, x.shape),
        rng.uniform(0.6, 1, x.shape),
    )


def _stroma_nuclei(rng: np.random.Generator, depth: np.ndarray, tissue: np.ndarray) -> tuple[np.ndarray, ...]:
    """Spindles along the outline of the nearest compartment."""
    x, y = _scatter(rng, depth.shape[0], STROMA_PITCH_PX, 9)
    row, col = y.astype(int), x.astype(int)
    keep = (depth[row, col] < -6) & (tissue[row, col] > 0.9)
    x, y, row, col = x[keep], y[keep], row[keep], col[keep]
    last = depth.shape[0] - 1
    slope_x = depth[row, np.minimum(col + 2, last)] - depth[row, np.maximum(col - 2, 0)]
    slope_y = depth[np.minimum(row + 2, last), col] - depth[np.maximum(row - 2, 0), col]
    along = np.arctan2(slope_x, -slope_y) + rng.normal(0, 0.35, x.shape)
    return x, y, rng.uniform(5, 9, x.shape), rng.uniform(1.6, 2.6, x.shape), along, rng.uniform(0.6, 0.95, x.shape)


def _stamp(
    canvas: np.ndarray,
    x: np.ndarray,
    y: np.ndarray,
    long: np.ndarray,
    short: np.ndarray,
    angle: np.ndarray,
    strength: np.ndarray,
) -> None:
    """Raise the canvas to soft-edged ellipses, all at once; the maximum makes the order of the ellipses irrelevant."""
    reach = math.ceil(float(long.max())) + 2
    offset = np.arange(-reach, reach + 1)
    row = y.astype(int)[:, None, None] + offset[None, :, None]
    col = x.astype(int)[:, None, None] + offset[None, None, :]
    dx, dy = (a.astype(np.float32) for a in (col + 0.5 - x[:, None, None], row + 0.5 - y[:, None, None]))
    cos, sin, long, short, strength = (
        a.astype(np.float32)[:, None, None] for a in (np.cos(angle), np.sin(angle), long, short, strength)
    )
    radius = np.hypot((dx * cos + dy * sin) / long, (dy * cos - dx * sin) / short)
    value = strength * np.clip((1 - radius) * short + 0.5, 0, 1)
    row, col = np.broadcast_arrays(row, col)
    keep = (value > 0) & (row >= 0) & (col >= 0) & (row < canvas.shape[0]) & (col < canvas.shape[1])
    np.maximum.at(canvas, (row[keep], col[keep]), value[keep])


def _markers(layout: SlideLayout, haem: np.ndarray, eosin: np.ndarray) -> None:
    """Tumour: a dark whorl of concentric rings, like a keratin pearl. Benign: a pale lumen with a thin rim."""
    for compartment in layout.compartments:
        outline = compartment.outline
        box, (x, y) = _box(outline.l0_x, outline.l0_y, MARKER_RADIUS_PX + 1, layout.l0_size)
        r = np.hypot(x - outline.l0_x, y - outline.l0_y).astype(np.float32)
        turn = np.arctan2(y - outline.l0_y, x - outline.l0_x).astype(np.float32)
        cover = np.clip(MARKER_RADIUS_PX - r + 0.5, 0, 1)
        if compartment.is_tumour:
            marker_haem, marker_eosin = 1.15 + 0.35 * np.sin(r * 1.5 + turn), 0.75 - 0.2 * np.sin(r * 1.5 + turn)
        else:
            rim = np.clip(r - (MARKER_RADIUS_PX - 3), 0, 1)
            marker_haem, marker_eosin = 0.02 + 0.25 * rim, 0.04 + 0.5 * rim
        haem[box] += cover * (marker_haem - haem[box])
        eosin[box] += cover * (marker_eosin - eosin[box])
