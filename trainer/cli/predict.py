from __future__ import annotations

import argparse
import os
from collections import Counter
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

from trainer.cli.common import count, parse_task
from trainer.cli.progress import ProgressLines
from trainer.errors import DataError, SlideError, WidefieldError

if TYPE_CHECKING:
    from trainer.infer.network import Network

NAME = "predict"
HELP = "predict whole slides with a run's network"
DETAILS = """\
Predicts the tissue of each slide with the weights that scored best and writes into OUT/SLIDE/: probability-CLASS.tif
and classes.tif (pyramids), regions.geojson (QuPath), overview.png and, last, summary.json. Run it again after a stop:
what is predicted is kept. A slide of another resolution than the training's is resampled.

  widefield predict runs/demo slide.svs -o predictions
  widefield predict runs/demo slides/*.tif -o predictions --tile 2048 --overlap 128
  mpirun -np 5 python -m trainer predict runs/demo slides/*.tif -o predictions      rank 0 hands slides to 4 others

A slide that cannot be predicted is listed at the end, the others go on; the exit status is then 2."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run_dir", type=Path, help="directory of a run")
    parser.add_argument("slides", nargs="+", type=Path, metavar="SLIDE", help="whole-slide images")
    parser.add_argument("-o", "--output", type=Path, required=True, metavar="OUT", help="folder of the results")
    parser.add_argument("--tile", type=count, metavar="PX", help="side of a tile (default: the largest trained size)")
    parser.add_argument(
        "--overlap",
        type=pixels,
        metavar="PX",
        help="pixels over which neighbouring tiles blend; they share twice as many (default: an eighth of a tile)",
    )
    parser.add_argument("--task", type=parse_task, metavar="I/N", help="only slides I, I+N, I+2N, ... of those given")
    parser.add_argument(
        "--mpp", type=micrometres, metavar="UM", help="um per level-0 pixel of slides that do not say theirs"
    )


def pixels(text: str) -> int:
    """An overlap, which may be 0."""
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text} is not a number of pixels, 0 or more")
    return int(text)


def micrometres(text: str) -> float:
    """The size of a pixel."""
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < 100:
        raise argparse.ArgumentTypeError(f"{text} is not a size in um, such as 0.25")
    return value


@dataclass(frozen=True)
class Job:
    """One slide to predict."""

    run: Path
    slide: Path
    folder: Path
    tile: int | None
    overlap: int | None
    mpp: float | None


@dataclass(frozen=True)
class Outcome:
    """A slide that is predicted, or what is wrong with it."""

    slide: Path
    error: WidefieldError | None


def run(args: argparse.Namespace) -> None:
    from trainer.runtime.pool import worker_pool

    jobs = jobs_of(args)
    with worker_pool(1) as pool:
        if pool is None:  # this rank worked for rank 0
            return
        outcomes = list(pool(predict, jobs))
    raise_failures(outcomes)


def jobs_of(args: argparse.Namespace) -> list[Job]:
    """A job for each slide, or for each of this task of a job array.

    Raises:
      DataError: a slide is not there, or two would have one folder.
    """
    for slide in args.slides:
        if not slide.exists():
            raise DataError("there is no such slide", where=str(slide), fix="correct the path")
    stem, times = Counter(slide.stem for slide in args.slides).most_common(1)[0]
    if times > 1:
        raise DataError(
            f"{times} slides are named {stem} and would share the folder {args.output / stem}",
            where="predict",
            fix="predict them one after the other with different folders (-o)",
        )
    task, num_tasks = args.task or (0, 1)
    slides = args.slides[task::num_tasks]
    return [Job(args.run_dir, s, args.output / s.stem, args.tile, args.overlap, args.mpp) for s in slides]


def predict(job: Job) -> Outcome:
    """Predict one slide; what is wrong with it is told at the end, what is wrong with the run at once."""
    from trainer.infer.slide_job import predict_slide
    from trainer.runtime.start import my_threads
    from trainer.runtime.world import detect_world

    def say(line: str) -> None:
        print(f"{job.slide.name}: {line}", flush=True)

    network = _network(job.run)
    world = detect_world(os.environ)
    try:
        predict_slide(
            job.slide,
            network,
            job.folder,
            tile=job.tile,
            overlap=job.overlap,
            mpp=job.mpp,
            threads=my_threads().intra_op,
            say=say,
            progress=ProgressLines("tiles", active=world is None or world.world_size == 1),
        )
    except WidefieldError as error:
        say(f"failed: {error.what}")
        return Outcome(job.slide, error)
    say(f"results: {job.folder}")
    return Outcome(job.slide, None)


@lru_cache(maxsize=1)
def _network(run: Path) -> Network:
    """A process builds it once, with the threads and the GPU that it was given."""
    from trainer.config import load_config
    from trainer.runtime.start import my_threads
    from trainer.runtime.world import World, detect_world

    config = load_config(run / "config.yaml")
    from trainer.infer.run_network import RunNetwork
    from trainer.train.session import configure_tensorflow

    configure_tensorflow(config, my_threads().intra_op, (detect_world(os.environ) or World()).local_rank)
    return RunNetwork(config, run)


def raise_failures(outcomes: list[Outcome]) -> None:
    """The error of the one slide that failed, or one that lists all."""
    failed = [o for o in outcomes if o.error]
    if len(failed) == 1 and failed[0].error:
        raise failed[0].error
    if failed:
        lines = "\n".join(f"  {o.slide}: {o.error.what}" for o in failed if o.error)
        raise SlideError(
            f"{len(failed)} of {len(outcomes)} slides are not predicted:\n{lines}",
            where="predict",
            fix="mend them or leave them out, then run the command again: finished slides are kept",
        )
