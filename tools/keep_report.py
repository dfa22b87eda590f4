"""Keep a run's report under results/, with the command, machine, commit and date it came from.

python tools/keep_report.py runs/demo results/demo "make demo"
"""

from __future__ import annotations

import shutil
import sys
import time
from pathlib import Path

from trainer.bench.machine import commit, machine

KEPT = ("report.json", "report.md", "config.yaml", "figures/curves.png", "figures/scores.png", "figures/regions.png")


def main() -> None:
    run, out, command = Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3]
    for name in KEPT:
        (out / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(run / name, out / name)
    lines = [
        f"# {out.name}",
        "",
        f"`{command}`, measured on {time.strftime('%Y-%m-%d')} at commit {commit()}: {machine()}.",
        "One run. See [report.md](report.md).",
        "",
    ]
    (out / "README.md").write_text("\n".join(lines))


if __name__ == "__main__":
    main()
