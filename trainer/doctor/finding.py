"""What the doctor says: one line on one topic."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from trainer.errors import WidefieldError

SAME_EVERYWHERE = frozenset({"versions", "MPI", "Horovod", "processor", "oneDNN", "node", "GPUs"})
"""Topics on which every node should say the same. On others (free disk, ...) only warnings and errors are news."""


@dataclass(frozen=True)
class Finding:
    topic: str
    status: Literal["ok", "warning", "error"]
    text: str
    fix: str = ""
    """What to do or type."""


def from_error(topic: str, error: WidefieldError) -> Finding:
    """An error of ours as a line of the report."""
    return Finding(topic, "error", f"{error.where}: {error.what}" if error.where else error.what, error.fix)


def is_ok(findings: Iterable[Finding]) -> bool:
    return all(f.status != "error" for f in findings)


def join_nodes(reports: Sequence[tuple[str, list[Finding]]]) -> list[Finding]:
    """The first node's findings, then what others have found and it has not, once each, with their names.

    Args:
      reports: (host name, findings); the first is that of rank 0.
    """
    first = reports[0][1]
    hosts: dict[Finding, list[str]] = {}
    for host, findings in reports[1:]:
        for finding in findings:
            if finding not in first and (finding.status != "ok" or finding.topic in SAME_EVERYWHERE):
                hosts.setdefault(finding, []).append(host)
    others = [replace(f, text=f"{_names(found_on)}: {f.text}") for f, found_on in hosts.items()]
    return [*first, *others]


def _names(hosts: list[str]) -> str:
    return ", ".join(hosts[:3]) + (f" and {len(hosts) - 3} more" if len(hosts) > 3 else "")
