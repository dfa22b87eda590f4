from __future__ import annotations

import argparse

from trainer.cli.common import OVERRIDES_HELP, add_config_arguments, config_of
from trainer.config import check_groups, check_rules, dump_config

NAME = "config"
HELP = "check a configuration and print it with every default filled in"
DETAILS = OVERRIDES_HELP


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_config_arguments(parser)
    parser.add_argument("--world-size", type=int, metavar="N", help="check the rules for N ranks")


def run(args: argparse.Namespace) -> None:
    config = config_of(args)
    if args.world_size:
        check_groups(config, args.world_size)
    for warning in check_rules(config, args.world_size or 1):
        print(f"# warning: {warning}")
    print(dump_config(config), end="")
