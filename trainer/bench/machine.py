"""One line on the hardware that figures were measured on."""

from __future__ import annotations

import os
import platform
import re
import subprocess
from pathlib import Path


def commit() -> str:
    """Of this checkout, with `+` where files differ from it; 'unknown' outside of one."""
    git = ["git", "-C", str(Path(__file__).parent)]
    try:
        revision = subprocess.run([*git, "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=True)
        changed = subprocess.run([*git, "status", "--porcelain", "-uno"], capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return revision.stdout.strip() + ("+" if changed.stdout.strip() else "")


def machine() -> str:
    """CPUs of this host, processor, memory, system."""
    memory_gib = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return f"{os.cpu_count()} x {processor()}, {memory_gib:.0f} GiB, {platform.platform()}"


def processor() -> str:
    """The name that the processor gives itself."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    return next((x.split(":")[1].strip() for x in lines if x.startswith("model name")), platform.processor())


def folder_of(processor: str) -> str:
    """'Intel(R) Xeon(R) Processor' -> 'intel-xeon'."""
    return "-".join(re.findall(r"[a-z0-9]+", re.sub(r"\(.*?\)|processor", " ", processor.lower())))
