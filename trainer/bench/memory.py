"""Patch size against memory: what the memory model says and what a training step takes, side by side.

Each point is measured in a fresh process (`memory_step.py`), one at a time: memory that one setting has held would
count for the next.
"""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace

import psutil

from trainer.bench.points import PRECISIONS, RECOMPUTE, Point, Setting, described
from trainer.config.schema import ModelConfig
from trainer.models import build_model
from trainer.models.determinism import deterministic_operations
from trainer.models.keras import keras
from trainer.models.memory import predicted_peak_bytes


def bench_memory(
    sizes: Sequence[int], backbone: str, batch: int, num_steps: int, say: Callable[[str], None] = print
) -> Iterator[list[Point]]:
    """Model, then measure every size, precision and kind of recomputing; all points anew after each measurement.

    Raises:
      ModelError: no such backbone.
    """
    say("modelling (the network is traced at every size) ...")
    points = list(model_points(sizes, backbone, batch))
    free_bytes = psutil.virtual_memory().available
    # a start takes as long as the steps at 1024 px; what does not fit is not run
    efforts = [(p.setting.patch_size**2 + 1024**2) * fits(p, free_bytes) for p in points]
    started = time.monotonic()
    for at, point in enumerate(points):
        points[at] = measured(point, num_steps, free_bytes)
        left = (time.monotonic() - started) * sum(efforts[at + 1 :]) / max(1, sum(efforts[: at + 1]))
        say(f"{at + 1}/{len(points)} points  {described(points[at])}  ETA {left / 60:.0f} min")
        yield list(points)


def model_points(sizes: Iterable[int], backbone: str, batch: int) -> Iterator[Point]:
    """What the memory model says, ascending by size."""
    deterministic_operations()  # as in training; it changes the graph a little
    keras.utils.set_random_seed(1)
    models = {}
    for precision in PRECISIONS:
        keras.mixed_precision.set_global_policy(precision)
        models[precision] = build_model(ModelConfig(backbone=backbone), 2)
    for patch_size in sorted(sizes):
        for precision in PRECISIONS:
            keras.mixed_precision.set_global_policy(precision)
            for recompute in RECOMPUTE:
                setting = Setting(
                    patch_size=patch_size, batch=batch, precision=precision, recompute=recompute, backbone=backbone
                )
                yield Point(setting=setting, modelled_gb=modelled_bytes(models[precision], setting) / 1e9)


def modelled_bytes(model: keras.Model, setting: Setting) -> int:
    return predicted_peak_bytes(
        model,
        setting.patch_size,
        setting.batch,
        recompute=setting.recompute == "blocks",
        optimizer_slots=2,
        ema=False,
        accumulate=False,
        world_size=1,
        checkpoints=False,
    )


def fits(point: Point, free_bytes: int) -> bool:
    return point.modelled_gb <= free_bytes / 1e9


def measured(point: Point, num_steps: int, free_bytes: int) -> Point:
    """The point with its measurement, or with the reason why there is none."""
    if not fits(point, free_bytes):
        return replace(point, not_measured=f"needs more than the {free_bytes / 1e9:.1f} GB that were free")
    setting = point.setting
    command = [sys.executable, "-m", "trainer.bench.memory_step", str(setting.patch_size), str(setting.batch)]
    command += [setting.precision, setting.recompute, setting.backbone, str(num_steps)]
    done = subprocess.run(command, text=True, capture_output=True)
    if done.returncode == -signal.SIGKILL:
        return replace(point, not_measured="killed by the system, as it does where memory has run out")
    if done.returncode:
        last = (done.stderr.strip() or "no message").splitlines()[-1]
        return replace(point, not_measured=f"failed with status {done.returncode}: {last[:120]}")
    result = json.loads(done.stdout.strip().splitlines()[-1])
    return replace(point, measured_gb=result["peak_memory_gb"], step_s=result["median_step_s"], not_measured="")
