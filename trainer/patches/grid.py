"""Regular positions of patches on a slide: arithmetic only."""

from __future__ import annotations

import numpy as np


def grid_points(slide_size: tuple[int, int], patch_l0: int, stride_l0: int) -> np.ndarray:
    """Top-left corners of all patches of a regular grid that lie wholly inside the slide.

    Args:
      slide_size: (width, height), level-0 pixels.
      patch_l0, stride_l0: side of a patch and distance of neighbours, level-0 pixels, at least 1.
    Returns:
      [N, 2] int64 (x, y), row by row; N is 0 where the patch is larger than the slide.
    """
    x = np.arange(0, slide_size[0] - patch_l0 + 1, stride_l0, dtype=np.int64)
    y = np.arange(0, slide_size[1] - patch_l0 + 1, stride_l0, dtype=np.int64)
    return np.stack([np.tile(x, len(y)), np.repeat(y, len(x))], axis=1)
