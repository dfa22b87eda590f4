from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from trainer.patches.grid import grid_points


def test_points_run_row_by_row() -> None:
    assert grid_points((10, 7), 4, 3).tolist() == [[0, 0], [3, 0], [6, 0], [0, 3], [3, 3], [6, 3]]


@given(st.integers(1, 300), st.integers(1, 300), st.integers(1, 120), st.integers(1, 120))
def test_all_patches_lie_inside_and_no_further_one_would(width: int, height: int, patch: int, stride: int) -> None:
    points = grid_points((width, height), patch, stride)
    assert points.dtype == np.int64 and (points % stride == 0).all()
    assert (points + patch <= [width, height]).all()
    counts = [max(0, (side - patch) // stride + 1) for side in (width, height)]
    assert len(points) == counts[0] * counts[1] == len({(int(x), int(y)) for x, y in points})


def test_patch_of_the_slides_size_fits_once_and_a_larger_one_never() -> None:
    assert grid_points((64, 64), 64, 64).tolist() == [[0, 0]]
    assert grid_points((64, 63), 64, 64).shape == (0, 2)
