from __future__ import annotations

import argparse
import os
import shlex
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from trainer.cli.common import OVERRIDES_HELP, add_config_arguments, config_of

if TYPE_CHECKING:
    from trainer.bench.scaling_study import Assignment

NAME = "scaling"
HELP = "measure how training scales over ranks, and report it"
DETAILS = f"""\
  widefield scaling run configs/bench.yaml --ranks 1,2 --patch-sizes 256,1024 --study results/my-box/weak
  widefield scaling submit configs/bench.yaml --nodes 1,2,4,8 --site dual-socket --study results/skx/weak
  widefield scaling report results/skx/weak
  widefield scaling model results/skx/weak --network configs/networks/omni-path.yaml

A study is a folder of runs, each a measured point: its ranks, patch size, batch, compression, and whether batches come
out of memory or from slides. `run` measures on this machine (within a Slurm job: on its nodes) with warm-up and
repeats, the variants of a size in turns; `submit` sends a job for each number of nodes; `report` makes tables and
figures of what is there. A study can be extended by further points later; a point measured again replaces the older.

Weak scaling keeps the batch per rank, strong scaling (--mode strong --global-batch N) the batch of all.

{OVERRIDES_HELP}"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    actions = parser.add_subparsers(title="actions", metavar="ACTION", required=True)
    run = actions.add_parser("run", help="measure on this machine, or on the nodes of the Slurm job this is in")
    run.add_argument("--ranks", type=_numbers, metavar="N,N", help="numbers of ranks (default: one per socket or GPU)")
    run.add_argument("--cores-per-rank", type=int, metavar="N", help="default: what the most ranks leave each")
    _add_wish(run)
    run.set_defaults(action=_run)
    point = actions.add_parser("point", help="what `run` starts on every rank; measures its points and ends")
    _add_wish(point)
    point.set_defaults(action=_point)
    submit = actions.add_parser("submit", help="send a job to Slurm for each number of nodes")
    submit.add_argument("--nodes", type=_numbers, required=True, metavar="N,N", help="numbers of nodes")
    submit.add_argument("--site", required=True, metavar="S", help="slurm/sites/S.env")
    submit.add_argument("--dry-run", action="store_true", help="show the lines, submit nothing")
    _add_wish(submit)
    submit.set_defaults(action=_submit)
    model = actions.add_parser("model", help="predict steps, beside those measured, and on a machine from a file")
    model.add_argument("study", type=Path, help="measured with --model-inputs")
    model.add_argument(
        "--host", type=Path, metavar="DIR", help="study over memory, where an all-reduce is host work (default: STUDY)"
    )
    model.add_argument("--network", type=Path, metavar="FILE", help="a machine to extrapolate to")
    model.set_defaults(action=_model)
    report = actions.add_parser("report", help="tables and figures of a study")
    report.add_argument("study", type=Path, help="results/SYSTEM/STUDY")
    report.set_defaults(action=_report)


def _add_wish(parser: argparse.ArgumentParser) -> None:
    add_config_arguments(parser)
    parser.add_argument(
        "--study", type=Path, required=True, metavar="DIR", help="results/SYSTEM/STUDY, new or extended"
    )
    parser.add_argument("--patch-sizes", type=_numbers, metavar="PX,PX", help="default: those of the curriculum")
    parser.add_argument("--local-batch", type=int, metavar="B", help="patches per rank (default: the curriculum's)")
    parser.add_argument("--mode", choices=("weak", "strong"), default="weak", help="default: weak")
    parser.add_argument("--global-batch", type=int, metavar="B", help="strong: patches of all ranks together")
    compressions, data = ("none", "fp16", "bf16"), ("memory", "slides")
    parser.add_argument("--compressions", type=_words(*compressions), default=compressions, help="default: all three")
    parser.add_argument("--data", type=_words(*data), default=data, help="where batches come from (default: both)")
    parser.add_argument("--warmup", type=int, default=2, metavar="N", help="steps before those counted (default 2)")
    parser.add_argument("--repeats", type=int, default=5, metavar="N", help="default 5")
    parser.add_argument("--steps", type=int, default=4, metavar="N", help="counted steps of each repeat (default 4)")
    parser.add_argument("--model-inputs", action="store_true", help="also measure what `widefield scaling model` needs")
    parser.add_argument("--command", default="", help=argparse.SUPPRESS)
    parser.add_argument("--network", default="", metavar="TEXT", help="what joins the ranks, in words, for the report")


def _numbers(text: str) -> tuple[int, ...]:
    parts = text.split(",")
    if not all(part.isdecimal() and int(part) for part in parts):
        raise argparse.ArgumentTypeError(f"'{text}' is not a list of numbers such as 1,2,4")
    return tuple(map(int, parts))


def _words(*known: str) -> Callable[[str], tuple[str, ...]]:
    def parse(text: str) -> tuple[str, ...]:
        if not set(text.split(",")) <= set(known):
            raise argparse.ArgumentTypeError(f"'{text}' is not a list of {', '.join(known)}")
        return tuple(text.split(","))

    return parse


def run(args: argparse.Namespace) -> None:
    args.action(args)


def _task(args: argparse.Namespace) -> Assignment:
    from trainer.bench.scaling_study import Assignment
    from trainer.scaling.wish import Effort, Wish

    wish = Wish(
        mode=args.mode,
        patch_sizes=args.patch_sizes,
        local_batch=args.local_batch,
        global_batch=args.global_batch,
        compressions=args.compressions,
        data=args.data,
        effort=Effort(args.warmup, args.repeats, args.steps),
        model_inputs=args.model_inputs,
    )
    return Assignment(config_of(args), wish, args.study, args.network, args.command)


def _options(args: argparse.Namespace) -> list[str]:
    """The wish as options again, in full: for the ranks, and for the command that a report shows."""
    options = {
        "study": args.study,
        "patch-sizes": _joined(args.patch_sizes),
        "local-batch": args.local_batch,
        "mode": args.mode,
        "global-batch": args.global_batch,
        "compressions": _joined(args.compressions),
        "data": _joined(args.data),
        "warmup": args.warmup,
        "repeats": args.repeats,
        "steps": args.steps,
        "network": args.network or None,
    }
    words = [word for name, value in options.items() if value is not None for word in (f"--{name}", str(value))]
    return [args.config, *args.overrides, *words, *(["--model-inputs"] if args.model_inputs else [])]


def _joined(items: Sequence[object] | None) -> str | None:
    return ",".join(map(str, items)) if items else None


def _run(args: argparse.Namespace) -> None:
    from trainer.bench.scaling_study import run_study

    args.command = _typed(args, _options(args))
    arguments = [*_options(args), "--command", args.command]
    run_study(_task(args), args.ranks or [None], arguments, args.cores_per_rank)
    if "SLURM_JOB_ID" not in os.environ:  # a study's jobs may end together: who has sent them asks for the report
        _report(args)


def _typed(args: argparse.Namespace, options: Sequence[str]) -> str:
    """What measures these points again."""
    if nodes := os.environ.get("SLURM_JOB_NUM_NODES"):
        return shlex.join(["sbatch", f"--nodes={nodes}", "slurm/scaling.sbatch", *options])
    given = {"ranks": _joined(args.ranks), "cores-per-rank": args.cores_per_rank}
    words = [word for name, value in given.items() if value for word in (f"--{name}", str(value))]
    return shlex.join(["widefield", "scaling", "run", *options, *words])


def _point(args: argparse.Namespace) -> None:
    from trainer.bench.scaling_study import measure_here

    measure_here(_task(args))


def _submit(args: argparse.Namespace) -> None:
    from trainer.launch.sbatch import check_script, submit
    from trainer.launch.site import read_site

    _task(args)  # a mistake in the configuration is told before the queue
    site, script = read_site(args.site), check_script("scaling")
    for nodes in args.nodes:
        submit(script, [f"--nodes={nodes}"], _options(args), site, dry_run=args.dry_run)
    print(f"when they are done: widefield scaling report {args.study}")


def _model(args: argparse.Namespace) -> None:
    from trainer.scaling.model_report import write_model

    options = {"host": args.host, "network": args.network}
    words = [word for name, value in options.items() if value for word in (f"--{name}", str(value))]
    typed = shlex.join(["widefield", "scaling", "model", str(args.study), *words])
    print(f"model: {write_model(args.study, args.host or args.study, args.network, typed)}")


def _report(args: argparse.Namespace) -> None:
    from trainer.scaling.report import write_report

    write_report(args.study)
    print(f"report: {args.study / 'README.md'}")
