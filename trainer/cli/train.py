from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING

from trainer.cli.common import OVERRIDES_HELP, add_config_arguments, count
from trainer.config import Config, load_config
from trainer.errors import ConfigError

if TYPE_CHECKING:
    from trainer.train.signals import StopRequest

NAME = "train"
HELP = "train through the curriculum and write the report"
DETAILS = f"""\
  widefield train configs/demo.yaml                                        one process
  mpirun -np 2 python -m trainer train configs/demo.yaml                   two ranks on this machine
  mpirun -np 2 --map-by ppr:1:package --bind-to package python -m trainer train configs/camelyon16.yaml
  widefield train --resume runs/demo                                       go on after a stop, on any number of ranks
  widefield train configs/camelyon16.yaml --plan --world-size 64           steps, batches, memory and time; no training

SIGTERM and SIGUSR1 (sbatch --signal=USR1@120) make a run save its state after the next step and end with exit
status 75: start it again with --resume. (Under mpirun send USR1: on TERM it gives its ranks half a second.)

{OVERRIDES_HELP}"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_config_arguments(parser, optional=True)
    parser.add_argument("--resume", type=Path, metavar="RUN_DIR", help="go on from the newest checkpoint of a run")
    parser.add_argument(
        "--continue",
        action="store_true",
        dest="go_on",
        help="go on with the run that the output directory holds; begin one where it holds none (requeued jobs)",
    )
    parser.add_argument("--plan", action="store_true", help="print what the run would do, need and take, and stop")
    parser.add_argument("--world-size", type=count, metavar="N", help="--plan: ranks to plan for (default 1)")
    parser.add_argument("--ranks-per-node", type=count, metavar="N", help="--plan: ranks that share a node's memory")
    parser.add_argument("--overwrite", action="store_true", help="replace the run that the output directory holds")


def run(args: argparse.Namespace) -> None:
    _refuse_what_does_not_go_together(args)
    config = _config(args)
    if args.plan:
        _print_plan(config, args.world_size or 1, args.ranks_per_node or 1)
        return
    from trainer.train.signals import StopRequest

    with StopRequest() as stop:  # from here on: loading TensorFlow takes seconds, in which a warning may come
        _train(config, stop, args)


def _train(config: Config, stop: StopRequest, args: argparse.Namespace) -> None:
    from trainer.runtime import on_root, start_comm
    from trainer.runtime.start import my_threads
    from trainer.train.loop import train
    from trainer.train.run_dir import holds_run
    from trainer.train.session import configure_tensorflow

    threads = my_threads().intra_op
    comm = start_comm(config.runtime.backend, config.runtime.horovod, has_groups=config.has_groups)
    configure_tensorflow(config, threads, comm.local_rank)
    resume = args.resume is not None or (args.go_on and on_root(comm, lambda: holds_run(config.output)))
    train(config, comm, stop, resume=resume, overwrite=args.overwrite)


def _refuse_what_does_not_go_together(args: argparse.Namespace) -> None:
    mistakes = {
        "--overwrite with --resume": (args.overwrite and args.resume, "--resume goes on with a run, or --overwrite"),
        "--continue with --overwrite": (args.go_on and args.overwrite, "--continue goes on with a run, or --overwrite"),
        "--plan with --resume": (args.plan and args.resume, f"--plan {args.resume}/config.yaml plans all of it"),
        "--world-size and --ranks-per-node without --plan": (
            (args.world_size or args.ranks_per_node) and not args.plan,
            "mpirun -np N starts N ranks",
        ),
    }
    for what, (is_so, fix) in mistakes.items():
        if is_so:
            raise ConfigError(f"{what} means nothing", where="command line", fix=fix)


def _print_plan(config: Config, world_size: int, ranks_per_node: int) -> None:
    from trainer.runtime.start import my_threads
    from trainer.train.forecast import print_forecast
    from trainer.train.session import configure_tensorflow

    threads = config.runtime.intra_op_threads or my_threads().intra_op
    configure_tensorflow(config, threads, 0)
    print_forecast(config, world_size, ranks_per_node, threads)


def _config(args: argparse.Namespace) -> Config:
    """The configuration given, or that of the run to resume with the same overrides allowed after it."""
    if args.resume is None:
        if args.config is None:
            raise ConfigError("no configuration given", where="command line", fix="widefield train configs/demo.yaml")
        return load_config(args.config, args.overrides)
    overrides = [o for o in (args.config, *args.overrides) if o]
    return load_config(args.resume / "config.yaml", [*overrides, f"output={json.dumps(str(args.resume))}"])
