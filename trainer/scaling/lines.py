"""Which results make one line of a figure, and what the line is called. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby

from trainer.scaling.efficiency import Result
from trainer.scaling.records import COMPRESSIONS, Point


@dataclass(frozen=True, kw_only=True)
class Line:
    """Results that differ in the number of ranks only, small worlds first, and their common settings in words."""

    results: tuple[Result, ...]
    settings: tuple[str, ...]
    ranks_per_node: int
    """Of its runs on several nodes. Those on one node may have fewer: they are on the way to a full one."""

    @property
    def point(self) -> Point:
        """Of the largest world: a base of one rank may have had another compression."""
        return self.results[-1].record.point

    @property
    def ranks(self) -> list[int]:
        """Of each result; no two are the same."""
        return [r.record.point.world_size for r in self.results]

    @property
    def style(self) -> tuple[int, str]:
        """Lines that differ only in where patches come from share it."""
        return self.point.patch_size, self.point.compression


def lines_of(results: Sequence[Result]) -> list[Line]:
    """Lines through all results of one mode; each is in one or several."""
    ordered = sorted(results, key=lambda r: (_series(r.record.point), r.record.point.order))
    lines = []
    for _, group in groupby(ordered, lambda r: _series(r.record.point)):
        lines += list(_by_width(list(group), {r.record.point.name: r for r in results}))
    return lines


def shared_and_own(lines: Sequence[Line]) -> tuple[list[str], list[str]]:
    """What all lines have in common, for a title, and of each line what it does not share, for the legend."""
    columns = list(zip(*(line.settings for line in lines), strict=True))
    shared = [column[0] for column in columns if len(set(column)) == 1]
    own = [", ".join(s for s in line.settings if s not in shared) for line in lines]
    return shared, own


def _series(point: Point) -> tuple[int, int, int, str]:
    batch = point.local_batch_size if point.mode == "weak" else point.global_batch_size
    return point.patch_size, batch, COMPRESSIONS.index(point.compression), point.data


def _by_width(group: Sequence[Result], by_name: dict[str, Result]) -> Iterator[Line]:
    """A line for each number of ranks per node: first within one node, then over nodes of that many ranks."""
    points = [r.record.point for r in group]
    widths = {p.ranks_per_node for p in points if p.num_nodes > 1} | {max(p.ranks_per_node for p in points)}
    for width in sorted(widths):
        members = [r for r in group if _is_on_the_way(r.record.point, width)]
        base = members[-1].one_rank
        if base and base.base.point.name not in {m.record.point.name for m in members}:
            members.insert(0, by_name[base.base.point.name])
        yield Line(results=tuple(members), settings=_words(members[-1].record.point, width), ranks_per_node=width)


def _is_on_the_way(point: Point, width: int) -> bool:
    return point.ranks_per_node == width if point.num_nodes > 1 else point.world_size <= width


def _words(point: Point, width: int) -> tuple[str, ...]:
    batch, unit = (point.local_batch_size, "rank") if point.mode == "weak" else (point.global_batch_size, "step")
    return (
        f"{point.patch_size} px",
        f"{batch} {'patch' if batch == 1 else 'patches'} per {unit}",
        "not compressed" if point.compression == "none" else point.compression,
        f"data from {point.data}",
        f"{width} {'rank' if width == 1 else 'ranks'} per node",
    )
