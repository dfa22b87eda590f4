"""Random changes of one patch, a pure function of (seed, epoch, row): the same on any rank, thread or restart."""

from __future__ import annotations

import numpy as np

from trainer.batches.warp import draw_map, warp
from trainer.config.schema import AugmentConfig
from trainer.slides.stain import hed_jitter

_LUMA = np.array([0.299, 0.587, 0.114], np.float32)  # ITU-R BT.601


def augment(
    image: np.ndarray, label: np.ndarray, config: AugmentConfig, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Flip, turn, zoom, deform, stain-jitter and colour-jitter one patch.

    Args:
      image: [P, P, 3] uint8.
      label: [P, P] uint8, moved with the image; nearest label where pixels are interpolated.
    Returns:
      The same shapes and dtypes.
    """
    turns, mirror = int(rng.integers(4)), bool(rng.integers(2))
    jitter = 1 + rng.uniform(-1, 1, 3) * (config.brightness, config.contrast, config.saturation)
    # what came later draws later, whatever is applied first: the numbers above stay what they were
    stain = config.hed * rng.uniform(-1, 1, (2, 3)) if config.hed else None
    if config.flip:
        image, label = np.rot90(image, turns), np.rot90(label, turns)
        if mirror:
            image, label = image[:, ::-1], label[:, ::-1]
    if config.scale or config.elastic:
        image, label = warp(image, label, draw_map(len(label), config.scale, config.elastic, rng))
    if stain is not None:
        image = hed_jitter(image, 1 + stain[0], stain[1])
    if config.brightness or config.contrast or config.saturation:
        image = jitter_colour(image, *jitter)
    return image, label


def jitter_colour(image: np.ndarray, brightness: float, contrast: float, saturation: float) -> np.ndarray:
    """Scale brightness, contrast around the mean grey, and saturation around each pixel's grey; factors near 1.

    The three are linear in the pixel, so they are one 3x3 matrix and one offset.
    """
    pixels = image.astype(np.float32)
    matrix = saturation * np.eye(3, dtype=np.float32) + (1 - saturation) * np.outer(np.ones(3, np.float32), _LUMA)
    mean_grey = float(pixels.mean(axis=(0, 1)) @ _LUMA)
    changed = pixels @ (brightness * contrast * matrix.T).astype(np.float32)
    changed += np.float32(brightness * (1 - contrast) * mean_grey)
    return np.clip(np.rint(changed), 0, 255).astype(np.uint8)
