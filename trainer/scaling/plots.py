"""The figures of a study, from its results. Everything in them was measured."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from trainer.scaling.drawing import (
    IDEAL,
    STYLE,
    draw_spreads,
    legend,
    log_axis,
    looks_of,
    panels,
    rank_axis,
    rendered,
    shifts,
    title,
)
from trainer.scaling.efficiency import Breakdown, Efficiency, Result
from trainer.scaling.lines import Line, lines_of, shared_and_own

_PARTS = (
    ("compute_s", "compute", "#0072B2"),
    ("allreduce_s", "all-reduce, not hidden", "#D55E00"),
    ("wait_s", "waiting for data", "#F0E442"),
    ("rest_s", "rest", "#999999"),
)
_SPREAD = "bars: quartiles (thick) and extremes (thin) over repeats"

BaseOf = Callable[[Line, Result], Efficiency | None]


def draw_figures(results: Sequence[Result]) -> dict[str, bytes]:
    """PNG and SVG of each figure by file name, such as `weak-throughput.png`; the same bytes for the same results."""
    files: dict[str, bytes] = {}
    with matplotlib.rc_context(STYLE):
        for mode, compared in (("weak", "weak-efficiency"), ("strong", "strong-speed-up")):
            lines = lines_of([r for r in results if r.record.point.mode == mode])
            figures = {
                f"{mode}-throughput": throughput(lines) if lines else None,
                compared: against_bases(lines, is_speed_up=mode == "strong"),
                f"{mode}-breakdown": breakdown(lines) if lines else None,
            }
            files |= {f"{n}.{kind}": rendered(f, kind) for n, f in figures.items() if f for kind in ("png", "svg")}
    return files


def throughput(lines: Sequence[Line]) -> Figure:
    """Speed of all ranks together against their number, both logarithmic."""
    figure, (axis,) = panels(1)
    for line, look in zip(lines, looks_of(lines), strict=True):
        speeds = [r.megapixels_per_s for r in line.results]
        draw_spreads(axis, line.ranks, speeds, look)
        ideal = [speeds[0].median * n / line.ranks[0] for n in line.ranks]
        axis.plot(line.ranks, ideal, **IDEAL | {"color": look["color"], "alpha": 0.6})
    rank_axis(axis, [n for line in lines for n in line.ranks])
    log_axis(axis)
    axis.set_ylabel("throughput of all ranks (Mpx/s)")
    title(figure, lines, "throughput")
    legend(figure, f"{_SPREAD}; ideal: from the smallest")
    return figure


def against_bases(lines: Sequence[Line], is_speed_up: bool) -> Figure | None:
    """Efficiency, or speed-up, against ranks with a panel for each kind of base. None: no run has a base but itself."""
    compared = _compared(lines)
    if not compared:
        return None
    figure, axes = panels(len(compared))
    name = "speed-up" if is_speed_up else "efficiency"
    for axis, (base, base_of, drawn) in zip(axes, compared, strict=True):
        known = [[(n, e) for n, r in zip(x.ranks, x.results, strict=True) if (e := base_of(x, r))] for x, _ in drawn]
        ranks = sorted({n for of_line in known for n, _ in of_line})
        apart = [1.0] * len(drawn) if is_speed_up else shifts(len(drawn), ranks)
        for (_, look), of_line, shift in zip(drawn, known, apart, strict=True):
            factors = [n / e.base.point.world_size if is_speed_up else 1.0 for n, e in of_line]
            spreads = [e.spread.times(f) for f, (_, e) in zip(factors, of_line, strict=True)]
            draw_spreads(axis, [n * shift for n, _ in of_line], spreads, look)
            axis.plot([n for n, _ in of_line], factors, **IDEAL)
        rank_axis(axis, ranks)
        if is_speed_up:
            log_axis(axis)
        else:
            axis.set_ylim(0, max(1.05, *(e.spread.high + 0.03 for of_line in known for _, e in of_line)))
        axis.set_ylabel(f"{name} against {base}")
    title(figure, lines, name)
    legend(figure, _SPREAD)
    return figure


def breakdown(lines: Sequence[Line]) -> Figure:
    """Where the time of a step goes, a panel for each line and a bar for each run, as the mean over ranks.

    Weak: seconds. Strong: shares, for steps that grow ever shorter would leave nothing to see.
    """
    is_strong = lines[0].point.mode == "strong"
    figure, axes = panels(len(lines), width=3.3, height=2.4, columns=3)
    for axis, line, name in zip(axes, lines, shared_and_own(lines)[1], strict=True):
        _draw_bars(axis, [r.mean_rank for r in line.results], is_strong)
        axis.set_xticks(range(len(line.ranks)), [str(n) for n in line.ranks], size=7 if len(line.ranks) > 8 else 9)
        margin = max(0.8, 2.3 - len(line.ranks) / 2)  # two bars do not fill a panel
        axis.set_xlim(-margin, len(line.ranks) - 1 + margin)
        axis.set_ylim(0, 1.0 if is_strong else 1.05 * _tallest(lines, like=line))
        axis.set_title(name, fontsize=9)
        axis.set_xlabel("ranks")
        axis.set_ylabel("share of a step" if is_strong else "time of a step (s)")
    title(figure, lines, "where the time of a step goes")
    legend(figure, "mean over ranks and steps")
    return figure


def _draw_bars(axis: Axes, steps: Sequence[Breakdown], is_share: bool) -> None:
    bottoms = [0.0] * len(steps)
    for part, label, colour in _PARTS:
        heights = [max(0.0, getattr(s, part)) / (s.step_s if is_share else 1.0) for s in steps]
        axis.bar(range(len(steps)), heights, 0.75, bottoms, color=colour, label=label)
        bottoms = [b + h for b, h in zip(bottoms, heights, strict=True)]


def _compared(lines: Sequence[Line]) -> list[tuple[str, BaseOf, list[tuple[Line, dict[str, Any]]]]]:
    """(what the base is, how to ask a result for it, lines and their looks) where some line grows beyond its base."""
    looks = list(zip(lines, looks_of(lines), strict=True)) if lines else []
    kinds: list[tuple[str, BaseOf]] = [("one rank", lambda _, result: result.one_rank), ("one node", _one_node)]
    if all(line.ranks_per_node == 1 for line in lines):
        kinds = kinds[:1]  # one rank is one node
    found = [(name, base_of, [x for x in looks if _grows(x[0], base_of)]) for name, base_of in kinds]
    return [x for x in found if x[2]]


def _one_node(line: Line, result: Result) -> Efficiency | None:
    """Nodes that are not full are a base of their own, which says nothing about the way to many nodes."""
    return result.one_node if result.record.point.ranks_per_node == line.ranks_per_node else None


def _grows(line: Line, base_of: BaseOf) -> bool:
    found = [(n, e) for n, r in zip(line.ranks, line.results, strict=True) if (e := base_of(line, r))]
    return any(n > e.base.point.world_size for n, e in found)


def _tallest(lines: Sequence[Line], like: Line) -> float:
    """Of the lines with this one's work per step, so that the eye may compare their panels."""
    return max(r.mean_rank.step_s for x in lines if x.settings[:2] == like.settings[:2] for r in x.results)
