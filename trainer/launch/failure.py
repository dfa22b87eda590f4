"""What a launch said of its failure."""

from __future__ import annotations

import re


def reason(said: str) -> str:
    """What a rank said of its failure, without what MPI says of it then; else the last lines.

    Args:
      said: the end of all that the launch has printed.
    """
    text = said.replace("\0", "")
    found = re.search(r"^\[rank \d+/\d+ .*?(?=^-----|\Z)", text, re.MULTILINE | re.DOTALL)
    return (found[0].strip()[:800] if found else text.strip()[-800:]) or "no message"
