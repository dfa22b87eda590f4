"""What `widefield sweep` and `widefield crossval` share: their options, and the way from runs to a report."""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from trainer.cli.common import add_config_arguments, count
from trainer.errors import ConfigError

if TYPE_CHECKING:
    from trainer.experiments.grid import NamedRun
    from trainer.experiments.plan import Experiment, Kind

EXPERIMENT_HELP = """\
Each run is a directory DIR/NAME with its own config.yaml, trained as if you had typed
  widefield train DIR/NAME/config.yaml --continue               (with --ranks N: widefield launch --ranks N train ...)
and what it prints on this machine is kept in DIR/NAME.log. All configurations, and the slides they name, are checked
before the first run starts. A run that fails does not stop the others; the exit status is then 1. Give the same command
again after a stop: finished runs are skipped, one that was broken off goes on. Slides are indexed once for all runs."""


def add_experiment_arguments(parser: argparse.ArgumentParser) -> None:
    add_config_arguments(parser, optional=True)
    parser.add_argument("-o", "--out", type=Path, metavar="DIR", help="default: OUTPUT-sweep, OUTPUT-crossval")
    parser.add_argument(
        "--ranks", type=count, metavar="N", help="ranks of each run (default: one process, no launcher)"
    )
    parser.add_argument("--submit", metavar="SITE", help="send all runs to Slurm as one array (slurm/sites/SITE.env)")
    parser.add_argument("--nodes", type=count, metavar="N", help="--submit: nodes of each run (default 1)")
    parser.add_argument("--time", metavar="D-HH:MM", help="--submit: time limit of each run (default: the site's)")
    parser.add_argument("--dry-run", action="store_true", help="check and list the runs, write and start nothing")
    parser.add_argument(
        "--report", type=Path, metavar="DIR", help="only write the report anew, of the runs as they are"
    )


def carry_out(args: argparse.Namespace, kind: Kind, make_runs: Callable[[], Sequence[NamedRun]]) -> None:
    """Check all runs, then train or submit those that are not finished, and write the report."""
    from trainer.experiments.plan import Experiment, check, configs_of, write_configs
    from trainer.experiments.report import read_experiment, write_report

    if args.report:
        print(f"report: {write_report(read_experiment(args.report, kind))}")
        return
    if args.config is None:
        raise ConfigError("no configuration given", where="command line", fix=f"widefield {kind} configs/demo.yaml ...")
    _refuse_what_does_not_go_together(args)
    runs = make_runs()
    folder, configs = configs_of(args.config, runs, kind, args.out)
    lines, warnings = check(runs, configs, _world_size(args))
    print(f"{len(runs)} runs in {folder}:", *lines, sep="\n  ")
    for warning in warnings:
        print(f"warning: {warning}")
    experiment = Experiment(kind, folder, _typed(args, kind, folder), tuple(runs))
    if not args.dry_run:
        write_configs(configs)
        write_report(experiment)
    if args.submit:
        _submit(args, experiment)
    elif not args.dry_run:
        _train(args, experiment)


def _refuse_what_does_not_go_together(args: argparse.Namespace) -> None:
    if args.submit and args.ranks is not None:
        fix = "--nodes N; the site's file says how many ranks a node has"
        raise ConfigError("--ranks with --submit means nothing", where="command line", fix=fix)
    if not args.submit and (args.nodes is not None or args.time is not None):
        fix = "--submit SITE, or --ranks N for this machine"
        raise ConfigError("--nodes and --time mean nothing without --submit", where="command line", fix=fix)


def _world_size(args: argparse.Namespace) -> int:
    """Ranks of each run; raises LaunchError where they cannot be placed."""
    from trainer.launch.commands import Layout
    from trainer.launch.launcher import layout_here
    from trainer.launch.plan import plan_node
    from trainer.launch.site import read_site

    if args.submit:
        topology, nodes = read_site(args.submit).topology, args.nodes or 1
        return Layout(nodes, plan_node(topology, num_nodes=nodes), topology).world_size
    return layout_here(args.ranks).world_size if args.ranks is not None else 1


def _typed(args: argparse.Namespace, kind: Kind, folder: Path) -> str:
    """What a reader types to carry it out, or the rest of it."""
    given = {name: getattr(args, name, None) for name in ("folds", "ranks", "submit", "nodes", "time")}
    words = [word for name, value in given.items() if value is not None for word in (f"--{name}", str(value))]
    return shlex.join(["widefield", kind, args.config, *args.overrides, "-o", str(folder), *words])


def _submit(args: argparse.Namespace, experiment: Experiment) -> None:
    """One array, a task for each run that is to be trained."""
    from trainer.experiments.results import LEFT_ALONE, state_of
    from trainer.launch.sbatch import check_script, submit
    from trainer.launch.site import read_site

    folders = [experiment.folder / run.name for run in experiment.runs]
    left = [str(folder) for folder in folders if state_of(folder) not in LEFT_ALONE]
    if not left:
        print("all runs are finished or being trained")
        return
    options = [f"--array=0-{len(left) - 1}", f"--nodes={args.nodes or 1}"]
    options += [f"--time={args.time}"] if args.time else []
    submit(check_script("experiment"), options, left, read_site(args.submit), dry_run=args.dry_run)
    print(f"when they are done: widefield {experiment.kind} --report {experiment.folder}")


def _train(args: argparse.Namespace, experiment: Experiment) -> None:
    from trainer.experiments.execute import train_all
    from trainer.experiments.report import write_report

    folders = [experiment.folder / run.name for run in experiment.runs]
    failed = train_all(folders, args.ranks, lambda text: print(text, flush=True), lambda: write_report(experiment))
    print(f"report: {write_report(experiment)}")
    if failed:
        print(f"failed: {', '.join(folder.name for folder in failed)}; their logs say why", file=sys.stderr)
        sys.exit(1)
