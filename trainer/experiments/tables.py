"""Columns and remarks that the reports of sweeps and of cross-validations share. Pure."""

from __future__ import annotations

from collections.abc import Sequence

from trainer.evaluate.report import Column
from trainer.experiments.results import Result

TITLES = {
    "miou": ("mIoU", 4),
    "dice": ("Dice", 4),
    "auc": ("AUC", 4),
    "accuracy": ("accuracy", 4),
    "peak_memory_gb": ("peak memory per rank (GB)", 2),
    "seconds": ("seconds", 0),
}
"""Score -> its title and how many decimals it is shown with."""
RUN: Column = ("run", lambda result: f"[{result.run.name}]({result.run.name}/report.md)")


def fixed(value: float | None, digits: int) -> str:
    return "n/a" if value is None else f"{value:.{digits}f}"


def _score(key: str, title: str, digits: int) -> Column:
    return title, lambda result: fixed(result.scores[key], digits)


SCORES = tuple(_score(key, *shown) for key, shown in TITLES.items())


def unfinished(results: Sequence[Result]) -> list[str]:
    """Lines that name the runs which have no scores yet."""
    others = [r for r in results if not r.scores]
    if not others:
        return []
    listed = (f"- {r.run.name}: {r.state}" for r in others)
    return [
        f"**{len(results) - len(others)} of {len(results)} runs are in this report.** Without scores:",
        "",
        *listed,
        "",
    ]
