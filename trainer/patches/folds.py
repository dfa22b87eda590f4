"""Cross-validation: in which fold each group of slides validates. Decided from names and a seed alone."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence

from trainer.errors import DataError
from trainer.slides.dataset import SlideRecord

Group = tuple[str, str]
"""(name, path): the path is empty for patients and centres and tells apart slides of the same file name."""


def deal_folds(groups: Mapping[Group, Sequence[SlideRecord]], folds: int, seed: int) -> dict[Group, int]:
    """The fold, from 1 to `folds`, in which each group validates.

    Groups are sorted by annotation, then by centre, then by a hash of (seed, name), and dealt out like cards. So the
    folds' numbers of groups differ by at most one: of all groups, of those with and of those without an annotation, and
    of either of one centre.

    Args:
      groups: the slides of each.
    Raises:
      DataError: there are fewer groups than folds.
    """
    if len(groups) < folds:
        fewer = f"split.folds={len(groups)}, or " if len(groups) > 1 else ""
        raise DataError(
            f"there are {len(groups)} groups for {folds} folds, and each fold needs one to validate on",
            where="split.folds",
            fix=f"{fewer}add slides, or set split.by=slide",
        )

    def place(group: Group) -> tuple[bool, str, str, Group]:
        has_annotation = any(record.annotation for record in groups[group])
        centre = "+".join(sorted({record.centre for record in groups[group]}))
        return not has_annotation, name_hash(seed, centre), name_hash(seed, group[0]), group

    return {group: 1 + position % folds for position, group in enumerate(sorted(groups, key=place))}


def name_hash(seed: int, name: str) -> str:
    """What puts names in an order of their own for each seed."""
    return hashlib.sha256(f"{seed}:{name}".encode()).hexdigest()
