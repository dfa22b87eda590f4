"""What became of a run: its state, and the scores of its final network."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from trainer.experiments.grid import NamedRun
from trainer.train.runs import State as BegunState
from trainer.train.runs import is_held, summarise

State = BegunState | Literal["waiting", "failed"]
"""waiting: it was not started. failed: it ended before it began to train, and its log says why."""
LEFT_ALONE: tuple[State, ...] = ("finished", "running")
"""Runs in these states need nobody to train them."""
Scores = dict[str, float | None]


@dataclass(frozen=True)
class Result:
    """One run. Where it is not finished, or left no report, all but its state is empty."""

    run: NamedRun
    state: State
    scores: Scores = field(default_factory=dict)
    """miou, dice, auc and accuracy on the common footprint; peak_memory_gb of a rank; seconds of training."""
    classes: dict[str, Scores] = field(default_factory=dict)
    """Class -> iou and dice; None where neither truth nor prediction holds it."""
    truth_pixels: dict[str, int] = field(default_factory=dict)
    """Class -> pixels of it that were scored."""


def read_result(folder: Path, run: NamedRun) -> Result:
    """Of the run in `folder`."""
    state = state_of(folder)
    if state != "finished":
        return Result(run, state)
    try:
        return Result(run, state, **final_scores(json.loads((folder / "report.json").read_bytes())))
    except (OSError, ValueError, LookupError, TypeError):  # a disk that was full cost the report, not the run
        return Result(run, "damaged")


def state_of(folder: Path) -> State:
    if (folder / "metrics.jsonl").exists():
        return summarise(folder, folder.name).state
    return "running" if is_held(folder) else "failed" if log_of(folder).exists() else "waiting"


def log_of(folder: Path) -> Path:
    """What a run prints on this machine, beside its folder: it may end before there is one."""
    return folder.with_name(f"{folder.name}.log")


def final_scores(report: dict[str, Any]) -> dict[str, Any]:
    """The fields of a Result that report.json tells. Raises LookupError where the last stage is not in it."""
    stages, names = report["stages"], report["classes"]
    last = stages[report["stages_planned"] - 1]
    scores = {key: last[f"common_{key}"] for key in ("miou", "dice", "auc", "accuracy")}
    scores["peak_memory_gb"] = max(stage["peak_memory_gb"] for stage in stages)
    scores["seconds"] = sum(stage["seconds"] for stage in stages)
    return {
        "scores": scores,
        "classes": {n: {"iou": last["common_class_iou"][n], "dice": last["common_class_dice"][n]} for n in names},
        "truth_pixels": dict(zip(names, map(sum, last["common_confusion"]), strict=True)),
    }
