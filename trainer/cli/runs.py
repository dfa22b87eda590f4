from __future__ import annotations

import argparse
import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from trainer.errors import RunError

if TYPE_CHECKING:
    from trainer.train.runs import RunSummary

NAME = "runs"
HELP = "list runs: state, stage, best score, speed"
DETAILS = """\
One line for each run below DIR, the one written to last first. mIoU is the best on the common footprint, Mpx/s the
latest speed of all ranks together. A run that is 'stopped' goes on with: widefield train --resume DIR/NAME

  widefield runs                 below runs/
  widefield runs /scratch/me     below another folder
  widefield runs --json | jq '.[] | select(.state == "running")'"""

_HEADINGS = ("name", "state", "stage", "patch", "step", "mIoU", "Mpx/s", "ranks", "updated")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("folder", nargs="?", type=Path, default=Path("runs"), metavar="DIR", help="default: runs")
    parser.add_argument("--json", action="store_true", help="one JSON list, for programs")


def run(args: argparse.Namespace) -> None:
    from trainer.train.runs import list_runs

    if not args.folder.is_dir():
        raise RunError("no such folder", where=str(args.folder), fix="widefield runs DIR, the folder that holds runs")
    runs = list_runs(args.folder)
    if args.json:
        print(json.dumps([asdict(r) | {"updated": r.updated.isoformat()} for r in runs], indent=2))
    elif not runs:
        print(f"no runs below {args.folder}")
    elif sys.stdout.isatty():
        _print_table(runs)
    else:
        print("\n".join(aligned([_HEADINGS, *map(cells, runs)])))
    for damaged in (r for r in runs if r.problem and not args.json):
        print(f"warning: {damaged.problem}", file=sys.stderr)


def cells(run: RunSummary) -> tuple[str, ...]:
    """One run as text; '-' is what it does not say."""
    return (
        run.name,
        run.state,
        f"{_text(run.stage)}/{_text(run.num_stages)}",
        "+".join(map(str, run.patch_sizes)) or "-",
        f"{_text(run.step)}/{_text(run.total_steps)}",
        _text(run.best_common_miou, ".4f"),
        _text(run.megapixels_per_second, ".2f"),
        _text(run.world_size),
        run.updated.strftime("%Y-%m-%d %H:%M"),
    )


def aligned(rows: list[tuple[str, ...]]) -> list[str]:
    """Rows as lines with columns of equal width."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ["  ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)).rstrip() for row in rows]


def _text(value: float | None, form: str = "") -> str:
    return "-" if value is None else format(value, form)


def _print_table(runs: list[RunSummary]) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    colours = {"running": "green", "finished": "blue", "stopped": "yellow", "damaged": "red"}
    table = Table(*_HEADINGS, box=None, header_style="bold")
    for run in runs:
        table.add_row(*(Text(cell) for cell in cells(run)), style=colours[run.state])
    Console().print(table)
