from __future__ import annotations

import argparse
from pathlib import Path

from trainer.cli.common import OVERRIDES_HELP, add_config_arguments, config_of, parse_task
from trainer.cli.progress import ProgressLines

NAME = "index"
HELP = "find the patches of every slide and split them into training and validation"
DETAILS = f"""\
Writes one Parquet file (index_file, else OUTPUT/index.parquet) that `train` and `extract` then use, and beside it
`*.slides.csv`: per slide what was found, the area of each class, and what was passed over and why. Optional: `train`
builds the index when it is not there.

  widefield index CONFIG                                         all cores of this machine
  mpirun -np 8 python -m trainer index CONFIG                    slides shared among the ranks
  sbatch --array=0-31 --wrap 'widefield index CONFIG --task $SLURM_ARRAY_TASK_ID/32'
  widefield index CONFIG                                         after the array: puts its work together

Each finished slide is kept in `*.parts/`: after a stop, or with one slide more, only what is missing is done. The file
is the same on any number of ranks, processes or tasks.

{OVERRIDES_HELP}"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_config_arguments(parser)
    parser.add_argument("-o", "--out", type=Path, metavar="FILE", help="write the index here instead")
    parser.add_argument("--workers", type=int, metavar="N", help="processes (default: one per core; 1 under mpirun)")
    parser.add_argument(
        "--task", type=parse_task, metavar="I/N", help="only slides I, I+N, I+2N, ... of the data set, I from 0"
    )


def run(args: argparse.Namespace) -> None:
    """One task of an array, or the whole index: by MPI ranks where there are several, else by processes."""
    from trainer.config import check_rules
    from trainer.patches.build import build_index, do_jobs, jobs_of, raise_failures
    from trainer.patches.summary import slides_csv, summary
    from trainer.runtime import start_comm
    from trainer.runtime.pool import local_pool

    config = config_of(args)
    comm = start_comm("mpi")
    check_rules(config, comm.world_size)
    path = args.out or config.index_path
    progress = ProgressLines("slides", active=comm.rank == 0)
    workers = args.workers if comm.world_size == 1 else 1
    with local_pool(workers) as pool:
        if args.task:
            task, num_tasks = args.task
            outcomes = do_jobs(jobs_of(config, path)[task::num_tasks], pool, progress)
            raise_failures(outcomes, config)
            print(f"task {task} of {num_tasks}: {len(outcomes)} slides done; `widefield index` puts them together")
            return
        index = build_index(config, path, comm.rank, comm.world_size, comm.gather, progress, pool)

    if comm.rank == 0:
        for line in index.unreadable:
            print(f"warning: slide passed over: {line}")
        print(summary(index))
        print(f"index: {path}\nslides: {slides_csv(path)}")
