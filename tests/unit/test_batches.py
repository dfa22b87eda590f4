"""The order of patches: agreed on by computing, complete, disjoint, and restartable."""

from __future__ import annotations

import time
from functools import partial

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trainer.batches.augment import augment, jitter_colour
from trainer.batches.loader import prefetched, training_jobs
from trainer.batches.order import EpochOrder, epoch_quota, positions_of_step
from trainer.config.schema import AugmentConfig, SamplingConfig
from trainer.slides.stain import hed_jitter


def order_of(n: int, positives: int = 0, sampling: SamplingConfig | None = None, seed: int = 1) -> EpochOrder:
    return EpochOrder(np.arange(n), np.arange(n) < positives, sampling or SamplingConfig(), (seed, 0))


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
        [p for s in range(steps) for p in orders[r % len(orders)].at(positions_of_step(s, batch, r, world_size))]
        for r in range(world_size)
    ]
    assert len({len(r) for r in read}) == 1, "all ranks take the same number of steps"
    for epoch in (0, 1):
        shards = [[row for e, row in r if e == epoch] for r in read]
        assert sorted(row for s in shards for row in s) == list(range(n))
        assert max(map(len, shards)) - min(map(len, shards)) <= 1


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


IMAGE = np.random.default_rng(0).integers(0, 256, (32, 32, 3), np.uint8)
LABEL = np.random.default_rng(1).integers(0, 3, (32, 32), np.uint8)


def test_augmentation_moves_labels_with_pixels() -> None:
    still = AugmentConfig(brightness=0, contrast=0, saturation=0)
    tagged = np.repeat(LABEL[..., None] * 50, 3, axis=-1)
    images = []
    for seed in range(16):
        image, label = augment(tagged, LABEL, still, np.random.default_rng(seed))
        np.testing.assert_array_equal(image[..., 0], label * 50)
        images.append(label.tobytes())
    assert len(set(images)) > 4


def test_augmentation_is_a_function_of_its_seed_and_keeps_label_values() -> None:
    one = augment(IMAGE, LABEL, AugmentConfig(), np.random.default_rng([1, 2, 3]))
    two = augment(IMAGE, LABEL, AugmentConfig(), np.random.default_rng([1, 2, 3]))
    np.testing.assert_array_equal(one[0], two[0])
    np.testing.assert_array_equal(np.bincount(one[1].ravel()), np.bincount(LABEL.ravel()))


def test_colour_jitter_follows_its_definition() -> None:
    np.testing.assert_array_equal(jitter_colour(IMAGE, 1, 1, 1), IMAGE)
    np.testing.assert_array_equal(jitter_colour(IMAGE // 2, 1.5, 1, 1), np.rint(IMAGE // 2 * 1.5).astype(np.uint8))
    grey = jitter_colour(IMAGE, 1, 1, 0)
    luma = IMAGE @ np.array([0.299, 0.587, 0.114])
    assert np.abs(grey.astype(float) - luma[..., None]).max() <= 1
    flat = jitter_colour(IMAGE, 1, 0, 1)
    assert np.abs(flat.astype(float) - luma.mean()).max() <= 1


def test_stain_jitter_is_applied_between_moving_and_colour_jitter_and_draws_nothing_before_them() -> None:
    plain, stained = AugmentConfig(), AugmentConfig(hed=0.2)
    for seed in range(4):
        image, label = augment(IMAGE, LABEL, stained, np.random.default_rng(seed))
        before, label_before = augment(IMAGE, LABEL, plain, np.random.default_rng(seed))
        np.testing.assert_array_equal(label, label_before)
        assert (image != before).mean() > 0.5
        rng = np.random.default_rng(seed)
        turns, mirror, colour = int(rng.integers(4)), bool(rng.integers(2)), 1 + rng.uniform(-1, 1, 3) * 0.1
        alpha, beta = 0.2 * rng.uniform(-1, 1, (2, 3))
        moved = np.rot90(IMAGE, turns)[:, :: -1 if mirror else 1]
        np.testing.assert_array_equal(jitter_colour(moved, *colour), before)
        np.testing.assert_array_equal(jitter_colour(hed_jitter(moved, 1 + alpha, beta), *colour), image)


def store_read(rows: np.ndarray, delay_s: float = 0.0) -> tuple[np.ndarray, np.ndarray]:
    time.sleep(delay_s * (int(rows[0]) % 3))
    return np.full((1, 8, 8, 3), rows[0], np.uint8), np.full((1, 8, 8), rows[0] % 2, np.uint8)


def test_batches_come_in_order_whatever_thread_was_faster_and_resume_where_they_stopped() -> None:
    config = AugmentConfig(brightness=0, contrast=0, saturation=0)

    def rows_of(steps: range) -> list[list[int]]:
        jobs = training_jobs(partial(store_read, delay_s=0.002), order_of(20), steps, 4, 1, 2, config, 1)
        return [images[:, 0, 0, 0].tolist() for images, _ in prefetched(jobs, threads=3, prefetch_batches=2)]

    expected = [[row for _, row in order_of(20).at(positions_of_step(s, 4, 1, 2))] for s in range(6)]
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
