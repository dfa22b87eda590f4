"""`widefield` and `python -m trainer`: the list of commands, and how errors reach people."""

from __future__ import annotations

import argparse
import logging
import os
import sys
import traceback
from collections.abc import Sequence

from trainer import __version__
from trainer.cli import (
    bench,
    config,
    crossval,
    doctor,
    evaluate,
    export,
    extract,
    index,
    inspect,
    launch,
    make_slides,
    predict,
    runs,
    scaling,
    submit,
    sweep,
    train,
)
from trainer.errors import StoppedBySignal, WidefieldError
from trainer.extras import how_to_install
from trainer.runtime.start import stop_all_ranks
from trainer.runtime.world import detect_world

COMMANDS = (
    make_slides,
    index,
    inspect,
    extract,
    train,
    launch,
    submit,
    sweep,
    crossval,
    evaluate,
    export,
    predict,
    scaling,
    runs,
    config,
    doctor,
    bench,
)

_DESCRIPTION = """\
Train segmentation networks on whole-slide images with a curriculum of growing patch sizes.

A first run, on slides that it makes itself:
  widefield make-slides data/demo
  widefield train configs/demo.yaml                              one process
  mpirun -np 2 python -m trainer train configs/demo.yaml         two ranks, the same program
"""


def make_parser() -> argparse.ArgumentParser:
    """One parser for every command of `COMMANDS`, whose help is its own."""
    parser = argparse.ArgumentParser(
        prog="widefield", description=_DESCRIPTION, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--version", action="version", version=f"widefield {__version__}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    for command in COMMANDS:
        sub = commands.add_parser(
            command.NAME,
            help=command.HELP,
            description=f"{command.HELP}.\n\n{command.DETAILS}",
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        command.add_arguments(sub)
        sub.set_defaults(run=command.run, passes_on=getattr(command, "PASSES_ON", False))
    return parser


def parse(parser: argparse.ArgumentParser, argv: Sequence[str] | None) -> argparse.Namespace:
    """Parse, with key.path=value overrides allowed after options too, which argparse alone refuses."""
    args, rest = parser.parse_known_args(argv)
    if args.passes_on:  # what is not its own belongs to the command that it starts, in the order given
        args.rest = rest
        return args
    late = [a for a in rest if "=" in a and not a.startswith("-")]
    if len(late) < len(rest) or (late and not hasattr(args, "overrides")):
        parser.error(f"unrecognized arguments: {' '.join(a for a in rest if a not in late) or ' '.join(late)}")
    if late:
        args.overrides = [*args.overrides, *late]
    return args


def rank_of_this_process() -> int:
    world = detect_world(os.environ)
    return world.rank if world else 0


def _show_log() -> None:
    """Remarks of the data code (slides left out, say) go to people once, on rank 0."""
    if rank_of_this_process() == 0:
        handler = logging.StreamHandler()
        handler.setFormatter(logging.Formatter("%(message)s"))
        logging.getLogger("trainer").addHandler(handler)
        logging.getLogger("trainer").setLevel(logging.INFO)


def main(argv: Sequence[str] | None = None) -> None:
    """Run one command.

    Exit status: 0 done, 1 a bug of ours (with traceback) or one of several runs that failed, 2 a mistake it can
    explain, 75 stopped by a signal with its state saved: start it again.
    """
    args = parse(make_parser(), argv)
    _show_log()
    try:
        args.run(args)
    except WidefieldError as error:
        stop_all_ranks(str(error), 2)
    except StoppedBySignal as stopped:
        if rank_of_this_process() == 0:
            print(stopped, file=sys.stderr, flush=True)
        sys.exit(stopped.EXIT_CODE)
    except KeyboardInterrupt:
        stop_all_ranks("interrupted", 130)
    except BrokenPipeError:  # the reader of our output has gone (| head)
        sys.stderr.close()
    except ModuleNotFoundError as error:
        text = how_to_install(error)
        stop_all_ranks(text or traceback.format_exc(), 2 if text else 1)
    except Exception:
        stop_all_ranks(traceback.format_exc(), 1)
