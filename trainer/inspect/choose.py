"""Which slides and patches are shown. Pure functions of the index and the seed."""

from __future__ import annotations

import numpy as np

from trainer.errors import DataError, nearest
from trainer.patches.index import PatchIndex
from trainer.patches.sample import classes_of, is_positive
from trainer.slides.dataset import SPLITS


def was_indexed(index: PatchIndex, slide: int) -> bool:
    return index.infos[slide].size != (0, 0)


def find_slide(index: PatchIndex, name: str) -> int:
    """Position of the slide with this file name, stem or path.

    Raises:
      DataError: no such slide (the nearest name is told), more than one, or one that was not indexed.
    """
    paths = [r.slide for r in index.slides]
    found = [i for i, path in enumerate(paths) if name in (path.name, path.stem, str(path))]
    if not found:
        raise DataError(f"there is no slide '{name}'", where="--slide", fix=nearest(name, (p.name for p in paths)))
    if len(found) > 1:
        listed = ", ".join(str(paths[i]) for i in found)
        raise DataError(f"{len(found)} slides are called '{name}'", where="--slide", fix=f"give the path: {listed}")
    if not was_indexed(index, found[0]):
        why = next(
            (line for line in index.unreadable if line.startswith(f"{paths[found[0]]}:")),
            "the split uses it on no side",
        )
        raise DataError(f"slide '{name}' has no patches: {why}", where="--slide", fix="mend it, or show another slide")
    return found[0]


def spread_over_splits(index: PatchIndex, count: int) -> list[int]:
    """Up to `count` indexed slides, as many of each split as there are, evenly spaced over the data set."""
    groups = [[i for i, r in enumerate(index.slides) if r.split == s and was_indexed(index, i)] for s in SPLITS]
    taken = [0] * len(groups)
    while sum(taken) < min(count, sum(map(len, groups))):
        open_groups = [g for g, members in enumerate(groups) if taken[g] < len(members)]
        taken[min(open_groups, key=lambda g: taken[g])] += 1
    return sorted(group[i] for group, k in zip(groups, taken, strict=True) for i in _evenly(len(group), k))


def _evenly(num: int, count: int) -> list[int]:
    return [int((i + 0.5) * num / count) for i in range(count)]


def contact_rows(label_fractions: np.ndarray, count: int, positive_from: float, rng: np.random.Generator) -> np.ndarray:
    """Patches for a contact sheet: one of each class, then positive and negative ones in turn.

    Args:
      label_fractions: [N, C] of all patches of one slide and size.
      count: how many to choose; more where there are more classes.
      positive_from: share of pixels from which a patch has a class or is positive.
    Returns:
      [n] int64 positions, ascending.
    """
    order = rng.permutation(len(label_fractions))
    has = classes_of(label_fractions[order], positive_from)
    one_of_each = [order[_first_with(has[:, c], label_fractions[order, c])] for c in range(has.shape[1])]
    chosen = {int(i) for i in np.concatenate([np.zeros(0, np.int64), *one_of_each])}
    positive = is_positive(label_fractions[order], positive_from)
    turn = np.where(positive, np.cumsum(positive), np.cumsum(~positive))
    for i in order[np.argsort(turn, kind="stable")]:
        if len(chosen) >= count:
            break
        chosen.add(int(i))
    return np.array(sorted(chosen), np.int64)


def _first_with(has_class: np.ndarray, share: np.ndarray) -> np.ndarray:
    """[0 or 1] positions: the first patch that has the class, else the one with most of it."""
    if has_class.any():
        return np.flatnonzero(has_class)[:1]
    return np.array([share.argmax()]) if share.max(initial=0) > 0 else np.zeros(0, np.int64)
