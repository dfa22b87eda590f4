"""Which positions of a slide become training patches when not all of a grid do: seeded draws, pure functions."""

from __future__ import annotations

import hashlib

import numpy as np


def slide_rng(seed: int, slide_name: str, size: int) -> np.random.Generator:
    """The same draws for a slide and size on any rank, in any order of slides, in any folder."""
    word = hashlib.sha256(f"{seed}:{slide_name}:{size}".encode()).digest()
    return np.random.default_rng(int.from_bytes(word[:8], "little"))


def random_points(
    slide_size: tuple[int, int], patch_l0: int, rng: np.random.Generator, cell_l0: int | None = None
) -> np.ndarray:
    """Uniform random positions, one in each cell of half a patch, so that a draw from them misses no part of a slide.

    Args:
      slide_size: (width, height), level-0 pixels.
      patch_l0: side of a patch, level-0 pixels.
      cell_l0: side of a cell; half a patch where not given.
    Returns:
      [N, 2] int64 (x, y) in random order; patches lie wholly inside the slide. N is 0 where none fits.
    """
    cell = cell_l0 or max(1, patch_l0 // 2)
    room = np.array(slide_size) - patch_l0 + 1  # positions that a corner may take, per axis
    if room.min() < 1:
        return np.zeros((0, 2), np.int64)
    x0, y0 = (np.arange(0, r, cell, dtype=np.int64) for r in room)
    corners = np.stack([np.tile(x0, len(y0)), np.repeat(y0, len(x0))], axis=1)
    width = np.minimum(cell, room - corners)
    return rng.permutation(corners + (rng.random(corners.shape) * width).astype(np.int64))


def classes_of(label_fractions: np.ndarray, positive_from: float) -> np.ndarray:
    """[N, C] bool: a patch has a class from this share of its pixels, and the first class where it has no other."""
    has = label_fractions >= max(positive_from, np.finfo(np.float32).tiny)
    has[:, 0] = ~has[:, 1:].any(axis=1)
    return has


def is_positive(label_fractions: np.ndarray, positive_from: float) -> np.ndarray:
    """[N] bool: patches whose classes other than the first together have this share of the pixels."""
    return np.asarray(label_fractions[:, 1:].sum(axis=1) >= positive_from)


def first_of_each_class(label_fractions: np.ndarray, count: int, positive_from: float) -> np.ndarray:
    """[N] bool: the first `count` patches of each class, of patches in random order."""
    has = classes_of(label_fractions, positive_from)
    return np.asarray((has & (np.cumsum(has, axis=0) <= count)).any(axis=1))


def capped(label_fractions: np.ndarray, cap: int, positive_from: float, rng: np.random.Generator) -> np.ndarray:
    """[N] bool: at most `cap` positive and `cap` negative patches, drawn at random."""
    positive = is_positive(label_fractions, positive_from)
    keep = np.zeros(len(positive), bool)
    for side in (np.flatnonzero(positive), np.flatnonzero(~positive)):
        keep[rng.permutation(side)[:cap]] = True
    return keep
