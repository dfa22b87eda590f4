"""What several commands share: the configuration argument with its overrides."""

from __future__ import annotations

import argparse

from trainer.config import Config, load_config

OVERRIDES_HELP = """\
Settings can be changed after the file as key.path=value (values are YAML):
  training.precision=mixed_bfloat16  curriculum.0.steps=20  data.path=/scratch/slides"""


def add_config_arguments(parser: argparse.ArgumentParser, *, optional: bool = False) -> None:
    parser.add_argument("config", nargs="?" if optional else None, help="YAML file of the run; see configs/")
    parser.add_argument("overrides", nargs="*", metavar="key.path=value", help="settings that replace the file's")


def config_of(args: argparse.Namespace) -> Config:
    return load_config(args.config, args.overrides)


def count(text: str) -> int:
    """A number of ranks, nodes or folds."""
    if not text.isdecimal() or not int(text):
        raise argparse.ArgumentTypeError(f"{text} is not a number, 1 or more")
    return int(text)


def parse_task(text: str) -> tuple[int, int]:
    """`I/N` of a job array as (task, number of tasks)."""
    task, slash, count = text.partition("/")
    if not (slash and task.isdigit() and count.isdigit() and int(task) < int(count)):
        raise argparse.ArgumentTypeError(f"'{text}' is not I/N with I from 0 to N - 1, such as 0/32")
    return int(task), int(count)
