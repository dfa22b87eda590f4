from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from trainer.batches.order import EpochOrder, hard_quota, positions_of_rank, rows_of_rank
from trainer.config.schema import SamplingConfig
from trainer.errors import DataError
from trainer.patches.hard import hard_rows
from trainer.patches.index import PatchIndex, SlideInfo
from trainer.patches.sample import capped, classes_of, first_of_each_class, random_points, slide_rng
from trainer.slides.dataset import SlideRecord


@given(st.integers(1, 300), st.integers(1, 300), st.integers(1, 120), st.integers(0, 99))
def test_random_patches_lie_inside_and_one_lies_in_every_cell(width: int, height: int, side: int, seed: int) -> None:
    points = random_points((width, height), side, slide_rng(seed, "s.tif", side))
    if min(width, height) < side:
        assert len(points) == 0
        return
    assert points.min() >= 0 and (points + side <= (width, height)).all()
    cell = max(1, side // 2)
    cells = {tuple(c) for c in points // cell}
    assert len(cells) == len(points) == -(-(width - side + 1) // cell) * -(-(height - side + 1) // cell)


def test_draws_depend_on_seed_slide_and_size_only() -> None:
    keys = ((1, "a", 64), (2, "a", 64), (1, "b", 64), (1, "a", 32))
    draws = {tuple(slide_rng(*key).integers(0, 1 << 30, 3)) for key in keys}
    assert len(draws) == 4
    assert slide_rng(1, "a", 64).random() == slide_rng(1, "a", 64).random()


def test_a_patch_has_every_class_it_holds_enough_of_and_the_first_only_alone() -> None:
    shares = np.array([[1, 0, 0], [0.9, 0.1, 0], [0.995, 0.005, 0], [0, 0.5, 0.5], [0, 0, 0]], np.float32)
    assert classes_of(shares, 0.01).astype(int).tolist() == [[1, 0, 0], [0, 1, 0], [1, 0, 0], [0, 1, 1], [1, 0, 0]]
    assert classes_of(shares, 0.0).astype(int)[2].tolist() == [0, 1, 0]
    assert first_of_each_class(shares, 1, 0.01).tolist() == [True, True, False, True, False]


@given(st.integers(0, 60), st.integers(0, 60), st.integers(1, 30))
def test_cap_holds_for_each_side_and_takes_all_where_there_are_fewer(positive: int, negative: int, cap: int) -> None:
    tumour = np.r_[np.full(positive, 0.5), np.zeros(negative)].astype(np.float32)
    kept = capped(np.stack([1 - tumour, tumour], axis=1), cap, 0.01, np.random.default_rng(0))
    assert kept[:positive].sum() == min(cap, positive) and kept[positive:].sum() == min(cap, negative)


@pytest.fixture
def index() -> PatchIndex:
    """Two slides of 2 x 2 patches of 64 px read at downsample 2, so 128 level-0 px a side."""
    places = np.array([(0, 0), (128, 0), (0, 128), (128, 128)] * 2, np.int32)
    slides = tuple(SlideRecord(Path(f"/d/{name}.tif"), None, split="train") for name in "ab")
    ones = np.ones(8, np.float32)
    return PatchIndex(
        slides, (SlideInfo((256, 256), 2.0),) * 2, np.repeat(np.arange(2, dtype=np.int32), 4), places[:, 0],
        places[:, 1], np.full(8, 64, np.int32), ones, np.stack([ones, 0 * ones], axis=1), ("normal", "tumour"), (64,),
    )  # fmt: skip


def test_patches_that_hold_a_listed_point_are_hard(index: PatchIndex, tmp_path: Path) -> None:
    listed = tmp_path / "hard.csv"
    listed.write_text("slide,x,y,probability\na.tif,10,20,0.9\nb,200,250.5,0.8\nb,201,250,0.8\n/far/b.tif,130,3,0.7\n")
    assert np.flatnonzero(hard_rows(index, np.arange(8), listed)).tolist() == [0, 5, 7]
    assert hard_rows(index, np.array([7, 0, 1]), listed).tolist() == [True, True, False]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("slide,x\na,1\n", r"hard\.csv:1: has no column 'y'"),
        ("slide,x,y\nc.tif,1,2\n", r"hard\.csv:2: slide 'c\.tif' is not in the data set"),
        ("slide,x,y\na,one,2\n", r"hard\.csv:2: x 'one', y '2' is no point"),
        ("slide,x,y\na,nan,2\n", r"hard\.csv:2: x 'nan'"),
        ("slide,x,y\na,1\n", r"hard\.csv:2: x '1', y 'None' is no point"),
        (None, "cannot be read as CSV"),
    ],
)
def test_hard_negative_list_with_a_fault_names_its_line(
    index: PatchIndex, tmp_path: Path, text: str | None, message: str
) -> None:
    listed = tmp_path / "hard.csv"
    if text is not None:
        listed.write_text(text)
    with pytest.raises(DataError, match=message):
        hard_rows(index, np.arange(8), listed)


def test_an_epoch_shows_hard_patches_in_their_share_of_the_negative_ones() -> None:
    rows = np.arange(100)
    positive, hard = rows < 20, (rows >= 90) | (rows < 5)  # a positive patch is never a hard negative
    sampling = SamplingConfig(positive_share=0.5, patches_per_epoch=40, hard_negative_share=0.25)
    epoch = EpochOrder(rows, positive, sampling, (1, 0), hard).epoch(0)
    assert len(epoch) == 40 and (epoch < 20).sum() == 20 and (epoch >= 90).sum() == 5
    without = EpochOrder(rows, positive, sampling, (1, 0))
    np.testing.assert_array_equal(without.epoch(3), EpochOrder(rows, positive, sampling, (1, 0), hard & False).epoch(3))
    assert hard_quota(0, 5, 8, 0.25) == (0, 8) and hard_quota(5, 0, 8, 0.25) == (8, 0)


@given(st.integers(1, 40), st.integers(1, 5), st.integers(1, 4), st.integers(0, 30), st.integers(0, 50))
def test_rows_of_a_rank_are_those_it_reads_step_by_step(
    patches: int, batch: int, world_size: int, steps: int, first: int
) -> None:
    order = EpochOrder(np.arange(patches) * 3, np.zeros(patches, bool), SamplingConfig(), (7,))
    for rank in range(world_size):
        starts = [first + s * batch * world_size for s in range(steps)]
        read = {row for start in starts for _, row in order.at(positions_of_rank(start, batch, rank, world_size))}
        assert rows_of_rank(order, first, steps * batch, rank, world_size).tolist() == sorted(read)
