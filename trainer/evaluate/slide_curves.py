"""The two curves of whole slides, FROC and ROC, as PNG."""

from __future__ import annotations

import io
from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from trainer.evaluate.froc import FALSE_POSITIVES_PER_SLIDE

_LEFT, _RIGHT = 0.125, 16.0
"""False positives per slide that are drawn: one step beyond those of the challenge on both sides."""
_COLOUR = "#2c3e70"


def draw_froc(false_positives: Sequence[float], sensitivity: Sequence[float]) -> bytes:
    """Share of the lesions found against false positives per slide; the challenge's six readings are dots.

    Args:
      false_positives: [T] rising from 0; sensitivity: [T] rising from 0. As in `froc.Froc`.
    """
    figure, axis = _figure("false positives per slide", "lesions found")
    steps = np.geomspace(_LEFT, _RIGHT, 400)
    axis.plot(steps, np.interp(steps, false_positives, sensitivity), color=_COLOUR)
    read_at = np.array(FALSE_POSITIVES_PER_SLIDE)
    axis.plot(read_at, np.interp(read_at, false_positives, sensitivity), "o", color=_COLOUR)
    axis.set_xscale("log", base=2)
    axis.set_xticks(read_at, ["1/4", "1/2", "1", "2", "4", "8"])
    axis.minorticks_off()
    return _png(figure)


def draw_roc(false_positive_rate: Sequence[float], sensitivity: Sequence[float]) -> bytes:
    """Share of the slides with tumour against share of those without that are called tumour; [T] each."""
    figure, axis = _figure("slides without tumour called tumour", "slides with tumour found")
    axis.plot([0, 1], [0, 1], ":", color="#888888")
    axis.plot(false_positive_rate, sensitivity, color=_COLOUR)
    axis.set_xlim(-0.02, 1.02)
    return _png(figure)


def _figure(x_label: str, y_label: str) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(5, 4), layout="constrained")
    axis = figure.subplots()
    axis.set_ylim(-0.02, 1.02)
    axis.set_xlabel(x_label)
    axis.set_ylabel(y_label)
    axis.grid(alpha=0.3)
    return figure, axis


def _png(figure: Figure) -> bytes:
    out = io.BytesIO()
    figure.savefig(out, format="png", dpi=130)
    return out.getvalue()
