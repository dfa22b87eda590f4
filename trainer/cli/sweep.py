from __future__ import annotations

import argparse

from trainer.cli.experiment import EXPERIMENT_HELP, add_experiment_arguments, carry_out

NAME = "sweep"
HELP = "train a run for each combination of settings, and rank them"
DETAILS = f"""\
  widefield sweep configs/demo.yaml 'training.optimizer.learning_rate=[1e-3,1e-4]' 'model.norm=[group,batch]' seed=3
  widefield sweep configs/demo.yaml 'curriculum.2.steps=[200,400]' -o runs/steps --ranks 2
  widefield sweep configs/camelyon16.yaml 'training.compression=[none,fp16]' --submit dual-socket --nodes 8
  widefield sweep --report runs/demo-sweep

The elements of a YAML list are the values that are tried; what has no list holds for all runs. A setting that is
itself a list takes a list of lists: 'training.loss.class_weights=[[1,1],[1,4]]'. Brackets want quotes in a shell.

{EXPERIMENT_HELP}

DIR/sweep.md is the table, best common mIoU first, DIR/sweep.json the same for programs, DIR/sweep.png the figure."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_experiment_arguments(parser)


def run(args: argparse.Namespace) -> None:
    from trainer.experiments.grid import sweep_runs

    carry_out(args, "sweep", lambda: sweep_runs(args.overrides))
