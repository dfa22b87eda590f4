"""The tables of a study's README: results of one mode, and how each run was made."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from trainer.scaling.efficiency import Efficiency, Result, Spread
from trainer.scaling.records import RunRecord

ELSEWHERE = "†"
"""Marks an efficiency whose base was measured on another machine or commit."""
_HOSTS_SHOWN = 4

Column = tuple[str, Callable[[Any], str]]


def result_table(results: Sequence[Result]) -> str:
    """Markdown, a row for each done run."""
    return _table(_RESULT, results)


def run_table(records: Sequence[RunRecord]) -> str:
    """Markdown, a row for each run, failed ones too."""
    return _table(_RUN, records)


def _table(columns: Sequence[Column], rows: Sequence[Any]) -> str:
    lines = [
        "| " + " | ".join(name for name, _ in columns) + " |",
        "|" + " ---: |" * len(columns),
        *("| " + " | ".join(cell(row).replace("|", "\\|") for _, cell in columns) + " |" for row in rows),
    ]
    return "\n".join(lines) + "\n"


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 1000 else f"{value:.4g}"


def _spread(spread: Spread, form: Callable[[float], str] = _number) -> str:
    return f"{form(spread.median)} [{form(spread.lower)}, {form(spread.upper)}]"


def _efficiency(efficiency: Efficiency | None, record: RunRecord) -> str:
    if efficiency is None:
        return "n/a"
    base = efficiency.base
    is_elsewhere = (base.machine, base.commit) != (record.machine, record.commit)
    return _spread(efficiency.spread, "{:.3f}".format) + (f" {ELSEWHERE}" if is_elsewhere else "")


def _share(part: str) -> Callable[[Result], str]:
    """Of the step, as mean over ranks / on the slowest rank."""

    def cell(result: Result) -> str:
        shares = [getattr(b, part) / b.step_s for b in (result.mean_rank, result.slowest)]
        return " / ".join(f"{share:.1%}" for share in shares)

    return cell


def _slowest(result: Result) -> str:
    is_alone = result.record.point.world_size == 1
    return "n/a" if is_alone else f"rank {result.slowest_rank}: {result.slowest_excess:+.1%}"


def _hosts(record: RunRecord) -> str:
    more = len(record.hosts) - _HOSTS_SHOWN
    return ", ".join(record.hosts[:_HOSTS_SHOWN]) + (f" and {more} more" if more > 0 else "")


_RESULT: tuple[Column, ...] = (
    ("nodes", lambda r: str(r.record.point.num_nodes)),
    ("ranks", lambda r: str(r.record.point.world_size)),
    ("patch px", lambda r: str(r.record.point.patch_size)),
    ("batch per rank", lambda r: str(r.record.point.local_batch_size)),
    ("compression", lambda r: r.record.point.compression),
    ("data", lambda r: r.record.point.data),
    ("step s", lambda r: _spread(r.step_s)),
    ("Mpx/s", lambda r: _spread(r.megapixels_per_s)),
    ("efficiency vs one rank", lambda r: _efficiency(r.one_rank, r.record)),
    ("efficiency vs one node", lambda r: _efficiency(r.one_node, r.record)),
    ("compute", _share("compute_s")),
    ("all-reduce", _share("allreduce_s")),
    ("wait", _share("wait_s")),
    ("rest", _share("rest_s")),
    ("slowest rank", _slowest),
    ("bytes handed over", lambda r: f"{r.record.allreduce_bytes_per_step:,}"),
    ("MB sent", lambda r: f"{r.record.wire_bytes_per_step / 1e6:.1f}"),
)
_RUN: tuple[Column, ...] = (
    ("run", lambda r: r.point.name),
    ("status", lambda r: r.status),
    ("date", lambda r: r.date),
    ("hosts", _hosts),
    ("cores per rank", lambda r: str(r.cores_per_rank)),
    ("machine", lambda r: r.machine),
    ("network", lambda r: r.network),
    ("commit", lambda r: r.commit),
    ("Widefield", lambda r: r.widefield),
    ("repeats x steps", lambda r: f"{r.repeats} x {r.steps_per_repeat}"),
    ("warm-up steps", lambda r: str(r.warmup_steps)),
)
