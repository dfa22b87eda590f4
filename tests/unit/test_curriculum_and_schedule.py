from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trainer.batches.order import positions_of_rank
from trainer.config.schema import OptimizerConfig, ParallelConfig, PlateauConfig, StageConfig
from trainer.curriculum import START, Batch, Plan, Position, make_plan, plan_batches
from trainer.curriculum.batches import scoring_batches, scoring_splits
from trainer.curriculum.plan import size_sequence
from trainer.errors import ConfigError

STAGES = (
    StageConfig(patch_size=256, local_batch_size=4, epochs=2),
    StageConfig(patch_size=704, local_batch_size=1, steps=5, learning_rate_factor=0.5),
)


def plan_of(stages: tuple[StageConfig, ...], lengths: dict[int, int], world_size: int, done: Position = START) -> Plan:
    return make_plan(stages, plan_batches(stages, lambda size, batch, passes, spatial: True), lengths, world_size, done)


@pytest.mark.parametrize("world_size", [1, 2, 3, 64, 1024])
def test_an_epoch_shows_every_patch_on_any_number_of_ranks(world_size: int) -> None:
    first = plan_of(STAGES, {256: 1001, 704: 100}, world_size).stages[0]
    assert first.global_batch(256) == 4 * world_size
    assert first.num_steps * first.global_batch(256) >= 2 * 1001 > (first.num_steps - 1) * first.global_batch(256)


def test_each_step_belongs_to_one_stage() -> None:
    plan = plan_of(STAGES, {256: 16, 704: 9}, 2)
    assert [(s.first_step, s.end_step, s.largest_size) for s in plan.stages] == [(0, 4, 256), (4, 9, 704)]
    assert plan.total_steps == 9
    assert plan.stages[1].megapixels_at(5) == pytest.approx(2 * 704 * 704 / 1e6)


@pytest.mark.parametrize(
    ("length", "steps"),
    [
        ({"images": 50}, 4),
        ({"steps": 7}, 7),
        ({"epochs": 0.5}, 4),
        ({"plateau": PlateauConfig(every_steps=2, max_steps=9)}, 9),
    ],
    ids=str,
)
def test_a_stage_is_as_long_as_its_epochs_images_steps_or_plateau_say(length: dict[str, Any], steps: int) -> None:
    stage = StageConfig(patch_size=64, local_batch_size=4, accumulate=2, **length)
    assert plan_of((stage,), {64: 100}, 2).total_steps == steps


