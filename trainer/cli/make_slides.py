from __future__ import annotations

import argparse
from pathlib import Path

NAME = "make-slides"
HELP = "write synthetic slides in the CAMELYON16 layout, to try Widefield without data"
DETAILS = """\
H&E-like pyramidal JPEG TIFFs that OpenSlide opens, with ASAP XML. Tumour and benign nests have the same texture; only
a small structure at their centre tells them apart, so a patch must be large enough to contain it.

  widefield make-slides data/demo --train 8 --test 2 --size 2048 --seed 1"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("directory", type=Path, help="empty or new directory")
    parser.add_argument("--train", type=int, default=8, metavar="N", help="training slides (default 8)")
    parser.add_argument("--test", type=int, default=2, metavar="N", help="test slides (default 2)")
    parser.add_argument("--size", type=int, default=2048, metavar="PX", help="width and height (default 2048)")
    parser.add_argument("--seed", type=int, default=1, help="the same seed gives the same pixels (default 1)")


def run(args: argparse.Namespace) -> None:
    from trainer.slides.synthetic import make_slides

    def progress(done: int, total: int) -> None:
        print(f"\r{done}/{total} slides", end="\n" if done == total else "", flush=True)

    paths = make_slides(
        args.directory, num_train=args.train, num_test=args.test, size=args.size, seed=args.seed, progress=progress
    )
    print(f"{len(paths)} slides in {args.directory}; use them with data.format=camelyon16 data.path={args.directory}")
