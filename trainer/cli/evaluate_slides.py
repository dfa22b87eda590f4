"""`widefield evaluate --slides`: predict a run's slides where that is not done, score them, write page and figures."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from trainer.cli.predict import Job, Outcome, check_names, predict, raise_failures
from trainer.config import Config, load_run_config
from trainer.errors import ConfigError, DataError, RunError, StoppedBySignal, WidefieldError, nearest

if TYPE_CHECKING:
    from trainer.evaluate.whole_slides import SlideResult
    from trainer.slides.dataset import SlideRecord

AUTO = "auto"
SPLITS = (AUTO, "val", "test", "all")
_FIX = "mend them; slides that have moved: data.path=NEW; maps of another network: another folder (--predictions DIR)"
_SHOWN = 20
"""Of the slides, the worst so many with a picture: a page of 3 MB."""


@dataclass(frozen=True)
class SlideJob:
    """One slide to predict and to score."""

    record: SlideRecord
    config: Config
    prediction: Job
    positives: tuple[str, ...]


@dataclass(frozen=True)
class Scored(Outcome):
    """A slide that is scored, or what is wrong with it."""

    result: SlideResult | None = None


def run(args: argparse.Namespace) -> None:
    """Score the slides of a split on all ranks; rank 0 writes `slides.json` and `slides.html`.

    Raises:
      ConfigError: options that do not go together. DataError: no slide in that split, or two of one name.
      SlideError, PredictionError, ...: of slides that could not be scored, after all others are.
    """
    from trainer.runtime.pool import worker_pool

    _check(args)
    config = load_run_config(args.run_dir, args.overrides)
    positives = _positives(config, args.tumour_class)
    split, records = chosen_slides(config, args.run_dir, args.slides, is_changed=bool(args.overrides))
    folder = args.predictions or args.run_dir / "slides"
    check_names([r.slide for r in records], folder, "give them names of their own, or score them split by split")
    jobs = [
        SlideJob(r, config, Job(args.run_dir, r.slide, folder / r.slide.stem, listed_mpp=r.mpp), positives)
        for r in records
    ]
    with worker_pool(1) as pool:
        if pool is None:  # this rank worked for rank 0
            return
        scored = sorted(pool(predict_and_score, jobs), key=lambda s: str(s.slide))
    stopped = any(isinstance(s.error, StoppedBySignal) for s in scored)
    if any(s.result for s in scored) and not stopped:
        _write(args.run_dir, config, split, positives, scored)
    raise_failures(scored, "scored", "evaluate --slides", _FIX)


def _check(args: argparse.Namespace) -> None:
    given = {
        "--checkpoint": args.checkpoint,
        "--patch-size": args.patch_size,
        "--trained-weights": args.trained_weights,
    }
    for name, value in given.items():
        if value:
            raise ConfigError(
                "whole slides are scored with the weights that scored best, in tiles of the largest size",
                where=f"{name} with --slides",
                fix=f"leave out {name}, or --slides",
            )


def _positives(config: Config, name: str | None) -> tuple[str, ...]:
    names = config.data.class_names
    if name is None:
        return names[1:]
    if name not in names[1:]:
        raise ConfigError(f"'{name}' is no class but the first", where="--class", fix=nearest(name, names[1:]))
    return (name,)


def chosen_slides(config: Config, run: Path, split: str, *, is_changed: bool) -> tuple[str, list[SlideRecord]]:
    """The split that was meant, and its slides as the run was trained with them.

    They come from the run's index; with changed settings (the data lies elsewhere, or is another data set) from the
    data set itself, which is split by the same rules. `all` of a data set is not split at all.

    Args:
      split: one of SPLITS; auto is test where there are test slides, else val.
    Raises:
      DataError: it has no slide, or see `load_dataset` and `assign_splits`.
    """
    from trainer.patches.build import records_with_splits
    from trainer.patches.index import read_records
    from trainer.slides.dataset import load_dataset

    indexed = () if is_changed else read_records(_index_path(run))
    records = list(indexed) or (load_dataset(config.data) if split == "all" else records_with_splits(config))
    if split == AUTO:
        split = "test" if any(r.split == "test" for r in records) else "val"
    chosen = [r for r in records if split in (r.split, "all")]
    if not chosen:
        found = sorted({r.split for r in records if r.split in SPLITS})
        raise DataError(
            f"the run has no slide in '{split}'", where="--slides", fix=f"--slides {' or '.join([*found, 'all'])}"
        )
    return split, chosen


def predict_and_score(job: SlideJob) -> Scored:
    """One slide; what is wrong with it is told at the end."""
    from trainer.infer.prediction import score_prediction

    predicted = predict(job.prediction)
    if predicted.error:
        return Scored(predicted.slide, predicted.error)
    try:
        result = score_prediction(job.record, job.prediction.folder, job.config.data, job.positives)
    except WidefieldError as error:
        print(f"{job.record.slide.name}: failed: {error.what}", flush=True)
        return Scored(job.record.slide, error)
    print(f"{job.record.slide.name}: scored", flush=True)
    return Scored(job.record.slide, None, result)


def _trained_on(run: Path) -> set[str]:
    """Hashes of the slides that a run was trained on, whatever the data set is called now."""
    from trainer.patches.index import read_records, read_slide_infos

    path = _index_path(run)
    pairs = zip(read_records(path), read_slide_infos(path), strict=True)
    return {info.slide_hash for record, info in pairs if record.split == "train"}


def _index_path(run: Path) -> Path:
    return load_run_config(run).index_path


def _write(run: Path, config: Config, split: str, positives: Sequence[str], scored: Sequence[Scored]) -> None:
    from trainer.evaluate.slide_picture import slide_picture
    from trainer.evaluate.slides_page import headlines, slides_page
    from trainer.evaluate.slides_report import report_of, worst_first
    from trainer.files import replace_content

    results = worst_first([s.result for s in scored if s.result])
    failed = [{"slide": s.slide.name, "why": s.error.what} for s in scored if isinstance(s.error, WidefieldError)]
    report = {"run": config.name, "split": split, "failed": failed}
    report |= report_of(results, config.data.class_names, positives, run, _trained_on(run), config.seed)
    pictures = [slide_picture(r.record, r.folder, config.data) for r in results[:_SHOWN]]
    try:
        replace_content(run / "slides.json", json.dumps(report, indent=1, allow_nan=False) + "\n")
        replace_content(run / "slides.html", slides_page(report, pictures).encode("utf-8", "replace"))
    except OSError as error:
        raise RunError(
            f"cannot be written: {error}", where=str(run), fix="free some space, then run the command again"
        ) from None
    print("\n".join(["", *headlines(report), f"page: {run / 'slides.html'}", f"figures: {run / 'slides.json'}"]))
