from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING

from trainer.cli.common import OVERRIDES_HELP, add_config_arguments, config_of, parse_task
from trainer.cli.progress import ProgressLines
from trainer.errors import ConfigError, DataError, SlideError

if TYPE_CHECKING:
    from trainer.config import Config
    from trainer.patches.index import PatchIndex
    from trainer.runtime.pool import Run
    from trainer.stores.extract import Job, Outcome

NAME = "extract"
HELP = "write the patches of all slides into a store (stores.kind hdf5 or tfrecord) for `train` to read"
DETAILS = f"""\
Writes one file per slide and patch size into stores.path. Run it again after a stop: finished files are checked and
kept, files made from older slides, annotations or other settings are replaced.

  widefield extract CONFIG stores.kind=hdf5 stores.path=/data/patches      all cores of this machine
  mpirun -np 9 python -m trainer extract CONFIG                            rank 0 hands slides to 8 others
  sbatch --array=0-31 --wrap 'widefield extract CONFIG --task $SLURM_ARRAY_TASK_ID/32'    after `widefield index CONFIG`

A slide that cannot be read is listed at the end, the others go on; the exit status is then 2.

{OVERRIDES_HELP}"""

_LINE_EVERY_S = 5.0


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_config_arguments(parser)
    parser.add_argument("--workers", type=int, metavar="N", help="processes (default: one per core)")
    parser.add_argument(
        "--task", type=parse_task, metavar="I/N", help="only slides I, I+N, I+2N, ... of the index, I from 0"
    )


def run(args: argparse.Namespace) -> None:
    """Index where needed, then what is missing or stale; failures of single slides are told at the end."""
    from trainer.runtime.pool import worker_pool
    from trainer.stores.extract import extract, jobs_of, unfinished

    config = config_of(args)
    _check_kind(config)
    with worker_pool(args.workers) as pool:
        if pool is None:  # this rank worked for rank 0
            return
        index = _index(config, pool, args.task)
        task, num_tasks = args.task or (0, 1)
        jobs = jobs_of(index, config, range(task, len(index.slides), num_tasks))
        todo = [job for job in pool(unfinished, jobs) if job.files]
        progress = _Progress(todo)
        try:
            outcomes = extract(todo, pool, progress)
        finally:
            progress.close()
    print(summary(jobs, outcomes, progress.seconds, config.stores.path))
    _raise_failures(outcomes)


def _check_kind(config: Config) -> None:
    if config.stores.kind == "slide":
        raise ConfigError(
            "stores.kind = slide reads patches directly from the slides: there is nothing to extract",
            where="extract",
            fix="widefield extract CONFIG stores.kind=hdf5 stores.path=FOLDER, and the same for `train`",
        )


def _index(config: Config, pool: Run, task: tuple[int, int] | None) -> PatchIndex:
    """As `widefield index` makes it; the tasks of a job array do not build it one by one."""
    from trainer.patches.build import read_or_build
    from trainer.patches.index import is_current

    if task and not is_current(config.index_path, config):
        raise DataError(
            "there is no patch index of these settings and slides, which all tasks need",
            where=str(config.index_path),
            fix="widefield index CONFIG first",
        )
    print(f"patch index: {config.index_path}", flush=True)
    index = read_or_build(config, ProgressLines("slides indexed"), pool)
    for line in index.unreadable:
        print(f"warning: slide passed over: {line}")
    return index


class _Progress:
    """A bar on a terminal, else a line every few seconds; told each outcome."""

    def __init__(self, todo: Sequence[Job]) -> None:
        self._num_slides, self._num_patches = len(todo), sum(job.num_patches for job in todo)
        self._slides = self._patches = self._pixels = 0
        self._started = self._last = time.monotonic()
        self._bar = _bar(self._num_patches) if sys.stdout.isatty() and not _under_launcher() else None

    @property
    def seconds(self) -> float:
        return time.monotonic() - self._started

    def __call__(self, outcome: Outcome) -> None:
        self._slides += 1
        self._patches += outcome.job.num_patches
        self._pixels += 0 if outcome.error else outcome.job.num_pixels
        if self._bar:
            self._bar.update(self._bar.task_ids[0], completed=self._patches, description=self.line())
        elif time.monotonic() - self._last > _LINE_EVERY_S or self._slides == self._num_slides:
            self._last = time.monotonic()
            print(self.line(), flush=True)

    def line(self) -> str:
        seconds = max(self.seconds, 1e-3)
        left = seconds * (self._num_patches - self._patches) / max(self._patches, 1)
        return (
            f"{self._slides}/{self._num_slides} slides  {self._slides / seconds:.2f} slides/s  "
            f"{self._patches / seconds:.0f} patches/s  {self._pixels / seconds / 1e6:.1f} Mpx/s  "
            f"ETA {timedelta(seconds=round(left))}"
        )

    def close(self) -> None:
        if self._bar:
            self._bar.stop()


def _bar(total: int):
    from rich.progress import BarColumn, Progress, TextColumn

    bar = Progress(BarColumn(), TextColumn("{task.description}"))
    bar.add_task("", total=total)
    bar.start()
    return bar


def _under_launcher() -> bool:
    """Open MPI gives ranks a pseudo-terminal."""
    from trainer.runtime.world import detect_world

    return detect_world(os.environ) is not None


def summary(jobs: Sequence[Job], outcomes: Sequence[Outcome], seconds: float, folder: Path | None) -> str:
    """What was written, and what had been before."""
    done = [o for o in outcomes if not o.error]
    todo = sum(len(o.job.files) for o in outcomes)
    num_patches, num_bytes = sum(o.job.num_patches for o in done), sum(o.num_bytes for o in done)
    return (
        f"{len(done)} slides, {sum(len(o.job.files) for o in done)} files, {num_patches} patches, "
        f"{num_bytes / 2**20:.1f} MiB in {seconds:.1f} s; {sum(len(j.files) for j in jobs) - todo} files were "
        f"finished before\nstore: {folder}"
    )


def _raise_failures(outcomes: Sequence[Outcome]) -> None:
    failed = [o.error for o in outcomes if o.error]
    if len(failed) == 1:
        raise failed[0]
    if failed:
        lines = "\n".join(f"  {e.where}: {e.what}" for e in failed)
        raise SlideError(
            f"{len(failed)} of {len(outcomes)} slides cannot be extracted:\n{lines}",
            where="extract",
            fix="mend them or take them out of the data set, then run the command again: finished slides are kept",
        )
