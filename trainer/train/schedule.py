"""The learning rate as a function of the global step."""

from __future__ import annotations

import math

from trainer.config.schema import OptimizerConfig


def world_factor(config: OptimizerConfig, world_size: int) -> float:
    """What the world size multiplies the rate by (linear rule: Goyal et al. 2017, arXiv 1706.02677)."""
    return {"linear": float(world_size), "sqrt": math.sqrt(world_size), "none": 1.0}[config.scale_with_world_size]


def learning_rate(config: OptimizerConfig, step: int, total_steps: int, world_size: int, stage_factor: float) -> float:
    """The rate at global step `step` of `total_steps`.

    The schedule runs over the whole curriculum: poly (1 - step/total)^power (Liu et al. 2015, ParseNet, as in
    DeepLab), cosine 0.5 (1 + cos(pi step/total)) (Loshchilov and Hutter 2017). Warm-up rises linearly to the full
    rate (Goyal et al. 2017).
    """
    done = min(step / max(total_steps, 1), 1.0)
    shape = {
        "constant": 1.0,
        "poly": (1 - done) ** config.poly_power,
        "cosine": 0.5 * (1 + math.cos(math.pi * done)),
    }[config.schedule]
    warmup = min(1.0, (step + 1) / config.warmup_steps) if config.warmup_steps else 1.0
    return config.learning_rate * world_factor(config, world_size) * shape * warmup * stage_factor
