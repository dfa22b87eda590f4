"""One point of the memory bench: a setting, what was modelled and what was measured. No TensorFlow."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass

PRECISIONS = ("float32", "mixed_bfloat16")
RECOMPUTE = ("none", "blocks")


@dataclass(frozen=True, kw_only=True)
class Setting:
    patch_size: int
    batch: int
    precision: str
    recompute: str
    backbone: str


@dataclass(frozen=True, kw_only=True)
class Point:
    """One setting; memory in decimal gigabytes. What was not measured says why."""

    setting: Setting
    modelled_gb: float
    measured_gb: float | None = None
    step_s: float | None = None
    not_measured: str = "not yet"

    @property
    def error(self) -> float | None:
        """Of the model, as a share of what was measured."""
        return None if self.measured_gb is None else self.modelled_gb / self.measured_gb - 1.0


def described(point: Point) -> str:
    setting = point.setting
    name = f"{setting.patch_size} px {setting.precision} recompute={setting.recompute}"
    if point.error is None:
        return f"{name}: {point.not_measured}"
    memory = f"{point.measured_gb:.2f} GB (modelled {point.modelled_gb:.2f}, {point.error:+.0%})"
    return f"{name}: {memory}, {point.step_s:.2f} s"


def as_json(points: Sequence[Point], about: dict[str, str]) -> str:
    rows = [{**asdict(p.setting), **{k: v for k, v in asdict(p).items() if k != "setting"}} for p in points]
    return json.dumps({**about, "points": rows}, indent=1) + "\n"
