from __future__ import annotations

import argparse
import json
import os
import sys
from dataclasses import asdict
from typing import TYPE_CHECKING

from trainer.cli.common import OVERRIDES_HELP, add_config_arguments
from trainer.cli.runs import aligned
from trainer.runtime.world import detect_world

if TYPE_CHECKING:
    from trainer.doctor.finding import Finding

NAME = "doctor"
HELP = "look at this machine before queueing a job: what is there, what is wrong, what to do"
DETAILS = f"""\
Each line is ok, a warning, or an error, with what to do. Exit status: 0, or 2 where there is an error. Under a launcher
it looks at where the ranks are too, and times the all-reduce for two seconds.

  widefield doctor                                  this machine
  widefield doctor configs/camelyon16.yaml          and whether this run would find its slides and its disk
  widefield launch doctor --ranks 2                 and two ranks of it
  widefield doctor --json | jq '.findings[] | select(.status != "ok")'
  widefield doctor --topology > node.txt            the node's shape, to plan for it elsewhere

{OVERRIDES_HELP}"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_config_arguments(parser, optional=True)
    parser.add_argument("--json", action="store_true", help="one JSON object, for programs")
    parser.add_argument("--topology", action="store_true", help="print the node's CPUs and GPUs, and stop")


def run(args: argparse.Namespace) -> None:
    """Print what was found, on rank 0 only; exit status 2 where something is an error."""
    world = detect_world(os.environ)
    is_root = world is None or world.rank == 0
    if args.topology:
        from trainer.launch.topology import format_topology, read_topology

        print(format_topology(read_topology()) if is_root else "", end="")
        return
    from trainer.doctor.checkup import examine
    from trainer.doctor.finding import is_ok

    findings = examine(args.config, args.overrides)
    if not is_root:  # ends well: a launcher that sees an error ends rank 0 while it still prints
        return
    ok = is_ok(findings)
    if args.json:
        print(json.dumps({"findings": [asdict(f) for f in findings], "ok": ok}, indent=2), flush=True)
    else:
        print("\n".join(report(findings)), flush=True)
    if not ok:
        sys.exit(2)


def report(findings: list[Finding]) -> list[str]:
    """A line for each finding, what to do below it, and a count."""
    rows: list[tuple[str, ...]] = []
    for finding in findings:
        rows.append((finding.status, finding.topic, finding.text))
        rows += [("", "", f"fix: {finding.fix}")] if finding.fix else []
    counts = {s: sum(f.status == s for f in findings) for s in ("error", "warning")}
    return [*aligned(rows), f"{counts['error']} error(s), {counts['warning']} warning(s)"]
