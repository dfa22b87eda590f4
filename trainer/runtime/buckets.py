"""Which gradients travel together."""

from __future__ import annotations

from collections.abc import Sequence


def fill_buckets(sizes: Sequence[int], limit: float) -> list[list[int]]:
    """Positions of `sizes` from last to first, in groups whose sum passes `limit` only where one item alone does.

    The backward pass computes the last layers' gradients first, so the first group is ready first and travels while
    the others are computed (Li et al. 2020, arXiv 2006.15704, section 3.2). The groups depend on the sizes alone: what
    is added to what, and where in a buffer it lies, is the same in every run.
    """
    groups: list[list[int]] = []
    filled = limit
    for position in reversed(range(len(sizes))):
        if filled + sizes[position] > limit:
            groups.append([])
            filled = 0
        groups[-1].append(position)
        filled += sizes[position]
    return groups