@given(world_size=st.sampled_from([4, 8, 24]), spatial=st.sampled_from([1, 2, 4]), length=st.integers(20, 400))
def test_ranks_that_share_patches_count_as_one(world_size: int, spatial: int, length: int) -> None:
    split = StageConfig(patch_size=64, local_batch_size=2, epochs=2, parallel={"spatial": spatial})
    alone = split.model_copy(update={"parallel": ParallelConfig()})
    stage = plan_of((split,), {64: length}, world_size).stages[0]
    same = plan_of((alone,), {64: length}, world_size // spatial).stages[0]
    assert (stage.num_groups, stage.spatial) == (world_size // spatial, spatial)
    assert stage.num_steps == same.num_steps and stage.global_batch(64) == same.global_batch(64)
    groups = {
        tuple(np.concatenate([positions_of_rank(stage.samples_at(n)[64], 2, r // spatial, stage.num_groups)
                              for n in range(stage.num_steps)]).tolist())
        for r in range(world_size)
    }  # fmt: skip
    assert sorted(p for g in groups for p in g) == list(range(stage.num_steps * stage.global_batch(64)))


def test_scoring_shares_patches_as_training_does_where_the_ranks_come_out_even() -> None:
    stages = (
        StageConfig(patch_size=64, local_batch_size=1, steps=1, parallel={"spatial": 2}),
        StageConfig(sizes={64: 1, 128: 1}, local_batch_size=1, steps=1, parallel={"spatial": 4}),
        StageConfig(patch_size=32, local_batch_size=1, steps=1),
    )
    assert scoring_splits(stages, 8) == {64: 4, 128: 4, 32: 1}
    assert scoring_splits(stages, 3) == {64: 1, 128: 1, 32: 1}


@settings(max_examples=100, deadline=None)
@given(
    shares=st.dictionaries(st.sampled_from([64, 128, 256, 512]), st.floats(0.05, 5), min_size=1),
    steps=st.integers(1, 400),
)
def test_a_mixture_keeps_its_shares_at_every_moment_and_a_longer_stage_begins_alike(
    shares: dict[int, float], steps: int
) -> None:
    shares = {size: share / sum(shares.values()) for size, share in shares.items()}
    sequence = size_sequence(shares, steps)
    assert len(sequence) == steps
    assert sequence.tolist() == size_sequence(shares, steps + 50)[:steps].tolist()
    for size, share in shares.items():
        for n in (steps // 3, steps // 2, steps):
            assert abs((sequence[:n] == size).sum() - share * n) <= len(shares)


def test_a_mixed_stage_counts_its_epochs_by_the_largest_size_and_keeps_the_pixels_of_a_step() -> None:
    stage = StageConfig(sizes={256: 3, 64: 1}, local_batch_size=2, epochs=1)
    mixed = plan_of((stage,), {256: 30, 64: 999}, 1).stages[0]
    assert {size: b.local_batch_size for size, b in mixed.batches.items()} == {256: 2, 64: 32}
    assert mixed.samples_at(mixed.end_step)[256] == 30 > mixed.samples_at(mixed.end_step - 1)[256]
    assert mixed.num_steps == pytest.approx(15 / 0.75, abs=2)
    assert mixed.label == "75% 256 px + 25% 64 px"


@settings(max_examples=60, deadline=None)
@given(
    first=st.sampled_from([1, 2, 3, 8]),
    second=st.sampled_from([1, 2, 3, 8]),
    stop_after=st.integers(0, 60),
    mixed=st.booleans(),
)
def test_a_plan_goes_on_where_a_run_stopped_on_any_number_of_ranks(
    first: int, second: int, stop_after: int, mixed: bool
) -> None:
    sizes: dict[str, Any] = {"sizes": {64: 0.4, 128: 0.6}} if mixed else {"patch_size": 128}
    stages = (
        StageConfig(patch_size=64, local_batch_size=2, epochs=1),
        StageConfig(**sizes, local_batch_size=1, epochs=2),
        StageConfig(patch_size=128, local_batch_size=1, steps=4),
    )
    lengths = {64: 33, 128: 21}
    plan = plan_of(stages, lengths, first)
    step = min(stop_after, plan.total_steps)
    now = next((s for s in plan.stages if step < s.end_step), plan.stages[-1])
    ends = tuple(s.end_step for s in plan.stages[: now.number])
    done = Position(step, now.samples_at(step), ends)
    resumed = plan_of(stages, lengths, second, done)
    stage = resumed.stages[now.number]
    assert (stage.start_step, stage.samples_at(step)) == (step, done.samples), "the streams go on where they were"
    assert all(a.end_step == b.first_step for a, b in pairwise(resumed.stages))
    if stage.number < 2:
        seen = stage.samples_at(stage.end_step)[128 if stage.number else 64]
        wanted = 42 if stage.number else 33
        assert 0 <= seen - wanted < stage.global_batch(stage.largest_size) + first * 2, "no epoch is cut or doubled"
    if first == second:
        rest = range(step, plan.total_steps)
        sizes_of = [[next(s.size_at(x) for s in p.stages if x < s.end_step) for x in rest] for p in (plan, resumed)]
        assert sizes_of[0] == sizes_of[1] and plan.total_steps == resumed.total_steps


@given(
    size=st.integers(32, 700), largest=st.integers(700, 2048), fitting=st.integers(1, 40), accumulate=st.integers(1, 3)
)
def test_auto_learns_from_the_same_patches_whatever_the_memory(
    size: int, largest: int, fitting: int, accumulate: int
) -> None:
    stages = (
        StageConfig(patch_size=size, local_batch_size="auto", accumulate=accumulate, steps=1),
        StageConfig(patch_size=largest, local_batch_size=1, steps=1),
    )
    roomy = plan_batches(stages, lambda size, batch, passes, spatial: True)[0][size]
    tight = plan_batches(stages, lambda size, batch, passes, spatial: batch <= fitting)[0][size]
    assert tight.patches == roomy.patches and tight.local_batch_size <= fitting


def test_auto_keeps_the_pixels_of_the_largest_patch_and_splits_what_memory_does_not_hold() -> None:
    stages = (
        StageConfig(patch_size=256, local_batch_size="auto", steps=1),
        StageConfig(patch_size=704, local_batch_size="auto", steps=1),
        StageConfig(patch_size=2048, local_batch_size="auto", steps=1),
    )
    roomy = plan_batches(stages, lambda size, batch, passes, spatial: True)
    assert [b for s in roomy for b in s.values()] == [Batch(64), Batch(8), Batch(1)]
    tight = plan_batches(stages, lambda size, batch, passes, spatial: batch == 1 or size**2 * batch <= 2048**2 // 3)[:2]
    assert [b for s in tight for b in s.values()] == [Batch(16, 4), Batch(2, 4)], "the same patches in every step"
    assert scoring_batches(stages) == {256: 64, 704: 8, 2048: 1}, "scores do not depend on a machine's memory"
    with pytest.raises(ConfigError, match=r"training\.recompute=blocks"):
        plan_batches(stages, lambda size, batch, passes, spatial: size < 2048)


def test_learning_rate_rules_have_their_published_values() -> None:
    from trainer.train.schedule import learning_rate

    base = {"learning_rate": 0.1}
    assert learning_rate(OptimizerConfig(**base), 3, 10, 8, 1.0) == pytest.approx(0.8)
    assert learning_rate(OptimizerConfig(**base, scale_with_world_size="sqrt"), 3, 10, 4, 1.0) == pytest.approx(0.2)
    assert learning_rate(OptimizerConfig(**base, scale_with_world_size="none"), 3, 10, 4, 0.5) == pytest.approx(0.05)
    cosine = OptimizerConfig(**base, schedule="cosine")
    assert [learning_rate(cosine, s, 10, 1, 1.0) for s in (0, 5, 10)] == pytest.approx([0.1, 0.05, 0.0])
    poly = OptimizerConfig(**base, schedule="poly", poly_power=0.9)
    assert learning_rate(poly, 5, 10, 1, 1.0) == pytest.approx(0.1 * 0.5**0.9)
    warm = OptimizerConfig(**base, warmup_steps=4)
    assert [learning_rate(warm, s, 10, 2, 1.0) for s in range(5)] == pytest.approx([0.05, 0.1, 0.15, 0.2, 0.2])
