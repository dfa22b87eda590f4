"""Figures of an index. Pure functions."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from trainer.patches.index import PatchIndex
from trainer.patches.sample import is_positive


@dataclass(frozen=True)
class Count:
    """Patches of some rows: how many, how many positive ones, and the mean share of each class ([C], 0 without any)."""

    num: int
    positive: int
    shares: np.ndarray

    @property
    def positive_share(self) -> float:
        return self.positive / self.num if self.num else 0.0


def count(index: PatchIndex, rows: np.ndarray | slice, positive_from: float) -> Count:
    fractions = index.label_fractions[rows]
    shares = fractions.mean(axis=0, dtype=np.float64) if len(fractions) else np.zeros(len(index.class_names))
    return Count(len(fractions), int(is_positive(fractions, positive_from).sum()), shares)


def passed_over(index: PatchIndex, slide: int) -> dict[str, int]:
    """What the annotation of a slide holds that was not used: reason -> number of items."""
    return (index.infos[slide].annotation or {}).get("passed_over") or {}


def plural(num: int, word: str) -> str:
    return f"{num:,} {word}" + ("" if num == 1 else "es" if word.endswith("ch") else "s")
