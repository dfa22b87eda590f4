from __future__ import annotations

import argparse
from pathlib import Path

NAME = "evaluate"
HELP = "score a run's checkpoints again"
DETAILS = """\
Scores the checkpoint at the end of every stage at that stage's patch size, per size and on the common footprint, and
writes RUN_DIR/evaluation.json. On any number of ranks the figures are those of the report (with
as many threads per rank to the last bit, else an AUC may differ in its sixth digit).

  widefield evaluate runs/demo
  mpirun -np 2 python -m trainer evaluate runs/demo
  widefield evaluate runs/demo --patch-size 256            the last checkpoint at one size
  widefield evaluate runs/demo evaluation.max_regions=50   settings of the run can be changed
  widefield evaluate runs/demo --trained-weights           what did averaging the weights (training.ema_decay) bring?"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run_dir", type=Path, help="directory of a run")
    parser.add_argument("overrides", nargs="*", metavar="key.path=value", help="settings that replace the run's")
    parser.add_argument("--checkpoint", type=Path, metavar="FILE", help="score this one instead (with --patch-size)")
    parser.add_argument("--patch-size", type=int, metavar="PX", help="score the last checkpoint at this size only")
    parser.add_argument(
        "--trained-weights", action="store_true", help="score the weights as trained, not their moving average"
    )


def run(args: argparse.Namespace) -> None:
    from trainer.config import load_config
    from trainer.runtime import start_comm
    from trainer.runtime.start import my_threads

    config = load_config(args.run_dir / "config.yaml", args.overrides)
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
