"""How far a score of whole slides would move with other slides: the percentile bootstrap."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

RESAMPLES = 2000
"""50 of them lie below the lower end of a 95 % interval, so another seed moves it little."""


def percentile_interval(
    statistic: Callable[[np.ndarray], float], strata: np.ndarray, seed: int, resamples: int = RESAMPLES
) -> tuple[float, float]:
    """The 95 % interval of a statistic when slides are drawn again, with replacement.

    Args:
      statistic: from [S] int64, how often each slide was drawn, to the number.
      strata: [S] group of each slide. As many slides are drawn from each group as it has, so that a statistic which
        needs slides of every group has them in every resample.
    Returns:
      the 2.5th and 97.5th percentile over the resamples; NaN where the statistic is NaN.
    Source: Efron and Tibshirani, An Introduction to the Bootstrap, 1993, chapter 13.
    """
    rng = np.random.default_rng(seed)
    drawn = np.zeros((resamples, len(strata)), np.int64)
    for group in np.unique(strata):
        members = np.flatnonzero(strata == group)
        drawn[:, members] = rng.multinomial(len(members), np.full(len(members), 1 / len(members)), resamples)
    low, high = np.percentile([statistic(times) for times in drawn], (2.5, 97.5))
    return float(low), float(high)
