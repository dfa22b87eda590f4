from __future__ import annotations

import argparse
from pathlib import Path

from trainer.errors import LaunchError

NAME = "submit"
HELP = "check a run and hand it to Slurm with sbatch"
DETAILS = """\
  widefield submit configs/camelyon16.yaml --nodes 32 --site dual-socket
  widefield submit configs/camelyon16.yaml --nodes 32 --site dual-socket training.precision=mixed_bfloat16 --dry-run
  widefield submit configs/camelyon16.yaml --nodes 16 --site dual-socket --job extract stores.kind=hdf5 stores.path=DIR
  widefield submit runs/camelyon16 --nodes 2 --site dual-socket --job evaluate

Checks the configuration for the number of ranks that the site's nodes give, before the queue does. What it then runs
is an sbatch line that it shows, and that you may type yourself; the site's lines are in slurm/sites/SITE.env."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("target", help="YAML file of the run; with --job evaluate the directory of a run")
    parser.add_argument("overrides", nargs="*", metavar="key.path=value", help="settings that replace the file's")
    parser.add_argument("--nodes", type=int, required=True, metavar="N", help="nodes (with --job extract: array tasks)")
    parser.add_argument("--site", required=True, metavar="S", help="slurm/sites/S.env")
    parser.add_argument(
        "--job",
        choices=("train", "extract", "evaluate"),
        default="train",
        help="script of slurm/ (default: train)",
    )
    parser.add_argument("--time", metavar="D-HH:MM", help="time limit of the job (default: the site's)")
    parser.add_argument("--dry-run", action="store_true", help="check and show the line, submit nothing")


def run(args: argparse.Namespace) -> None:
    """Check, show, submit."""
    from trainer.launch.commands import Layout
    from trainer.launch.plan import plan_node
    from trainer.launch.sbatch import check_script, submit
    from trainer.launch.site import read_site

    if args.nodes < 1:
        raise LaunchError(f"{args.nodes} nodes", where="--nodes", fix="1 or more")
    script, site = check_script(args.job), read_site(args.site)
    if args.job == "extract":
        _check(args, 1)
        options = [f"--array=0-{args.nodes - 1}"]
    else:
        layout = Layout(args.nodes, plan_node(site.topology, num_nodes=args.nodes), site.topology)
        print(layout.describe())
        _check(args, layout.world_size)
        options = [f"--nodes={args.nodes}"]
    options += [f"--time={args.time}"] if args.time else []
    submit(script, options, [args.target, *args.overrides], site, dry_run=args.dry_run)


def _check(args: argparse.Namespace, world_size: int) -> None:
    from trainer.config import check_groups, check_rules, load_config

    path = Path(args.target) / "config.yaml" if args.job == "evaluate" else Path(args.target)
    config = load_config(path, args.overrides)
    if args.job == "train":
        check_groups(config, world_size)
    for warning in check_rules(config, world_size):
        print(f"warning: {warning}")
