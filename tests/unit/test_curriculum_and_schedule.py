from __future__ import annotations

import pytest

from trainer.config.schema import OptimizerConfig, StageConfig
from trainer.curriculum import make_plan

STAGES = (
    StageConfig(patch_size=256, local_batch_size=4, epochs=2),
    StageConfig(patch_size=704, local_batch_size=1, steps=5, learning_rate_factor=0.5),
)


@pytest.mark.parametrize("world_size", [1, 2, 3, 64, 1024])
def test_an_epoch_shows_every_patch_on_any_number_of_ranks(world_size: int) -> None:
    plan = make_plan(STAGES, {256: 1001, 704: 100}, world_size)
    first = plan.stages[0]
    assert first.num_steps * first.global_batch_size >= 2 * 1001 > (first.num_steps - 1) * first.global_batch_size
    assert first.global_batch_size == 4 * world_size


def test_each_step_belongs_to_one_stage() -> None:
    plan = make_plan(STAGES, {256: 16, 704: 9}, 2)
    assert [plan.stage_at(s).patch_size for s in range(plan.total_steps + 2)] == [256] * 4 + [704] * 5 + [704] * 2
    assert plan.stages[1].first_step == plan.stages[0].end_step
    assert plan.stages[1].megapixels_per_step == pytest.approx(2 * 704 * 704 / 1e6)


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
