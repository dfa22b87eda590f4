"""The memory bench on disk: README.md, bench.json and memory.png."""

from __future__ import annotations

import io
import time
from collections.abc import Sequence
from dataclasses import replace
from itertools import product
from pathlib import Path

import matplotlib

from trainer import __version__
from trainer.bench.machine import machine
from trainer.bench.points import PRECISIONS, RECOMPUTE, Point, as_json
from trainer.errors import DataError
from trainer.files import replace_content

matplotlib.use("Agg")
import matplotlib.pyplot as plt

PUBLISHED = (2048, 25.0)
"""Patch size in px and GB at batch 1 of DeepLabV3+ on the poster that this work began with (shared/FACTS.md)."""
_COLOURS = {"float32": "#2c3e70", "mixed_bfloat16": "#a04000"}
_LINES = {"none": "-", "blocks": "--"}
_DOTS = {"none": "full", "blocks": "none"}


def write_report(points: Sequence[Point], folder: Path, command: str) -> None:
    """Write the three files, each whole or not at all.

    Raises:
      DataError: the folder cannot be written to.
    """
    about = {"machine": machine(), "date": time.strftime("%Y-%m-%d"), "version": __version__, "command": command}
    files = {
        "bench.json": as_json(points, about).encode(),
        "memory.png": picture(points),
        "README.md": readme(points, about).encode(),
    }
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, content in files.items():
            replace_content(folder / name, content)
    except OSError as error:
        raise DataError(
            f"cannot be written: {error}", where=str(folder), fix="choose another folder with -o"
        ) from error


def readme(points: Sequence[Point], about: dict[str, str]) -> str:
    """The Markdown of README.md: what was measured beside what was modelled."""
    setting = points[0].setting
    errors = [abs(p.error) for p in points if p.error is not None]
    lines = [
        "# Memory of a training step",
        "",
        f"`{about['command']}` (Widefield {about['version']}) on {about['date']}: {about['machine']}.",
        "",
        f"DeepLabV3+ with {setting.backbone}, group norm, output stride 16, Adam, one rank, batch {setting.batch}; "
        "each point is a fresh process. Measured: largest resident set and median step. Modelled: before it runs, by "
        "`trainer/models/memory/`." + (f" Its largest error is {max(errors):.1%}." if errors else ""),
        "",
        "![patch size against memory](memory.png)",
        "",
        "| px | precision | recompute | measured GB | modelled GB | error | step s | x no recompute |",
        "| ---: | --- | --- | ---: | ---: | ---: | ---: | ---: |",
        *(_row(p, _base_step_s(p, points)) for p in points),
    ]
    return "\n".join(lines) + "\n"


def _row(point: Point, base_step_s: float | None) -> str:
    s = point.setting
    cells = [str(s.patch_size), s.precision, s.recompute]
    if point.error is None:
        cells += [f"not measured: {point.not_measured}", f"{point.modelled_gb:.2f}", "", "", ""]
    else:
        ratio = f"{point.step_s / base_step_s:.2f}" if point.step_s and base_step_s else ""
        cells += [f"{point.measured_gb:.2f}", f"{point.modelled_gb:.2f}", f"{point.error:+.1%}"]
        cells += [f"{point.step_s:.2f}", ratio]
    return f"| {' | '.join(cells)} |"


def _base_step_s(point: Point, points: Sequence[Point]) -> float | None:
    """Step time of the same setting without recomputing."""
    base = replace(point.setting, recompute="none")
    return next((p.step_s for p in points if p.setting == base), None)


def picture(points: Sequence[Point]) -> bytes:
    """PNG: patch size against memory, both logarithmic; lines are modelled, dots measured."""
    figure, axis = plt.subplots(figsize=(6.8, 4.6))
    for precision, recompute in product(PRECISIONS, RECOMPUTE):
        curve = [p for p in points if (p.setting.precision, p.setting.recompute) == (precision, recompute)]
        sizes = [p.setting.patch_size for p in curve]
        modelled, measured = [p.modelled_gb for p in curve], [p.measured_gb or float("nan") for p in curve]
        name, colour = f"{precision}, recompute {recompute}", _COLOURS[precision]
        axis.plot(sizes, modelled, color=colour, linestyle=_LINES[recompute], label=name)
        axis.plot(sizes, measured, "o", color=colour, fillstyle=_DOTS[recompute])
    axis.plot(*PUBLISHED, "k*", markersize=11, label="published (poster), batch 1", linestyle="")
    _scales(axis, sorted({p.setting.patch_size for p in points} | {PUBLISHED[0]}))
    axis.set_title(f"{points[0].setting.backbone}, batch {points[0].setting.batch}: lines modelled, dots measured")
    axis.legend(frameon=False, fontsize=8)
    out = io.BytesIO()
    figure.savefig(out, format="png", dpi=120, bbox_inches="tight")
    plt.close(figure)
    return out.getvalue()


def _scales(axis: plt.Axes, sizes: Sequence[int]) -> None:
    axis.set_xscale("log", base=2)
    axis.set_xticks(sizes, [str(s) for s in sizes])
    axis.set_yscale("log", base=2)
    axis.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
    axis.minorticks_off()
    axis.set_xlabel("patch size (px)")
    axis.set_ylabel("peak memory of the process (GB)")
    axis.grid(alpha=0.3)
