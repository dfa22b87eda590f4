"""Colours of splits and classes, told apart with any kind of colour vision: those of Okabe and Ito (2008)."""

from __future__ import annotations

from trainer.config.schema import IGNORE_LABEL

SPLIT_COLOURS = {"train": "#0072b2", "val": "#e69f00", "test": "#009e73"}
_CLASS_COLOURS = ("#f0e442", "#56b4e9", "#d55e00", "#cc79a7")
"""Splits and classes share none."""
_DASHES = ("none", "7 4", "2 3")
_STRIPES = ("", "45deg", "135deg")
"""More than four classes: the colours again, as dashed lines and striped areas, then dotted."""


def class_colour(label: int) -> str:
    """Colour of a class but the first; grey for ignored pixels."""
    return "#999999" if label == IGNORE_LABEL else _CLASS_COLOURS[(label - 1) % len(_CLASS_COLOURS)]


def class_dash(label: int) -> str:
    """SVG's stroke-dasharray of its outlines."""
    return _DASHES[-1] if label == IGNORE_LABEL else _DASHES[_round(label)]


def class_fill(label: int) -> str:
    """CSS background of its area in a legend or bar."""
    colour, angle = class_colour(label), "" if label == IGNORE_LABEL else _STRIPES[_round(label)]
    return f"repeating-linear-gradient({angle}, {colour} 0 3px, #333 3px 5px)" if angle else colour


def _round(label: int) -> int:
    return (label - 1) // len(_CLASS_COLOURS) % len(_DASHES)
