"""Parts that the figures of a study share: panels, axes, colours, spreads, titles and legends."""

from __future__ import annotations

import io
import textwrap
from collections.abc import Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import LogLocator, NullFormatter, NullLocator

from trainer.scaling.efficiency import Spread
from trainer.scaling.lines import Line, shared_and_own

STYLE: dict[Any, Any] = {
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "svg.hashsalt": "widefield",
}
"""Settings of matplotlib to draw with; a fixed salt gives an SVG the same bytes every time."""
IDEAL: dict[str, Any] = {"linestyle": "--", "linewidth": 0.9, "color": "black", "zorder": 1}
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
"""Okabe and Ito, Color Universal Design (2008): told apart by colour-blind readers. Its yellow is too pale on white."""
_MARKERS = "os^Dv<>P"
_MAX_TICKS = 12
_SUBDIVISIONS = (
    (3, (1, 1.2, 1.5, 2, 2.5, 3, 4, 5, 6, 8)),
    (12, (1, 2, 3, 4, 5, 6, 8)),
    (1000, (1, 2, 5)),
    (float("inf"), (1,)),
)
"""Ticks of a logarithmic axis within a decade, where its ends differ by less than a factor."""
_CHARACTERS_PER_INCH = 12
"""Of a title at 10 points, rather too few than too many."""


def looks_of(lines: Sequence[Line]) -> list[dict[str, Any]]:
    """Colour and marker by patch size and compression; hollow where patches are read from slides."""
    styles = list(dict.fromkeys(line.style for line in lines))
    looks = []
    for line, label in zip(lines, shared_and_own(lines)[1], strict=True):
        number = styles.index(line.style)
        colour = COLOURS[number % len(COLOURS)]
        fill = colour if line.point.data == "memory" else "white"
        look = {"color": colour, "marker": _MARKERS[number % len(_MARKERS)], "markerfacecolor": fill}
        looks.append(look | {"label": label or "measured"})
    return looks


def draw_spreads(axis: Axes, x: Sequence[float], spreads: Sequence[Spread], look: dict[str, Any]) -> None:
    """A line through the medians; a thick bar over the quartiles and a thin one over all repeats."""
    axis.plot(x, [s.median for s in spreads], linewidth=1.3, markersize=4.5, **look)
    axis.vlines(x, [s.low for s in spreads], [s.high for s in spreads], color=look["color"], linewidth=0.9)
    axis.vlines(x, [s.lower for s in spreads], [s.upper for s in spreads], color=look["color"], linewidth=2.6)


def shifts(number: int, ranks: Sequence[int]) -> list[float]:
    """Factors that set lines side by side on a logarithmic axis, so that no bar covers another."""
    apart = (max(ranks) / min(ranks) * 1.7) ** 0.004
    return [apart ** (i - (number - 1) / 2) for i in range(number)]


def rank_axis(axis: Axes, ranks: Sequence[int]) -> None:
    """x: numbers of ranks, logarithmic, with a tick at each measured one unless these are too many."""
    ticks = sorted(set(ranks))
    axis.set_xscale("log", base=2)
    if len(ticks) <= _MAX_TICKS:
        axis.set_xticks(ticks, [str(n) for n in ticks])
    else:
        axis.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
    axis.xaxis.set_minor_locator(NullLocator())
    axis.set_xlim(ticks[0] / 1.3, ticks[-1] * 1.3)
    axis.set_xlabel("ranks")
    axis.grid(alpha=0.25)


def log_axis(axis: Axes) -> None:
    """y: logarithmic with plain numbers, and enough of them also within one decade."""
    axis.set_yscale("log")
    low, high = axis.get_ylim()
    subs = next(subs for span, subs in _SUBDIVISIONS if high < span * low)
    axis.yaxis.set_major_locator(LogLocator(subs=subs))
    axis.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
    axis.yaxis.set_minor_formatter(NullFormatter())


def panels(number: int, width: float = 5.2, height: float = 3.8, columns: int = 2) -> tuple[Figure, list[Axes]]:
    """A figure with so many axes, filled row by row; sizes in inches."""
    columns = min(number, columns)
    rows = -(-number // columns)
    figure = Figure(figsize=(max(5.2, width * columns), height * rows + 1.2), layout="constrained")
    axes = list(figure.subplots(rows, columns, squeeze=False).flat)
    for unused in axes[number:]:
        unused.remove()
    return figure, axes[:number]


def title(figure: Figure, lines: Sequence[Line], what: str) -> None:
    """What is shown, that it was measured, and what all lines have in common."""
    shared, _ = shared_and_own(lines)
    width = int(figure.get_figwidth() * _CHARACTERS_PER_INCH)
    mode = lines[0].point.mode.capitalize()
    figure.suptitle("\n".join([f"{mode} scaling, measured: {what}", *textwrap.wrap(", ".join(shared), width)]), size=10)


def legend(figure: Figure, note: str) -> None:
    """Below the panels, each label of any of them once, headed by what the marks mean."""
    handles = {label: h for axis in figure.axes for h, label in zip(*axis.get_legend_handles_labels(), strict=True)}
    if any(a.lines for a in figure.axes):
        handles["ideal"] = Line2D([], [], **IDEAL)
    columns = max(1, int(figure.get_figwidth() * _CHARACTERS_PER_INCH) // (max(map(len, handles)) + 5))
    figure.legend(
        handles.values(),
        handles.keys(),
        loc="outside lower center",
        ncols=min(columns, 4, len(handles)),
        frameon=False,
        title=note,
        title_fontsize=8,
    )


def rendered(figure: Figure, kind: str) -> bytes:
    """The file's bytes, without a date or version that would differ next time."""
    out = io.BytesIO()
    figure.savefig(out, format=kind, dpi=150, metadata={"Date": None} if kind == "svg" else {"Software": None})
    return out.getvalue()
