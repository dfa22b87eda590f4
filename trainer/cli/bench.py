from __future__ import annotations

import argparse
import shlex
import sys
from pathlib import Path

NAME = "bench"
HELP = "measure this machine: memory of a training step against patch size"
DETAILS = """\
Models and measures {float32, bfloat16} x {without, with recomputing}, each point in a fresh process, and writes
README.md, bench.json and memory.png. A point that would not fit in free memory is listed, not run.

  widefield bench memory                                       256 to 2048 px, about 15 minutes on two cores
  widefield bench memory --sizes 256,512 --backbone mobilenetv2 -o /tmp/memory"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("what", choices=["memory"])
    parser.add_argument("--sizes", type=parse_sizes, default="256,512,1024,2048", metavar="PX,PX,...")
    parser.add_argument("--backbone", default="resnet50", help="default resnet50")
    parser.add_argument("--batch", type=int, default=1, metavar="N", help="patches in a step (default 1)")
    parser.add_argument("--steps", type=int, default=3, metavar="N", help="timed steps of each point (default 3)")
    parser.add_argument("-o", "--out", type=Path, default=Path("results/memory"), metavar="FOLDER")


def parse_sizes(text: str) -> tuple[int, ...]:
    """`256,512` as numbers, each a multiple of 16 as the networks need."""
    parts = text.split(",")
    if not all(p.isdigit() and int(p) >= 32 and int(p) % 16 == 0 for p in parts):
        raise argparse.ArgumentTypeError(f"'{text}' is not a list of multiples of 16 from 32 on, such as 256,512")
    return tuple(map(int, parts))


def run(args: argparse.Namespace) -> None:
    from trainer.bench.memory import bench_memory
    from trainer.bench.memory_report import write_report

    command = shlex.join(["widefield", *sys.argv[1:]])
    for points in bench_memory(args.sizes, args.backbone, args.batch, args.steps, lambda line: print(line, flush=True)):
        write_report(points, args.out, command)  # after each point: a long bench may be stopped
    print(f"written: {args.out / 'README.md'}")
