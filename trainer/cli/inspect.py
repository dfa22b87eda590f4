from __future__ import annotations

import argparse
from pathlib import Path

from trainer.cli.common import OVERRIDES_HELP, add_config_arguments, config_of
from trainer.cli.progress import ProgressLines

NAME = "inspect"
HELP = "write a page that shows slides, annotations, tissue and patches as training will use them"
DETAILS = f"""\
One HTML file for any browser; it needs nothing beside it. Builds the index where there is none with these settings.

  widefield inspect CONFIG                          up to 20 slides, all of them in the list
  widefield inspect CONFIG --slide tumor_001        that slide alone

{OVERRIDES_HELP}"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_config_arguments(parser)
    parser.add_argument("--slide", metavar="NAME", help="draw this slide alone: its file name, with or without suffix")
    parser.add_argument("--max-slides", type=int, default=20, metavar="N", help="draw at most N slides (default 20)")
    parser.add_argument(
        "-o", "--out", type=Path, metavar="FILE", help="the page (default inspect.html beside the index)"
    )


def run(args: argparse.Namespace) -> None:
    from trainer.config import check_rules
    from trainer.inspect.write import write_page
    from trainer.patches.build import read_or_build
    from trainer.runtime.pool import local_pool

    config = config_of(args)
    check_rules(config)
    with local_pool() as pool:
        index = read_or_build(config, ProgressLines("slides"), pool)
    out = write_page(
        index, config, config.index_path, args.out, args.slide, args.max_slides, ProgressLines("slides drawn")
    )
    print(f"page: {out} ({out.stat().st_size / 1e6:.1f} MB)")
