from __future__ import annotations

import argparse
from pathlib import Path

from trainer.cli.common import OVERRIDES_HELP, add_config_arguments, config_of

NAME = "index"
HELP = "find the patches of every slide and split them into training and validation"
DETAILS = f"""\
Writes one Parquet file (index_file, else OUTPUT/index.parquet) that `train` then uses. Optional: `train` builds it
when it is not there. Under mpirun or srun the slides are shared among the ranks; the file is the same.

{OVERRIDES_HELP}"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_config_arguments(parser)
    parser.add_argument("-o", "--out", type=Path, metavar="FILE", help="write the index here instead")


def run(args: argparse.Namespace) -> None:
    from trainer.config import check_rules
    from trainer.patches.build import build_index
    from trainer.patches.index import write_index
    from trainer.runtime import on_root, start_comm

    config = config_of(args)
    comm = start_comm("mpi")
    check_rules(config, comm.world_size)
    path = args.out or config.index_file or config.output / "index.parquet"

    def progress(done: int, total: int) -> None:
        if comm.rank == 0:
            print(f"{done}/{total} slides", flush=True)

    index = build_index(config, comm.rank, comm.world_size, comm.gather, progress)

    def write() -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_index(index, path)
        for line in index.unreadable:
            print(f"warning: slide passed over: {line}")
        print(summary(index))
        print(f"index: {path}")

    on_root(comm, write)


def summary(index) -> str:
    """Patches per size and split, with the mean share of each class."""
    lines = [
        f"{'size':>6} {'split':>6} {'slides':>7} {'patches':>8}  " + "  ".join(f"{c:>10}" for c in index.class_names)
    ]
    for size in index.patch_sizes:
        for split in ("train", "val", "test"):
            rows = index.select(size, split)
            if len(rows):
                shares = index.label_fractions[rows].mean(axis=0)
                slides = len(set(index.slide[rows].tolist()))
                cells = "  ".join(f"{s:>10.1%}" for s in shares)
                lines.append(f"{size:>6} {split:>6} {slides:>7} {len(rows):>8}  {cells}")
    return "\n".join(lines)
