"""What the runs of a study say: speed, where a step's time goes, and efficiency. Pure arithmetic on `Steps`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from trainer.scaling.records import COMPRESSIONS, Run, RunRecord
from trainer.scaling.steps import Steps


@dataclass(frozen=True)
class Spread:
    """Smallest, quartiles and largest of several measurements."""

    low: float
    lower: float
    median: float
    upper: float
    high: float

    def times(self, factor: float) -> Spread:
        return Spread(*(factor * v for v in (self.low, self.lower, self.median, self.upper, self.high)))


@dataclass(frozen=True)
class Breakdown:
    """Seconds of the mean step. `rest_s` is the step's time that none of the others covers."""

    compute_s: float
    allreduce_s: float
    wait_s: float
    rest_s: float

    @property
    def step_s(self) -> float:
        return self.compute_s + self.allreduce_s + self.wait_s + self.rest_s


@dataclass(frozen=True)
class Efficiency:
    """Speed as a share of the base's, scaled up to as many ranks. Each repeat against the median of the base."""

    base: RunRecord
    spread: Spread


@dataclass(frozen=True, kw_only=True)
class Result:
    """What one done run says."""

    record: RunRecord
    patches_per_s: Spread
    """All ranks together, one value per repeat."""
    megapixels_per_s: Spread
    step_s: Spread
    """Each step's slowest rank, over all steps of all repeats."""
    mean_rank: Breakdown
    slowest_rank: int
    """The one with the largest median of a step without all-reduce and waiting for data."""
    slowest: Breakdown
    slowest_excess: float
    """By what share its median is above that of the median rank; 0 with one rank."""
    one_rank: Efficiency | None
    one_node: Efficiency | None
    """Against one node with as many ranks as each node of this run."""


def results_of(runs: Sequence[Run]) -> list[Result]:
    """A result for each done run, in their order; bases are looked for among the same runs."""
    done = [(run.record, run.steps) for run in runs if run.steps is not None]
    speeds = {record.point.name: patches_per_s(record, steps) for record, steps in done}
    records = [record for record, _ in done]
    return [_result(record, steps, records, speeds) for record, steps in done]


def patches_per_s(record: RunRecord, steps: Steps) -> np.ndarray:
    """[repeats] float64: patches of all ranks, over the seconds of the rank that needed most for the repeat."""
    seconds = steps.step_s.sum(axis=1).max(axis=1)
    return record.point.global_batch_size * steps.shape[1] / seconds


def spread_of(values: np.ndarray) -> Spread:
    return Spread(*(float(v) for v in np.quantile(values, (0, 0.25, 0.5, 0.75, 1))))


def _result(record: RunRecord, steps: Steps, records: Sequence[RunRecord], speeds: dict[str, np.ndarray]) -> Result:
    point = record.point
    speed = speeds[point.name]
    own_s = np.median(steps.step_s - steps.allreduce_s - steps.wait_s, axis=(0, 1))  # [ranks]
    slowest = int(own_s.argmax())
    return Result(
        record=record,
        patches_per_s=spread_of(speed),
        megapixels_per_s=spread_of(speed * point.patch_size**2 / 1e6),
        step_s=spread_of(steps.step_s.max(axis=2)),
        mean_rank=_breakdown(steps, slice(None)),
        slowest_rank=slowest,
        slowest=_breakdown(steps, slowest),
        # The median rank is a real one: of two ranks the faster, where a mean would halve the difference.
        slowest_excess=float(own_s[slowest] / np.sort(own_s)[(own_s.size - 1) // 2] - 1),
        one_rank=_efficiency(record, _base(record, records, 1), speeds),
        one_node=_efficiency(record, _base(record, records, point.ranks_per_node), speeds),
    )


def _breakdown(steps: Steps, ranks: slice | int) -> Breakdown:
    compute, allreduce, wait, step = (
        float(a[:, :, ranks].mean()) for a in (steps.compute_s, steps.allreduce_s, steps.wait_s, steps.step_s)
    )
    return Breakdown(compute, allreduce, wait, step - compute - allreduce - wait)


def _base(record: RunRecord, records: Sequence[RunRecord], world_size: int) -> RunRecord | None:
    """The run with so many ranks on one node that this one may be compared with.

    One rank has nobody to exchange gradients with, so there any compression will do: the same one if it was measured.
    """
    mine = record.point
    bases = [
        r
        for r in records
        if (r.point.num_nodes, r.point.world_size) == (1, world_size)
        and (r.point.mode, r.point.patch_size, r.point.data) == (mine.mode, mine.patch_size, mine.data)
        and (world_size == 1 or r.point.compression == mine.compression)
        and (
            r.point.local_batch_size == mine.local_batch_size
            if mine.mode == "weak"
            else r.point.global_batch_size == mine.global_batch_size
        )
    ]
    return min(
        bases,
        key=lambda r: (r.point.compression != mine.compression, COMPRESSIONS.index(r.point.compression)),
        default=None,
    )


def _efficiency(record: RunRecord, base: RunRecord | None, speeds: dict[str, np.ndarray]) -> Efficiency | None:
    if base is None:
        return None
    ideal = np.median(speeds[base.point.name]) * record.point.world_size / base.point.world_size
    return Efficiency(base, spread_of(speeds[record.point.name] / ideal))
