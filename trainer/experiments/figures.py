"""The figure of a sweep: what its settings do to the score."""

from __future__ import annotations

import io
import math
from collections.abc import Sequence

from matplotlib.figure import Figure

from trainer.experiments.grid import as_text, short_names
from trainer.experiments.results import Result

_TURNED_FROM = 60
"""Characters of all tick labels together that no longer fit side by side."""


def draw_sweep(results: Sequence[Result]) -> bytes:
    """A PNG: mean IoU against the setting with the most values, a line for each combination of the others.

    The values of a setting stand in the order given and equally far apart: a grid's are chosen so that each is a step.
    """
    settings = {
        key: list(dict.fromkeys(as_text(r.run.settings[key]) for r in results)) for key in results[0].run.settings
    }
    short = short_names(list(settings))
    x_key = max(settings, key=lambda key: len(settings[key]))
    ticks, others = settings[x_key], [key for key in settings if key != x_key]
    figure = Figure(figsize=(6.4, 4), layout="constrained")
    axis = figure.subplots()
    lines: dict[str, dict[str, float | None]] = {}
    for result in results:
        label = ", ".join(f"{short[key]} {as_text(result.run.settings[key])}" for key in others)
        lines.setdefault(label, {})[as_text(result.run.settings[x_key])] = result.scores.get("miou")
    style = "o-" if all(map(_is_number, ticks)) else "o"  # nothing lies between two words
    for label, scores in lines.items():
        heights = [math.nan if (y := scores.get(tick)) is None else y for tick in ticks]
        axis.plot(range(len(ticks)), heights, style, label=label)
    axis.set_xticks(range(len(ticks)), ticks)
    if sum(map(len, ticks)) > _TURNED_FROM:
        axis.tick_params("x", rotation=30)
    axis.set_xlabel(x_key)
    axis.set_ylabel("mean IoU, common footprint")
    axis.grid(alpha=0.3)
    if others:
        figure.legend(loc="outside right upper", frameon=False, fontsize=8)
    out = io.BytesIO()
    figure.savefig(out, format="png", dpi=130)
    return out.getvalue()


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True
