"""Where everything lies on a synthetic slide, as numbers: outlines, islands, labels. No pixels and no files.

`paint.py` turns a layout into pixels and `files.py` into an annotation; `bound.py` says what a field of view can know.
"""

from __future__ import annotations

import dataclasses
import math

import numpy as np

COMPARTMENT_RADIUS_PX = (100.0, 134.0)  # level-0 px, mean radius of one outline; packing shrinks some towards 100
MARKER_RADIUS_PX = 14.0
GAP_PX = 16.0  # least stroma between two compartments
TISSUE_MARGIN_PX = 26.0  # least stroma between a compartment and the tissue's edge, which paint.py frays by 10 px
FILL = 0.64  # discs to begin with, as a share of the tissue; squeezed to 0.57-0.62 (24 slides of 2048 and 3072 px)
TUMOUR_SHARE = 0.4  # of the compartments of a tumour slide, by number; a normal slide has none
ISLAND_SHARE = 0.25  # of all compartments, whatever their label, enclose a small island of stroma
ISLAND_RADIUS_PX = (14.0, 20.0)
NUM_PACKING_STEPS = 600


@dataclasses.dataclass(frozen=True, kw_only=True)
class Outline:
    """A round-ish closed curve r(theta) = l0_radius * (1 + sum_k Re(wave_k * exp(i k theta))), k = 2, 3, ...

    Level-0 coordinates are continuous: the pixel in column c covers [c, c + 1) and its centre is c + 0.5.
    """

    l0_x: float
    l0_y: float
    l0_radius: float
    waves: tuple[complex, ...]

    @property
    def l0_reach(self) -> float:
        """No point of the curve is farther from the centre."""
        return self.l0_radius * (1 + sum(abs(wave) for wave in self.waves))

    def depth(self, l0_x: np.ndarray, l0_y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Radial distance inside the curve (negative outside) and distance from the centre, both float32 in px."""
        z = (l0_x - self.l0_x).astype(np.float32) + 1j * (l0_y - self.l0_y).astype(np.float32)
        distance = np.abs(z)
        direction = z / np.maximum(distance, np.float32(1e-6))
        power, radius = direction, np.ones_like(distance)
        for wave in self.waves:  # powers of exp(i theta) are far cheaper than arctan2 and cosines on a whole image
            power = power * direction
            radius += (power * np.complex64(wave)).real
        return np.float32(self.l0_radius) * radius - distance, distance

    def polygon(self, num_points: int) -> np.ndarray:
        """[num_points, 2] float64, (x, y) on the curve in level-0 px, in the order of the angle."""
        theta = np.linspace(0, 2 * math.pi, num_points, endpoint=False)
        waves = sum((np.exp(1j * k * theta) * wave).real for k, wave in enumerate(self.waves, start=2))
        points = self.l0_radius * (1 + waves) * np.exp(1j * theta)
        return np.stack([points.real + self.l0_x, points.imag + self.l0_y], axis=1)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Compartment:
    """One nest of cells; its label shows only in the marker at its centre. The island, if any, is not part of it."""

    outline: Outline
    island: Outline | None
    is_tumour: bool


@dataclasses.dataclass(frozen=True, kw_only=True)
class SlideLayout:
    l0_size: int
    tissue: Outline
    compartments: tuple[Compartment, ...]
    texture_seed: tuple[int, ...]  # of everything that paint.py draws at random; labels play no part in it


def plan_slide(l0_size: int, seed: tuple[int, ...], *, has_tumour: bool) -> SlideLayout:
    """The layout of one slide. Outlines and islands are drawn before the labels, so that none depends on a label."""
    shapes, labels, texture = np.random.SeedSequence(seed).spawn(3)
    rng = np.random.default_rng(shapes)
    tissue = Outline(
        l0_x=l0_size / 2,
        l0_y=l0_size / 2,
        l0_radius=0.465 * l0_size,
        waves=(_wave(rng, 0.025), _wave(rng, 0.02), -0.1 + _wave(rng, 0.01), _wave(rng, 0.015), _wave(rng, 0.008)),
    )
    outlines = _pack(rng, tissue)
    islands = [_island(rng, outline) if rng.random() < ISLAND_SHARE else None for outline in outlines]
    num_tumour = round(TUMOUR_SHARE * len(outlines)) if has_tumour else 0
    is_tumour = np.random.default_rng(labels).permutation(len(outlines)) < num_tumour
    return SlideLayout(
        l0_size=l0_size,
        tissue=tissue,
        compartments=tuple(
            Compartment(outline=outline, island=island, is_tumour=bool(label))
            for outline, island, label in zip(outlines, islands, is_tumour, strict=True)
        ),
        texture_seed=tuple(int(word) for word in texture.generate_state(4)),
    )


def _wave(rng: np.random.Generator, amplitude: float) -> complex:
    return complex(amplitude * rng.uniform(0.3, 1) * np.exp(2j * math.pi * rng.random()))


def _island(rng: np.random.Generator, outline: Outline) -> Outline:
    """Half-way between marker and rim, where it touches neither: 100 * 0.94 - 20 * 1.1 = 72 > 56 + 12 > 14 + 22."""
    away = outline.l0_radius * rng.uniform(0.5, 0.56) * np.exp(2j * math.pi * rng.random())
    return Outline(
        l0_x=outline.l0_x + away.real,
        l0_y=outline.l0_y + away.imag,
        l0_radius=rng.uniform(*ISLAND_RADIUS_PX),
        waves=(_wave(rng, 0.06), _wave(rng, 0.04)),
    )


def _pack(rng: np.random.Generator, tissue: Outline) -> list[Outline]:
    """Compartments that keep GAP_PX from each other and TISSUE_MARGIN_PX from the edge of the tissue.

    Discs start at random places, push each other apart and shrink while they are squeezed, which packs denser (0.6 of
    the tissue) than drawing places until one is free (0.45); those that still overlap at the end are dropped.
    """
    least, most = COMPARTMENT_RADIUS_PX
    num = round(FILL * tissue.l0_radius**2 / np.square([least, most]).mean())
    radii = rng.uniform(least, most, num)
    waves = [(_wave(rng, 0.04), _wave(rng, 0.025), _wave(rng, 0.015), _wave(rng, 0.01)) for _ in radii]
    bulge = np.array([1 + sum(abs(wave) for wave in ws) for ws in waves])
    centre, edge = complex(tissue.l0_x, tissue.l0_y), _as_complex(tissue.polygon(720))
    z = centre + 0.9 * tissue.l0_radius * np.sqrt(rng.random(num)) * np.exp(2j * math.pi * rng.random(num))
    for step in range(NUM_PACKING_STEPS):
        push = _push_apart(z, radii * bulge)
        z = z + push + _push_inside(z, radii * bulge, edge, centre)
        if step > NUM_PACKING_STEPS // 2:
            overlap = _overlaps(z, radii * bulge, GAP_PX + 1)[0].max(axis=1)
            radii = np.maximum(least, radii * np.where(overlap > 0, 0.998, 1))
    kept = _without_overlaps(z, radii * bulge, edge)
    return [Outline(l0_x=z[i].real, l0_y=z[i].imag, l0_radius=float(radii[i]), waves=waves[i]) for i in kept]


def _as_complex(points: np.ndarray) -> np.ndarray:
    return points[:, 0] + 1j * points[:, 1]


def _overlaps(z: np.ndarray, reach: np.ndarray, gap: float) -> tuple[np.ndarray, np.ndarray]:
    apart = z[:, None] - z[None, :]
    overlap = reach[:, None] + reach[None, :] + gap - np.abs(apart)
    np.fill_diagonal(overlap, 0)
    return np.maximum(overlap, 0), apart / np.maximum(np.abs(apart), 1e-9)


def _push_apart(z: np.ndarray, reach: np.ndarray) -> np.ndarray:
    overlap, direction = _overlaps(z, reach, GAP_PX + 2)  # 2 px more than asked: springs never quite come to rest
    return 0.4 * (overlap * direction).sum(axis=1)


def _push_inside(z: np.ndarray, reach: np.ndarray, edge: np.ndarray, centre: complex) -> np.ndarray:
    short = reach + TISSUE_MARGIN_PX - np.abs(z[:, None] - edge[None, :]).min(axis=1)
    inwards = (centre - z) / np.maximum(np.abs(centre - z), 1e-9)
    return 0.7 * np.maximum(short, 0) * inwards


def _without_overlaps(z: np.ndarray, reach: np.ndarray, edge: np.ndarray) -> list[int]:
    inside = np.abs(z[:, None] - edge[None, :]).min(axis=1) > reach + TISSUE_MARGIN_PX - 4
    kept = [int(i) for i in np.flatnonzero(inside)]
    while len(kept) > 1:
        overlap, _ = _overlaps(z[kept], reach[kept], GAP_PX)
        if overlap.max() == 0:
            break
        kept.pop(int(overlap.sum(axis=1).argmax()))
    return kept
