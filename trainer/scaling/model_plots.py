"""Figures of what is modelled: dashed lines and hollow bars, and the word on every one of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import matplotlib

from trainer.scaling.drawing import COLOURS, STYLE, panels, rank_axis, rendered
from trainer.scaling.predictions import Checked, Series

_DASHES = {"ring": (0, (4, 2)), "hierarchical": (0, (1, 1.5))}


def draw_checked(checked: Sequence[Checked]) -> dict[str, bytes]:
    """PNG and SVG: measured steps as full bars, modelled ones as dashed outlines beside them."""
    with matplotlib.rc_context(STYLE):
        figure, (axis,) = panels(1, width=max(5.2, 0.9 * len(checked) + 2))
        places = range(len(checked))
        axis.bar([x - 0.2 for x in places], [c.measured_s for c in checked], 0.38, color=COLOURS[0], label="measured")
        modelled: dict[str, Any] = {"fill": False, "edgecolor": COLOURS[1], "linestyle": "--", "linewidth": 1.4}
        axis.bar([x + 0.2 for x in places], [c.prediction.step_s for c in checked], 0.38, label="modelled", **modelled)
        for x, c in zip(places, checked, strict=True):
            axis.annotate(f"{c.error:+.0%}", (x + 0.2, c.prediction.step_s), ha="center", va="bottom", fontsize=8)
        names = [f"{c.point.patch_size} px\n{c.point.compression}\n{c.point.world_size} ranks" for c in checked]
        axis.set_xticks(list(places), names)
        axis.set_ylabel("step (s)")
        axis.set_title("Steps, measured and modelled")
        axis.legend(frameon=False)
        return {f"checked.{kind}": rendered(figure, kind) for kind in ("png", "svg")}


def draw_series(series: Sequence[Series], machine: str) -> dict[str, bytes]:
    """PNG and SVG: weak-scaling efficiency against ranks, a panel for each patch size."""
    sizes = sorted({s.profile.patch_size for s in series})
    compressions = list(dict.fromkeys(s.compression for s in series))
    with matplotlib.rc_context(STYLE):
        figure, axes = panels(len(sizes))
        for size, axis in zip(sizes, axes, strict=True):
            for s in (s for s in series if s.profile.patch_size == size):
                look: dict[str, Any] = {
                    "color": COLOURS[compressions.index(s.compression)],
                    "linestyle": _DASHES[s.algorithm],
                }
                axis.plot(s.ranks, s.efficiency, label=f"{s.compression}, {s.algorithm}, modelled", **look)
            rank_axis(axis, series[0].ranks)
            axis.set_ylim(0, 1.05)
            axis.axhline(1, color="black", linewidth=0.6)
            batch = next(s.profile.local_batch_size for s in series if s.profile.patch_size == size)
            axis.set_title(f"{size} px, batch {batch} per rank")
            axis.set_ylabel("weak-scaling efficiency, modelled")
        handles, labels = axes[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=2, frameon=False)
        figure.suptitle(f"Modelled, not measured: {machine}", size=10)
        return {f"extrapolated.{kind}": rendered(figure, kind) for kind in ("png", "svg")}
