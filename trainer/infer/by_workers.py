"""Tiles of one slide over many workers: each takes a batch, reads it from the slide itself, and sends probabilities."""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from trainer.infer.network import Network
from trainer.infer.slide_view import SlidePixels
from trainer.infer.tiles import Predicted, TileBatch, predict_here
from trainer.runtime.pool import MpiWorkers
from trainer.runtime.start import my_threads
from trainer.slides.slide import Slide, open_slide
from trainer.slides.stain import Stains


@dataclass(frozen=True)
class _Job:
    network: Callable[[], Network]
    slide: Path
    downsample: float
    stains: Stains | None
    batch: TileBatch


def predict_by_workers(
    workers: MpiWorkers, network: Callable[[], Network], pixels: SlidePixels, batches: Sequence[TileBatch]
) -> Generator[list[Predicted]]:
    """Have batches read and predicted by whoever is free; see `PredictTiles`.

    Args:
      network: gives a worker its network, the same one each time; pickled.
    """
    jobs = (_Job(network, pixels.slide.path, pixels.downsample, pixels.stains, batch) for batch in batches)
    return workers.in_order(_predict, jobs)


def _predict(job: _Job) -> list[Predicted]:
    pixels = SlidePixels(_opened(job.slide), job.downsample, job.stains)
    return next(predict_here(job.network(), my_threads().intra_op, pixels, [job.batch]))


@lru_cache(maxsize=1)
def _opened(slide: Path) -> Slide:
    return open_slide(slide)
