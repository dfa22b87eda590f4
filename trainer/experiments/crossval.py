"""The report of a cross-validation for people and machines: each fold, and the mean and spread over folds. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean, stdev
from typing import Any

from trainer.evaluate.report import Column, table
from trainer.experiments.results import Result
from trainer.experiments.tables import RUN, SCORES, TITLES, fixed, unfinished

_HOW_TO_READ = """\
Scores are those of each fold's final network on the common footprint of the slides that it was not trained on; every
slide validates in exactly one fold. The deviation is the sample's, over n folds. Folds share most of their training
slides, so it says how much folds differ; it is no error bar of the mean (Bengio and Grandvalet 2004, JMLR 5:1089).
"""
_SPREAD: tuple[Column, ...] = (
    ("score", lambda row: row["title"]),
    ("mean", lambda row: fixed(row["mean"], row["digits"])),
    ("standard deviation", lambda row: fixed(row["standard_deviation"], row["digits"])),
    ("n", lambda row: str(row["n"])),
)


def summary_of(results: Sequence[Result]) -> dict[str, Any]:
    """Mean and spread over finished folds: of each score, and of each class's where the fold's slides hold the class.

    Returns:
      {"scores": {score: spread}, "classes": {class: {"iou", "dice": spread}}, "warnings": lines}
    """
    scored = [r for r in results if r.scores]
    names = list(scored[0].classes) if scored else []
    having = {n: [r for r in scored if r.truth_pixels[n]] for n in names}
    return {
        "scores": {key: spread([r.scores[key] for r in scored]) for key in (scored[0].scores if scored else ())},
        "classes": {n: {k: spread([r.classes[n][k] for r in having[n]]) for k in ("iou", "dice")} for n in names},
        "warnings": [warning for n in names if (warning := _missing(n, [r for r in scored if r not in having[n]]))],
    }


def spread(values: Sequence[float | None]) -> dict[str, float | int | None]:
    """Mean and sample standard deviation of those that are known, and their number."""
    known = [v for v in values if v is not None]
    return {
        "mean": fmean(known) if known else None,
        "standard_deviation": stdev(known) if len(known) > 1 else None,
        "n": len(known),
    }


def _missing(name: str, folds: Sequence[Result]) -> str:
    if not folds:
        return ""
    return (
        f"{', '.join(r.run.name for r in folds)} scored no pixel of {name}: there its IoU and Dice, and what is made "
        f"of them, are 0 or missing whatever the network does. The rows of {name} leave these folds out, others do not."
    )


def crossval_markdown(name: str, command: str, results: Sequence[Result], summary: dict[str, Any]) -> str:
    """The Markdown of crossval.md."""
    parts = [f"# Cross-validation {name}, {len(results)} folds", "", "```sh", command, "```", "", *unfinished(results)]
    rows = [r for r in results if r.scores]
    if rows:
        parts += [*(f"**Warning:** {warning}\n" for warning in summary["warnings"])]
        parts += ["## Over folds", "", table(_SPREAD, _spread_rows(summary)), ""]
        parts += ["## Each fold", "", table([RUN, *SCORES], rows), "", _HOW_TO_READ]
    return "\n".join(parts)


def _spread_rows(summary: dict[str, Any]) -> list[dict[str, Any]]:
    rows = [{"title": TITLES[k][0], "digits": TITLES[k][1], **found} for k, found in summary["scores"].items()]
    for name, scores in summary["classes"].items():
        for key, title in (("iou", "IoU"), ("dice", "Dice")):
            rows.append({"title": f"{title} of {name}", "digits": 4, **scores[key]})
    return rows
