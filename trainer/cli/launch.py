from __future__ import annotations

import argparse
import os
import shlex
import sys

from trainer.errors import LaunchError

NAME = "launch"
HELP = "start a command on several ranks, each bound to its own socket, cores or GPU"
DETAILS = """\
  widefield launch configs/demo.yaml --ranks 2               `train` on two ranks of this machine
  widefield launch configs/camelyon16.yaml                   one rank per GPU, or per socket where there are none
  widefield launch evaluate runs/demo --ranks 2              another command than `train`
  widefield launch configs/demo.yaml --ranks 4 --dry-run     show the command line and the plan, start nothing

Within a Slurm job it starts ranks on all of the job's nodes (slurm/train.sbatch does), with srun where Slurm
speaks the MPI's protocol, else with mpirun; --launcher, or WIDEFIELD_LAUNCHER of the site's file, decides otherwise.
What the ranks are really bound to is checked when they have started (runtime.affinity)."""

PASSES_ON = True
_COMMANDS = ("train", "evaluate", "extract", "index", "doctor", "scaling")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.usage = "widefield launch [--ranks N] [--launcher L] [--dry-run] [COMMAND] CONFIG [options of COMMAND]"
    parser.add_argument("--ranks", type=int, metavar="N", help="ranks in all (default: one per GPU, else per socket)")
    parser.add_argument("--cores-per-rank", type=int, metavar="N", help="fewer than there are, to compare with others")
    parser.add_argument("--launcher", choices=("auto", "srun", "mpirun"), help="what starts the ranks (default: auto)")
    parser.add_argument("--dry-run", action="store_true", help="print the plan and the command line, start nothing")


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def run(args: argparse.Namespace) -> None:
    """Replace this process by srun or mpirun, so that signals reach the ranks and the exit status is theirs."""
    if not args.rest:
        raise LaunchError("nothing to launch", where="command line", fix="widefield launch configs/demo.yaml --ranks 2")
    from trainer.launch.launcher import launcher_command

    command = ["train", *args.rest] if args.rest[0] not in _COMMANDS else args.rest
    launcher = args.launcher or os.environ.get("WIDEFIELD_LAUNCHER") or "auto"
    line = [
        *launcher_command(args.ranks, launcher, say, args.cores_per_rank),
        sys.executable,
        "-m",
        "trainer",
        *command,
    ]
    say(f"+ {shlex.join(line)}")
    if args.dry_run:
        return
    try:
        os.execvp(line[0], line)
    except OSError as error:
        raise LaunchError(
            f"cannot be started: {error.strerror}",
            where=line[0],
            fix="put your MPI on the PATH: source .venv/bin/activate",
        ) from None
