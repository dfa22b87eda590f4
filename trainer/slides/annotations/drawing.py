"""What every reader makes of a file: its areas, and what it passed over with the reason."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from shapely.geometry.base import BaseGeometry

from trainer.slides.annotations.outline import enclosed_area

NO_AREA = "outline that encloses no area"
"""Reason for passing over accidental clicks: one or two points, or all on one line. They label no pixel."""
_SHOWN_NAME = 100
_UNPRINTABLE = re.compile("[\x00-\x1f\x7f-\x9f\ud800-\udfff\u202a-\u202e\u2066-\u2069]")
"""Control characters (terminal escapes), half surrogates and changes of writing direction: never in a message."""


@dataclass(frozen=True)
class Annotation:
    """One drawn area: its name and group as the program shows them, and a valid (Multi)Polygon in level-0 pixels."""

    name: str
    group: str
    area: BaseGeometry


@dataclass(frozen=True)
class Drawing:
    """One annotation file.

    Args:
      program: what wrote the file (ASAP, QuPath, ImageScope), for messages.
      areas: in file order.
      passed_over: reason, in the singular -> how many.
    """

    path: Path
    program: str
    areas: tuple[Annotation, ...]
    passed_over: Mapping[str, int]

    @property
    def groups(self) -> dict[str, int]:
        """Number of areas of each group, in order of first appearance."""
        return dict(Counter(a.group for a in self.areas))


class DrawingBuilder:
    """Collects what a reader finds, piece by piece."""

    def __init__(self, path: Path, program: str) -> None:
        self.path, self.program = path, program
        self._areas: list[Annotation] = []
        self._passed_over: Counter[str] = Counter()

    def where(self, name: str) -> str:
        return f"{self.path}, annotation '{printable(name)[:_SHOWN_NAME]}'"

    def area(self, name: str, rings: Sequence[np.ndarray]) -> BaseGeometry | None:
        """The area of an outline and its holes; None, and counted, where it encloses nothing."""
        area = enclosed_area(rings, self.where(name), self.program)
        if area is None:
            self.pass_over(NO_AREA)
        return area

    def add(self, name: str, group: str, area: BaseGeometry) -> None:
        self._areas.append(Annotation(printable(name)[:_SHOWN_NAME], printable(group), area))

    def pass_over(self, reason: str) -> None:
        self._passed_over[reason] += 1

    def drawing(self) -> Drawing:
        return Drawing(self.path, self.program, tuple(self._areas), dict(self._passed_over))


def printable(text: str) -> str:
    """A stranger's text, safe to print and to write as UTF-8."""
    return _UNPRINTABLE.sub("\ufffd", text)
