"""Do all ranks hold the same weights, settings, data and position? A cheap question, asked often."""

from __future__ import annotations

import socket
from collections import Counter
from collections.abc import Mapping

from trainer.errors import CommError
from trainer.runtime import Comm


def require_agreement(comm: Comm, items: Mapping[str, str | int], when: str) -> None:
    """Stop all ranks when one rank's value of any item differs from what most ranks have.

    Args:
      items: what is compared -> its hash or number; the same keys on every rank.
    Raises:
      CommError: on every rank, naming the item, the ranks that differ and their hosts.
    """
    everyone = comm.gather((socket.gethostname(), dict(items)))
    for item in items:
        values = [theirs[item] for _, theirs in everyone]
        usual = _usual(values)
        differing = [f"rank {r} ({host})" for r, (host, theirs) in enumerate(everyone) if theirs[item] != usual]
        if differing:
            some = next(r for r, value in enumerate(values) if value == usual)
            raise CommError(
                f"{', '.join(differing)} differ in {item} from rank {some} {when}",
                where=f"{comm.world_size} ranks",
                fix=_FIXES.get(item, "this is a bug or a hardware fault: please report it with config.yaml"),
            )


def _usual(values: list[str | int]) -> str | int:
    """The most frequent value; of two as frequent, the one of the lower rank."""
    return Counter(values).most_common(1)[0][0]


_FIXES = {
    "settings": "start all ranks with one config file on a shared file system and the same overrides",
    "patch index": "put the index (index_file, or output) on a file system that all ranks share",
}
