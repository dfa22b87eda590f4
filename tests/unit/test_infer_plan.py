from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from trainer.errors import ConfigError
from trainer.infer.blend import BLOCK, Blender, blocks_of
from trainer.infer.plan import Axis, plan_tiles

AXES = st.integers(4, 70).flatmap(
    lambda tile: st.builds(Axis, st.integers(1, 400), st.just(tile), st.integers(0, (tile - 1) // 2))
)


@given(AXES)
def test_weights_of_all_tiles_add_up_to_one_at_every_pixel(axis: Axis) -> None:
    total = np.zeros(max(axis.length, axis.tile))
    for number, origin in enumerate(axis.origins):
        weights = axis.weights(number)
        assert weights.min() >= 0
        total[origin : origin + axis.tile] += weights
    np.testing.assert_allclose(total[: axis.length], 1, atol=1e-6)
    np.testing.assert_array_equal(total[axis.length :], 0)


@given(AXES)
def test_tiles_end_with_the_map_and_none_counts_within_half_an_overlap_of_a_cut_edge(axis: Axis) -> None:
    assert axis.origins[0] == 0
    assert axis.origins[-1] + axis.tile == max(axis.length, axis.tile)
    for number, origin in enumerate(axis.origins):
        first, end = axis.kept(number)
        assert first == 0 or first - origin >= axis.overlap / 2
        assert end == axis.length or origin + axis.tile - end >= axis.overlap / 2


@pytest.mark.parametrize("overlap", [-1, 32, 64])
def test_tiles_that_do_not_advance_are_refused(overlap: int) -> None:
    with pytest.raises(ConfigError, match="--overlap: tiles of 64 px share twice") as e:
        plan_tiles((100, 100), 64, overlap)
    assert e.value.fix == "0 to 31; 8 is the default"


def blended(plan, tiles: list[int], values: dict[int, float], done=()) -> dict[tuple[int, int], np.ndarray]:
    """Tiles of one constant each; None is one that could not be read."""
    blender, blocks = Blender(plan, tiles, 1, done), {}
    for tile in tiles:
        value = values.get(tile, 1.0)
        for place, block in blender.add(tile, np.full((plan.tile, plan.tile, 1), value, np.float32)):
            assert place not in blocks, "a block is finished once"
            blocks[place] = block[0]
    assert not blender._open and not blender._missing
    return blocks


def test_pixels_beside_a_tile_that_was_left_out_are_not_darker() -> None:
    plan = plan_tiles((1300, 700), 256)
    tiles = [n for n in range(len(plan)) if n not in (8, 9)]
    for (column, row), block in blended(plan, tiles, {}).items():
        is_map = np.zeros((BLOCK, BLOCK), bool)
        is_map[: 700 - row * BLOCK, : 1300 - column * BLOCK] = True
        assert np.isnan(block[~is_map]).all()
        np.testing.assert_allclose(block[is_map & ~np.isnan(block)], 1, atol=1e-6)
        if (column, row) == (0, 0):
            assert np.isnan(block).sum() > 0, "nobody predicts the middle of what was left out"


def test_blocks_that_are_done_are_not_given_again_and_the_others_are_the_same() -> None:
    plan, values = plan_tiles((1300, 700), 256), {n: float(n) for n in range(40)}
    tiles = list(range(len(plan)))
    whole = blended(plan, tiles, values)
    done = {(0, 0), (2, 1)}
    todo = [t for t in tiles if not done.issuperset(blocks_of(plan, t))]
    rest = blended(plan, todo, values, done)
    assert rest.keys() == whole.keys() - done and len(todo) < len(tiles)
    for place, block in rest.items():
        np.testing.assert_array_equal(block, whole[place])
