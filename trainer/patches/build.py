"""Build the patch index: the slides are shared out, each slide's patches go to a file, one index is made of them.

The files (`index_parts`, else `<index>.parts/`) are named by what they were made from: a stopped run goes on where it
was, a data set with one more slide indexes that one, and the tasks of a job array fill the folder side by side. No rank
stops alone: what is wrong with a slide travels with the results, and after the gather all ranks raise the same error.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from trainer.config.schema import Config
from trainer.errors import DataError, SlideError, WidefieldError
from trainer.patches.index import PatchIndex, SlideInfo, fingerprint_of, is_current, read_index, write_index
from trainer.patches.one_slide import SlidePatches, index_slide, part_path, read_part, write_part
from trainer.patches.split import UNUSED, assign_splits
from trainer.patches.summary import write_slides_csv
from trainer.slides.dataset import SlideRecord, load_dataset

_SHOWN_ERRORS = 3

Gather = Callable[[Any], list[Any]]
Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Job:
    """One slide to index."""

    number: int
    record: SlideRecord
    config: Config
    parts: Path


@dataclass(frozen=True)
class Outcome:
    """Where the patches of a slide lie, or what is wrong with it."""

    number: int
    found: Path | WidefieldError


Run = Callable[[Callable[[Job], Outcome], Sequence[Job]], Iterable[Outcome]]
"""How the jobs of one rank are done: `map`, or that of a pool of processes; in any order."""


def parts_folder(config: Config, path: Path) -> Path:
    """Where the patches of single slides are kept for the index at `path`."""
    return config.index_parts or path.with_name(f"{path.name}.parts")


def records_with_splits(config: Config) -> list[SlideRecord]:
    """All slides of the data set, each with its split.

    Raises:
      DataError: see `load_dataset` and `assign_splits`.
    """
    dataset = load_dataset(config.data)
    splits = assign_splits(dataset, config.split, config.seed)
    return [replace(r, split=s) for r, s in zip(dataset, splits, strict=True)]


def do_job(job: Job) -> Outcome:
    """Index one slide unless its file is there."""
    try:
        path = part_path(job.parts, job.record, job.config)
        if not path.exists():
            write_part(index_slide(job.record, job.config), path)
        return Outcome(job.number, path)
    except WidefieldError as error:
        return Outcome(job.number, error)
    except OSError as error:
        return Outcome(job.number, SlideError(str(error), where=str(job.record.slide), fix="check file and disk"))


def do_jobs(jobs: Sequence[Job], run: Run = map, progress: Progress | None = None) -> list[Outcome]:
    """Index slides; progress is told (done, total) after each."""
    outcomes = []
    for done, outcome in enumerate(run(do_job, jobs), 1):
        outcomes.append(outcome)
        if progress:
            progress(done, len(jobs))
    return outcomes


def raise_failures(outcomes: Sequence[Outcome], config: Config) -> tuple[str, ...]:
    """One line for each slide that may be passed over; raises where there are too many or anything else is wrong."""
    errors = [o.found for o in sorted(outcomes, key=lambda o: o.number) if isinstance(o.found, WidefieldError)]
    return _raise_or_list(errors, len(outcomes), config.index.max_unreadable_fraction)


def jobs_of(config: Config, path: Path) -> list[Job]:
    """All slides that are to be indexed for the index at `path`; makes the folder for their patches."""
    parts = parts_folder(config, path)
    parts.mkdir(parents=True, exist_ok=True)
    path.parent.mkdir(parents=True, exist_ok=True)
    records = records_with_splits(config)
    return [Job(n, r, config, parts) for n, r in enumerate(records) if r.split != UNUSED]


def build_index(
    config: Config,
    path: Path,
    rank: int = 0,
    world_size: int = 1,
    gather: Gather = lambda value: [value],
    progress: Progress | None = None,
    run: Run = map,
) -> PatchIndex:
    """Build the patch index and write it to `path`; identical on every rank and for any number of ranks.

    Beside it goes a table of the slides, see `summary.py`.

    Args:
      path: on a file system that all ranks see, as the slides are.
      gather: collective that gives every rank the list of all ranks' objects, by rank.
      progress: called with (done, total) for the slides of this rank.
      run: how this rank's slides are worked through.
    Raises:
      SlideError: more slides cannot be read than `index.max_unreadable_fraction` allows; lists them.
      DataError, AnnotationError: a slide, annotation or split that cannot be used; the first few and their number.
      All of these on every rank.
    """
    jobs = jobs_of(config, path)
    outcomes = [o for part in gather(do_jobs(jobs[rank::world_size], run, progress)) for o in part]
    failure: WidefieldError | None = None
    if rank == 0:
        try:
            index = assemble(config, outcomes)
            write_index(index, path)
            write_slides_csv(index, path)
        except WidefieldError as error:
            failure = error
    failure = gather(failure)[0]
    if failure:
        raise failure
    return read_index(path)


def read_or_build(config: Config, progress: Progress | None = None, run: Run = map) -> PatchIndex:
    """The index at `config.index_path` where it is current, else a new one; for one process and its workers.

    Raises:
      SlideError, DataError, AnnotationError: see `build_index`.
    """
    if is_current(config.index_path, config):
        return read_index(config.index_path)
    return build_index(config, config.index_path, progress=progress, run=run)


def assemble(config: Config, outcomes: Sequence[Outcome]) -> PatchIndex:
    """One index from the patches of all slides."""
    records = records_with_splits(config)
    unreadable = raise_failures(outcomes, config)
    ordered = sorted(outcomes, key=lambda o: o.number)
    parts = {o.number: read_part(o.found, tissue=False) for o in ordered if isinstance(o.found, Path)}
    fingerprint = fingerprint_of(config, load_dataset(config.data))
    index = _join(records, parts, config, fingerprint, unreadable)
    _check_not_empty(index, config)
    return index


def _raise_or_list(errors: list[WidefieldError], num_slides: int, allowed: float) -> tuple[str, ...]:
    """One line for each slide that may be passed over; raises where there are too many or anything else is wrong."""
    others = [e for e in errors if not isinstance(e, SlideError)]
    if len(others) == 1:
        raise others[0]
    if others:
        shown = "\n".join(f"  {e}" for e in others[:_SHOWN_ERRORS])
        more = f"\n  and {len(others) - _SHOWN_ERRORS} more" if len(others) > _SHOWN_ERRORS else ""
        raise type(others[0])(f"{len(others)} slides cannot be used:\n{shown}{more}", where="patch index")
    unreadable = tuple(f"{e.where}: {e.what}" for e in errors)
    if len(unreadable) > allowed * num_slides:
        if len(unreadable) == 1:
            raise errors[0]
        lines = "\n".join(f"  {line}" for line in unreadable)
        raise SlideError(
            f"{len(unreadable)} of {num_slides} slides cannot be read:\n{lines}",
            where="patch index",
            fix=f"mend or remove them, or raise index.max_unreadable_fraction (now {allowed:g})",
        )
    return unreadable


def _join(
    records: list[SlideRecord],
    parts: dict[int, SlidePatches],
    config: Config,
    fingerprint: str,
    unreadable: tuple[str, ...],
) -> PatchIndex:
    found = list(parts.values())
    points = _joined([p.l0_points for p in found], np.zeros((0, 2), np.int32))
    num_classes = len(config.data.classes)
    return PatchIndex(
        slides=tuple(records),
        infos=tuple(parts[n].info if n in parts else SlideInfo() for n in range(len(records))),
        slide=np.repeat(np.array(list(parts), np.int32), [len(p.size) for p in found]),
        x=np.ascontiguousarray(points[:, 0]),
        y=np.ascontiguousarray(points[:, 1]),
        size=_joined([p.size for p in found], np.zeros(0, np.int32)),
        tissue_fraction=_joined([p.tissue_fraction for p in found], np.zeros(0, np.float32)),
        label_fractions=_joined([p.label_fractions for p in found], np.zeros((0, num_classes), np.float32)),
        class_names=config.data.class_names,
        patch_sizes=config.patch_sizes,
        fingerprint=fingerprint,
        unreadable=unreadable,
    )


def _joined(parts: list[np.ndarray], empty: np.ndarray) -> np.ndarray:
    return np.concatenate([empty, *parts])


def _check_not_empty(index: PatchIndex, config: Config) -> None:
    """Every size needs training patches, and validation patches where there are slides to validate on."""
    for split, word in (("train", "training"), ("val", "validation")):
        infos = [i for s, i in zip(index.slides, index.infos, strict=True) if s.split == split]
        for size in config.patch_sizes if infos else ():
            if len(index.select(size, split)) == 0:
                num_dropped = sum((i.num_dropped or {}).get(str(size), 0) for i in infos)
                raise DataError(
                    f"there are no {word} patches of {size} px: {num_dropped} positions on {len(infos)} slide(s) "
                    f"have less than {config.index.min_tissue_fraction:.0%} tissue",
                    where="patch index",
                    fix="lower index.min_tissue_fraction (0 keeps every position), or take that size out of curriculum",
                )
