"""The order of patches: agreed on by computing, complete, disjoint, and restartable."""

from __future__ import annotations

import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trainer.batches.loader import Wanted, prefetched, training_jobs
from trainer.batches.order import EpochOrder, epoch_quota, positions_of_rank
from trainer.config.schema import AugmentConfig, SamplingConfig
from trainer.stores import Part


def order_of(n: int, positives: int = 0, sampling: SamplingConfig | None = None, seed: int = 1) -> EpochOrder:
    return EpochOrder(np.arange(n), np.arange(n) < positives, sampling or SamplingConfig(), (seed, 0))


def step_positions(step: int, batch: int, rank: int, world_size: int) -> np.ndarray:
    return positions_of_rank(step * batch * world_size, batch, rank, world_size)


@settings(max_examples=60, deadline=None)
@given(
    n=st.integers(1, 300),
    world_size=st.sampled_from([1, 2, 3, 7, 64]),
    batch=st.integers(1, 9),
    seed=st.integers(0, 99),
)
def test_every_patch_lands_in_exactly_one_shard_once_per_epoch(n: int, world_size: int, batch: int, seed: int) -> None:
    steps = -(-2 * n // (batch * world_size))
    orders = [order_of(n, seed=seed) for _ in range(min(world_size, 3))]  # each rank computes its own
    read = [
        [p for s in range(steps) for p in orders[r % len(orders)].at(step_positions(s, batch, r, world_size))]
        for r in range(world_size)
    ]
    assert len({len(r) for r in read}) == 1, "all ranks take the same number of steps"
    for epoch in (0, 1):
        shards = [[row for e, row in r if e == epoch] for r in read]
        assert sorted(row for s in shards for row in s) == list(range(n))
        assert max(map(len, shards)) - min(map(len, shards)) <= 1


@settings(max_examples=60, deadline=None)
@given(
    n=st.integers(1, 200),
    worlds=st.lists(st.sampled_from([1, 2, 3, 5, 16]), min_size=2, max_size=4),
    batch=st.integers(1, 5),
    steps=st.integers(1, 6),
)
def test_an_epoch_that_goes_on_with_another_number_of_ranks_still_shows_every_patch_once(
    n: int, worlds: list[int], batch: int, steps: int
) -> None:
    order, used, read = order_of(n), 0, []
    for world_size in [*worlds, 1]:
        last_leg = -(-max(0, n - used) // batch)
        for _ in range(last_leg if world_size == 1 and used < n else steps):
            for rank in range(world_size):
                read += order.at(positions_of_rank(used, batch, rank, world_size))
            used += batch * world_size
    if used >= n:
        assert sorted(row for epoch, row in read if epoch == 0) == list(range(n))


def test_epochs_and_stages_differ_and_a_seed_repeats() -> None:
    one, other_stage = order_of(50), EpochOrder(np.arange(50), np.zeros(50, bool), SamplingConfig(), (1, 1))
    assert not np.array_equal(one.epoch(0), one.epoch(1))
    assert not np.array_equal(one.epoch(0), other_stage.epoch(0))
    np.testing.assert_array_equal(one.epoch(3), order_of(50).epoch(3))


@pytest.mark.parametrize(
    ("positive", "negative", "sampling", "quota"),
    [
        (10, 90, SamplingConfig(), (10, 90)),
        (10, 90, SamplingConfig(positive_share=0.5), (10, 10)),
        (10, 90, SamplingConfig(positive_share=0.25), (10, 30)),
        (10, 90, SamplingConfig(positive_share=0.5, patches_per_epoch=60), (30, 30)),
        (0, 90, SamplingConfig(positive_share=0.5), (0, 90)),
        (10, 0, SamplingConfig(positive_share=0.5), (10, 0)),
        (10, 90, SamplingConfig(positive_share=0.0), (0, 90)),
        (10, 90, SamplingConfig(patches_per_epoch=50), (5, 45)),
    ],
)
def test_an_epoch_holds_the_wanted_share(
    positive: int, negative: int, sampling: SamplingConfig, quota: tuple[int, int]
) -> None:
    assert epoch_quota(positive, negative, sampling) == quota
    order = order_of(positive + negative, positive, sampling).epoch(0)
    assert int((order < positive).sum()) == quota[0]
    assert len(order) == sum(quota)


def test_a_pool_that_is_too_small_is_repeated_evenly() -> None:
    order = order_of(12, 2, SamplingConfig(positive_share=0.5, patches_per_epoch=10)).epoch(0)
    assert np.bincount(order, minlength=12)[:2].tolist() in ([3, 2], [2, 3])


class SlowStore:
    def read(self, rows: np.ndarray, part: Part) -> tuple[np.ndarray, np.ndarray]:
        time.sleep(0.002 * (int(rows[0]) % 3))
        return np.full((1, 8, 8, 3), rows[0], np.uint8), np.full((1, 8, 8), rows[0] % 2, np.uint8)


def test_batches_come_in_order_whatever_thread_was_faster_and_resume_where_they_stopped() -> None:
    config = AugmentConfig(brightness=0, contrast=0, saturation=0)

    def rows_of(steps: range) -> list[list[int]]:
        wanted = (Wanted(order_of(20).at(step_positions(s, 4, 1, 2)), 8, (0, 8)) for s in steps)
        jobs = training_jobs(SlowStore(), wanted, config, 1)
        return [images[:, 0, 0, 0].tolist() for images, _ in prefetched(jobs, threads=3, prefetch_batches=2)]

    expected = [[row for _, row in order_of(20).at(step_positions(s, 4, 1, 2))] for s in range(6)]
    assert rows_of(range(6)) == expected
    assert rows_of(range(4, 6)) == expected[4:]


def test_an_unreadable_patch_stops_the_batches_with_its_own_error() -> None:
    def jobs():
        yield [lambda: (np.zeros((4, 4, 3), np.uint8), np.zeros((4, 4), np.uint8))]

        def fail():
            raise OSError("slide_7.tif is gone")

        yield [fail]

    batches = prefetched(jobs(), threads=2, prefetch_batches=2)
    assert next(batches)[0].shape == (1, 4, 4, 3)
    with pytest.raises(OSError, match=r"slide_7.tif is gone"):
        next(batches)
