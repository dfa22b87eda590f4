"""What a run will do, need and take, said before it starts: `widefield train --plan`."""

from __future__ import annotations

import time
from dataclasses import dataclass

import numpy as np
from rich.console import Console as RichConsole
from rich.table import Table

from trainer.config import Config, check_groups, check_rules
from trainer.curriculum import Stage, make_plan, plan_batches
from trainer.models import build_model
from trainer.models.keras import keras
from trainer.models.memory import flops_per_pass
from trainer.runtime import SingleComm
from trainer.train.console import Console, clock_text
from trainer.train.fitting import fits_in_memory, memory_limit, memory_model
from trainer.train.schedule import learning_rate
from trainer.train.session import check_plateaus, check_splits, prepare_index, training_orders
from trainer.train.step import TrainStep, make_optimizer

_TIMED_STEPS = 3
_LARGEST_TIMED = 1024
"""Patch size in pixels; a pass of a larger one would keep people waiting for its forecast."""


@dataclass(frozen=True)
class Speed:
    """Seconds of a pass = fixed + per_flop x its floating-point operations. Scaling one small patch alone was seen to
    be wrong by a factor of two: its fixed cost is as large as its arithmetic."""

    fixed: float
    per_flop: float


@dataclass(frozen=True)
class StageForecast:
    """One stage's line. Memory and time are modelled, all else follows from the settings and the index."""

    stage: Stage
    first_rate: float
    last_rate: float
    memory_bytes: int
    """Peak of one rank."""
    seconds: float
    """Steps alone: no scoring, no all-reduce that computing does not hide."""

    @property
    def patches(self) -> int:
        return sum(self.stage.samples_at(self.stage.end_step).values())


def print_forecast(config: Config, world_size: int, local_size: int, threads: int) -> None:
    """Index the data if need be, build the network, time it at its smallest size, and print the plan."""
    comm = SingleComm()
    console = Console(True)
    check_groups(config, world_size)
    for warning in check_rules(config, world_size):
        console.line(f"warning: {warning}")
    index = prepare_index(config, comm, console)
    check_plateaus(config, index)
    orders = training_orders(config, index)
    model = build_model(config.model, len(config.data.classes), read_weights=False)
    check_splits(config, model)
    fits = fits_in_memory(model, config, world_size, memory_limit(config, local_size))
    batches = plan_batches(config.curriculum, fits)
    plan = make_plan(config.curriculum, batches, {s: o.length for (_, s), o in orders.items()}, world_size)
    sizes = {size: batch.local_batch_size for stage in batches for size, batch in stage.items()}
    small = min(sizes)
    large = max((s for s in sizes if s <= _LARGEST_TIMED), default=small)
    samples = []
    for size in sorted({small, large}):
        console.line(f"timing {_TIMED_STEPS} passes of {sizes[size]} x {size} px on {threads} thread(s)")
        samples.append(time_pass(model, config, size, sizes[size]))
    speed = fit_speed(samples)
    lines = [forecast_stage(config, model, stage, plan.total_steps, speed) for stage in plan.stages]
    _print(lines, config, world_size, threads)


def forecast_stage(config: Config, model: keras.Model, stage: Stage, total_steps: int, speed: Speed) -> StageForecast:
    """What one stage will need on one rank of its world size."""
    memory = memory_model(model, config, stage.num_groups * stage.spatial)
    recompute = config.training.recompute == "blocks"
    turns = stage.samples_at(stage.end_step)
    seconds = 0.0
    for size, batch in stage.batches.items():
        passes = turns[size] / stage.num_groups / batch.local_batch_size
        flops = flops_per_pass(model, size, batch.local_batch_size, recompute=recompute, spatial=stage.spatial)
        seconds += passes * (speed.fixed + speed.per_flop * flops)
    rates = [
        learning_rate(config.training.optimizer, step, total_steps, stage.num_groups, stage.learning_rate_factor)
        for step in (stage.start_step, stage.end_step - 1)
    ]
    peak = max(memory(size, b.local_batch_size, b.accumulate, stage.spatial) for size, b in stage.batches.items())
    return StageForecast(stage, rates[0], rates[1], peak, seconds)


def time_pass(model: keras.Model, config: Config, patch_size: int, batch: int) -> tuple[float, float]:
    """(floating-point operations, median seconds) of one rank's pass here, from a few real steps on noise."""
    optimizer = make_optimizer(config.training.optimizer, config.training.precision)
    step = TrainStep(model, optimizer, config.training, SingleComm())
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (batch, patch_size, patch_size, 3), np.uint8)
    labels = rng.integers(0, len(config.data.classes), images.shape[:3], np.uint8)
    seconds = []
    for number in range(1 + _TIMED_STEPS):  # the first one traces and compiles
        start = time.perf_counter()
        step(images, labels, number)
        seconds.append(time.perf_counter() - start)
    flops = flops_per_pass(model, patch_size, batch, recompute=config.training.recompute == "blocks")
    return flops, float(np.median(seconds[1:]))


def fit_speed(samples: list[tuple[float, float]]) -> Speed:
    """The line through two (operations, seconds); through one, or where the larger was not slower, none is fixed."""
    (small, short), (large, long) = min(samples), max(samples)
    if large > small and long > short:
        per_flop = (long - short) / (large - small)
        if short > per_flop * small:
            return Speed(short - per_flop * small, per_flop)
    return Speed(0.0, long / large)


def _print(lines: list[StageForecast], config: Config, world_size: int, threads: int) -> None:
    columns = ("stage", "patch", "steps", "global batch", "rate", "patches", "memory/rank", "time")
    table = Table(*columns, box=None, pad_edge=False)
    for line in lines:
        stage = line.stage
        batches = ", ".join(str(stage.global_batch(size)) for size in sorted(stage.batches, reverse=True))
        table.add_row(
            str(stage.number),
            stage.label,
            f"{'<= ' if stage.plateau else ''}{stage.num_steps}",
            batches,
            f"{line.first_rate:.2e} -> {line.last_rate:.2e}",
            str(line.patches),
            f"{line.memory_bytes / 1e9:.1f} GB",
            clock_text(line.seconds),
        )
    RichConsole(width=120).print(f"\n{config.name}: {world_size} rank(s)", table, highlight=False)
    total = clock_text(sum(line.seconds for line in lines))
    print(f"in all {lines[-1].stage.end_step} steps, {total} of training")
    print(
        "Memory and time are modelled: memory from the network's graph, time from steps timed here with "
        f"{threads} thread(s) for one rank;\nscoring, and an all-reduce that computing does not hide, come on top."
    )
