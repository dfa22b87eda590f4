from __future__ import annotations

import argparse

from trainer.cli.common import OVERRIDES_HELP, count
from trainer.cli.experiment import EXPERIMENT_HELP, add_experiment_arguments, carry_out

NAME = "crossval"
HELP = "train a run for each fold of a cross-validation, and report mean and spread"
DETAILS = f"""\
  widefield crossval configs/demo.yaml --folds 5
  widefield crossval configs/camelyon16.yaml --folds 5 -o runs/c16-folds --submit dual-socket --nodes 8
  widefield crossval configs/camelyon17.yaml 'split.train_centres=[]' 'split.val_centres=[]' --folds 5
  widefield crossval --report runs/demo-crossval
  widefield train configs/demo.yaml split.folds=5 split.fold=2          one fold by hand

Every patient (slide, centre: split.by) validates in exactly one fold; folds hold equally many of all, of those with an
annotation and of those of each centre, to one. They follow from names and the seed. Slides that the manifest puts on
train or val take part in the folds; its test slides are used in none.

{EXPERIMENT_HELP}

DIR/crossval.md is the report, DIR/crossval.json the same for programs.

{OVERRIDES_HELP}"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_experiment_arguments(parser)
    parser.add_argument("--folds", type=count, default=5, metavar="K", help="default 5")


def run(args: argparse.Namespace) -> None:
    from trainer.experiments.grid import fold_runs

    carry_out(args, "crossval", lambda: fold_runs(args.folds, args.overrides))
