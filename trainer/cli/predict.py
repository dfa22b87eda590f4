from __future__ import annotations

import argparse
import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import TYPE_CHECKING

from trainer.cli.common import count, parse_task
from trainer.cli.progress import ProgressLines
from trainer.errors import ConfigError, DataError, PredictionError, SlideError, StoppedBySignal, WidefieldError
from trainer.runtime.world import World, detect_world

if TYPE_CHECKING:
    from trainer.config import Config
    from trainer.infer.network import Network
    from trainer.infer.tiles import PredictTiles
    from trainer.runtime.pool import MpiWorkers
    from trainer.train.signals import StopRequest

NAME = "predict"
HELP = "predict whole slides with a run's network, or an export of it"
DETAILS = """\
Predicts the tissue of each slide with the weights that scored best and writes into OUT/SLIDE/: probability-CLASS.tif
and classes.tif (pyramids), regions.geojson (QuPath), overview.png and, last, summary.json. Run it again after a stop:
what is predicted is kept. A slide of another resolution than the training's is resampled.

  widefield predict runs/demo slide.svs -o predictions
  widefield predict runs/demo slides/*.tif -o predictions --tile 2048 --overlap 128
  widefield predict runs/demo/export/openvino-int8 slide.svs -o predictions      by OpenVINO; needs no TensorFlow
  mpirun -np 5 python -m trainer predict runs/demo slides/*.tif -o predictions
  mpirun -np 4 python -m trainer predict runs/demo slides/*.tif -o predictions --tile 8192 --ranks-per-tile 2

Of several ranks the first hands out slides to the others, or tiles where fewer slides are left than there are ranks;
it writes the maps then. Tiles that one rank has no memory for are shared by --ranks-per-tile ranks, each of which
computes some of their rows; groups of so many ranks take the slides in turns.

A slide that cannot be predicted is listed at the end, the others go on; the exit status is then 2. SIGTERM and SIGUSR1
(sbatch --signal=B:USR1@120) end it after the next batch of tiles, what is predicted kept, with exit status 75: run it
again. (Under mpirun send USR1: on TERM it gives its ranks half a second.)"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run_dir", type=Path, help="directory of a run, or of its export (`widefield export`)")
    parser.add_argument("slides", nargs="+", type=Path, metavar="SLIDE", help="whole-slide images")
    parser.add_argument("-o", "--output", type=Path, required=True, metavar="OUT", help="folder of the results")
    parser.add_argument("--tile", type=count, metavar="PX", help="side of a tile (default: the largest trained size)")
    parser.add_argument(
        "--overlap",
        type=pixels,
        metavar="PX",
        help="pixels over which neighbouring tiles blend; they share twice as many (default: an eighth of a tile)",
    )
    parser.add_argument(
        "--ranks-per-tile", type=count, default=1, metavar="N", help="ranks that share each tile (default: 1)"
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
    tile: int | None = None
    overlap: int | None = None
    mpp: float | None = None
    listed_mpp: float | None = None


@dataclass(frozen=True)
class Outcome:
    """A slide that is predicted, or what is wrong with it; or the work was stopped before it was done."""

    slide: Path
    error: WidefieldError | StoppedBySignal | None


def run(args: argparse.Namespace) -> None:
    jobs = jobs_of(args)
    world = detect_world(os.environ) or World()
    _stop_request()  # from here on: loading TensorFlow takes seconds, in which a warning may come
    if args.ranks_per_tile > 1:
        outcomes = _by_groups(args, jobs, world)
    elif world.world_size > 1:
        from trainer.runtime.pool import mpi_pool

        with mpi_pool() as workers:
            if workers is None:  # this rank worked for rank 0
                return
            outcomes = _by_workers(jobs, workers)
    else:
        outcomes = [predict(job, shows_progress=True) for job in jobs]
    raise_failures(outcomes)


def jobs_of(args: argparse.Namespace) -> list[Job]:
    """A job for each slide, or for each of this task of a job array.

    Raises:
      DataError: a slide is not there, or two would have one folder.
    """
    for slide in args.slides:
        if not slide.exists():
            raise DataError("there is no such slide", where=str(slide), fix="correct the path")
    check_names(args.slides, args.output, "predict them one after the other with different folders (-o)")
    task, num_tasks = args.task or (0, 1)
    slides = args.slides[task::num_tasks]
    return [Job(args.run_dir, s, args.output / s.stem, args.tile, args.overlap, args.mpp) for s in slides]


def check_names(slides: Sequence[Path], output: Path, fix: str) -> None:
    """DataError where two slides would have one folder."""
    stem, times = Counter(slide.stem for slide in slides).most_common(1)[0]
    if times > 1:
        raise DataError(
            f"{times} slides are named {stem} and would share the folder {output / stem}", where="slides", fix=fix
        )


def _by_workers(jobs: list[Job], workers: MpiWorkers) -> list[Outcome]:
    """Slides for the workers, or tiles where fewer slides are left than there are ranks."""
    from trainer.infer.by_workers import predict_by_workers
    from trainer.infer.outputs import SUMMARY

    if sum(not (job.folder / SUMMARY).exists() for job in jobs) > workers.count:
        return list(workers(predict, jobs))
    outcomes = []
    for job in jobs:
        tiles = partial(predict_by_workers, workers, partial(_network, job.run))
        outcomes.append(predict(job, predict_tiles=tiles, shows_progress=True))
    return outcomes


def _by_groups(args: argparse.Namespace, jobs: list[Job], world: World) -> list[Outcome]:
    """Every slide by one group of ranks, which share its tiles; the outcomes of all groups, on all ranks."""
    size = args.ranks_per_tile
    if world.world_size % size:
        raise ConfigError(
            f"{world.world_size} rank(s) cannot be put into groups of {size}",
            where="--ranks-per-tile",
            fix=f"mpirun -np {size} python -m trainer predict ..., or a multiple of {size} ranks",
        )
    from trainer.config import load_run_config
    from trainer.infer.shared_network import SharedNetwork
    from trainer.runtime.start import start_comm

    config = load_run_config(args.run_dir)
    comm = start_comm("mpi")
    _configure(config)
    network = SharedNetwork(config, args.run_dir, comm, size, args.tile)
    mine = jobs[world.rank // size :: world.world_size // size]
    shows_progress = world.world_size == size
    outcomes = network.lead(lambda: [predict(job, network, shows_progress=shows_progress) for job in mine])
    return [outcome for group in comm.gather(outcomes or []) for outcome in group]


def predict(
    job: Job,
    network: Network | None = None,
    predict_tiles: PredictTiles | None = None,
    *,
    shows_progress: bool = False,
) -> Outcome:
    """Predict one slide; what is wrong with it is told at the end, what is wrong with the run at once.

    Args:
      network, predict_tiles: those of this process where not given.
    """
    from trainer.infer.slide_job import predict_slide
    from trainer.runtime.start import my_threads

    network, stop, lines = network or _network(job.run), _stop_request(), ProgressLines("tiles", active=shows_progress)

    def say(line: str) -> None:
        print(f"{job.slide.name}: {line}", flush=True)

    def progress(done: int, total: int) -> None:
        lines(done, total)
        if stop.requested:
            raise StoppedBySignal

    try:
        if stop.requested:
            raise StoppedBySignal
        predict_slide(
            job.slide,
            network,
            job.folder,
            tile=job.tile,
            overlap=job.overlap,
            mpp=job.mpp,
            listed_mpp=job.listed_mpp,
            threads=my_threads().intra_op,
            predict_tiles=predict_tiles,
            say=say,
            progress=progress,
        )
    except StoppedBySignal:
        return Outcome(job.slide, StoppedBySignal())
    except (SlideError, ConfigError, PredictionError) as error:
        say(f"failed: {error.what}; {error.fix}")
        return Outcome(job.slide, error)
    say(f"results: {job.folder}")
    return Outcome(job.slide, None)


@lru_cache(maxsize=1)
def _network(folder: Path) -> Network:
    """Of this process, which builds it once, when it is needed, with the threads and the GPU that it was given."""
    from trainer.infer.export_folder import is_export

    if is_export(folder):
        from trainer.infer.exported_network import ExportedNetwork
        from trainer.runtime.start import my_threads

        return ExportedNetwork(folder, my_threads().intra_op)
    from trainer.config import load_run_config
    from trainer.infer.network import LazyNetwork
    from trainer.infer.run_recipe import recipe_of, scored_checkpoint

    config = load_run_config(folder)

    def build() -> Network:
        from trainer.infer.run_network import RunNetwork

        _configure(config)
        return RunNetwork(config, folder)

    return LazyNetwork(recipe_of(config, scored_checkpoint(folder)), build)


def _configure(config: Config) -> None:
    from trainer.runtime.start import my_threads
    from trainer.train.session import configure_tensorflow

    configure_tensorflow(config, my_threads().intra_op, (detect_world(os.environ) or World()).local_rank)


@lru_cache(maxsize=1)
def _stop_request() -> StopRequest:
    """Of this process. Workers know of it too: each rank gets the signal."""
    from trainer.train.signals import StopRequest

    return StopRequest()


def raise_failures(
    outcomes: Sequence[Outcome],
    done: str = "predicted",
    where: str = "predict",
    fix: str = "mend them or leave them out, then run the command again: finished slides are kept",
) -> None:
    """The error of the one slide that failed, or one that lists all; or that some are still to be done.

    Args:
      done: what the others are; where, fix: for the list.
    """
    unfinished = sum(isinstance(o.error, StoppedBySignal) for o in outcomes)
    if unfinished:
        raise StoppedBySignal(
            f"stopped by a signal, {unfinished} of {len(outcomes)} slides are not finished; run the same command again "
            "to go on"
        )
    failed = [(o.slide, o.error) for o in outcomes if isinstance(o.error, WidefieldError)]
    if len(failed) == 1:
        raise failed[0][1]
    if failed:
        lines = "\n".join(f"  {slide}: {error.what}" for slide, error in failed)
        raise SlideError(
            f"{len(failed)} of {len(outcomes)} slides are not {done}:\n{lines}",
            where=where,
            fix=fix,
        )
