from __future__ import annotations

import argparse
from pathlib import Path

from trainer.cli import evaluate_slides
from trainer.errors import ConfigError

NAME = "evaluate"
HELP = "score a run's checkpoints again, or its network on whole slides"
DETAILS = """\
Scores the checkpoint at the end of every stage at that stage's patch size, per size and on the common footprint, and
writes RUN_DIR/evaluation.json. On any number of ranks the figures are those of the report (with
as many threads per rank to the last bit, else an AUC may differ in its sixth digit).

  widefield evaluate runs/demo
  mpirun -np 2 python -m trainer evaluate runs/demo
  widefield evaluate runs/demo --patch-size 256            the last checkpoint at one size
  widefield evaluate runs/demo evaluation.max_regions=50   settings of the run can be changed
  widefield evaluate runs/demo --trained-weights           what did averaging the weights (training.ema_decay) bring?

With --slides it predicts whole slides as `widefield predict` does, those that are not predicted yet, and scores them
against their annotations: pixels, lesions (CAMELYON16's FROC) and slides with tumour (AUC), with intervals and a table
by centre. It writes RUN_DIR/slides.html, the worst slides first, and RUN_DIR/slides.json.

  widefield evaluate runs/demo --slides                    the test slides, or those of validation where there are none
  mpirun -np 5 python -m trainer evaluate runs/demo --slides val            rank 0 hands slides to 4 others
  widefield evaluate runs/demo --slides all data.path=other.csv             slides of another data set
  widefield evaluate runs/demo --slides --predictions DIR                   predictions that are there already

A slide that cannot be predicted or scored is listed, the others are reported; the exit status is then 2."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run_dir", type=Path, help="directory of a run")
    parser.add_argument("overrides", nargs="*", metavar="key.path=value", help="settings that replace the run's")
    parser.add_argument("--checkpoint", type=Path, metavar="FILE", help="score this one instead (with --patch-size)")
    parser.add_argument("--patch-size", type=int, metavar="PX", help="score the last checkpoint at this size only")
    parser.add_argument(
        "--trained-weights", action="store_true", help="score the weights as trained, not their moving average"
    )
    slides = parser.add_argument_group("whole slides")
    slides.add_argument(
        "--slides",
        nargs="?",
        const=evaluate_slides.AUTO,
        choices=evaluate_slides.SPLITS,
        help="score whole slides of a split of the run (auto, the default: test where there are test slides, else val)",
    )
    slides.add_argument(
        "--predictions", type=Path, metavar="DIR", help="folder of the predictions (default: RUN_DIR/slides)"
    )
    slides.add_argument(
        "--class",
        dest="tumour_class",
        metavar="NAME",
        help="the class that is tumour, for lesions and slides (default: all classes but the first)",
    )


def run(args: argparse.Namespace) -> None:
    if args.slides:
        evaluate_slides.run(args)
        return
    for name, value in (("--predictions", args.predictions), ("--class", args.tumour_class)):
        if value:
            raise ConfigError("means something for whole slides only", where=name, fix="add --slides")
    _score_patches(args)


def _score_patches(args: argparse.Namespace) -> None:
    from trainer.config import load_run_config
    from trainer.runtime import start_comm
    from trainer.runtime.start import my_threads

    config = load_run_config(args.run_dir, args.overrides)
    from trainer.train.evaluate_run import evaluate_run
    from trainer.train.session import configure_tensorflow

    threads = my_threads().intra_op
    comm = start_comm(config.runtime.backend, config.runtime.horovod, has_groups=config.has_groups)
    configure_tensorflow(config, threads, comm.local_rank)
    evaluate_run(
        config,
        args.run_dir,
        comm,
        checkpoint=args.checkpoint,
        patch_size=args.patch_size,
        trained_weights=args.trained_weights,
    )
