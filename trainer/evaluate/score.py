"""Run the network over tiles, on all ranks, and reduce the sums."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np

from trainer.batches.loader import Patch, prefetched
from trainer.config.schema import IGNORE_LABEL, Config
from trainer.evaluate.metrics import Sums, metrics_of, sums_of
from trainer.evaluate.tiles import Tile, footprint_tiles, validation_tiles
from trainer.models.graph import forward_of, padding_joined
from trainer.models.halos import Rows, slabs
from trainer.models.keras import keras, tf
from trainer.models.spatial import slab_of
from trainer.patches.index import PatchIndex
from trainer.runtime.comm import Comm
from trainer.stores import Part, PatchStore

Predict = Callable[[Any, int], tuple[Any, Any]]
"""(images, ranks that share each) -> classes and log-odds, see `make_predict`."""
Interrupted = Callable[[], bool]
"""Asked on each rank between tiles: True ends its share. All ranks still add up; the caller drops such scores."""


def _never() -> bool:
    return False


def make_predict(model: keras.Model, comm: Comm) -> Predict:
    """A compiled function from images [B, P, P, 3] to (class numbers [B, P, P] uint8, log-odds [B, P, P, C] float32).

    Where ranks share each patch, from a rank's rows to those rows; all ranks of a group call it together. Log-odds
    order pixels as probabilities do, and do not saturate at 1.
    """

    @tf.function(reduce_retracing=False)
    def predict(images: tf.Tensor, spatial: int) -> tuple[tf.Tensor, tf.Tensor]:
        slab = slab_of(comm, images, spatial, training=False)
        forward = forward_of(model, slab, padding_joined) if slab else partial(model, training=False)
        log_p = tf.nn.log_softmax(tf.cast(forward(images), tf.float32))
        log_not_p = tf.math.log(tf.maximum(-tf.math.expm1(log_p), 1e-30))
        return tf.cast(tf.argmax(log_p, axis=-1), tf.uint8), log_p - log_not_p

    return predict


class Evaluator:
    """Scores a model per size (the poster's way) and on the common footprint.

    Args:
      batch_sizes: patch size -> patches per forward pass; every pass has this shape, the last one padded, so that a
        tile's result does not depend on its neighbours or on the number of ranks.
      splits: patch size -> ranks that share each patch.
    """

    def __init__(
        self,
        config: Config,
        index: PatchIndex,
        store: PatchStore,
        comm: Comm,
        batch_sizes: dict[int, int],
        splits: dict[int, int],
    ) -> None:
        self._config, self._index, self._store, self._comm = config, index, store, comm
        self._batch_sizes, self._splits = batch_sizes, splits
        largest = config.patch_sizes[-1]
        self.regions = validation_tiles(index, largest, config.seed, config.evaluation.max_regions)

    def score_size(self, predict: Predict, size: int, interrupted: Interrupted = _never) -> dict[str, object]:
        """Metrics over the validation patches of one size."""
        tiles = validation_tiles(self._index, size, self._config.seed, self._config.evaluation.max_patches)
        return self._score(predict, tiles, size, interrupted)

    def score_footprint(self, predict: Predict, size: int, interrupted: Interrupted = _never) -> dict[str, object]:
        """Metrics over the common footprint, read through patches of one size."""
        return self._score(predict, self._footprint(size), size, interrupted)

    def _footprint(self, size: int) -> list[Tile]:
        return [t for r in self.regions for t in footprint_tiles([r], size, self._index.infos[r.slide].downsample)]

    def _score(self, predict: Predict, tiles: list[Tile], size: int, interrupted: Interrupted) -> dict[str, object]:
        bins, names = self._config.evaluation.auc_bins, self._config.data.class_names
        total = Sums.zero(len(names), bins)
        spatial, rows = self._splits[size], self._rows(size)
        mine = tiles[self._comm.rank // spatial :: self._comm.world_size // spatial]
        for tile, labels, predicted, log_odds in self._predicted(predict, mine, size):
            valid = labels != IGNORE_LABEL
            valid[: max(0, tile.skip_y - rows.start)], valid[:, : tile.skip_x] = False, False
            total += sums_of(labels, predicted, log_odds, valid, bins)
            if self._any_of_group(interrupted(), spatial):
                break
        total = total.from_vector(self._comm.allreduce(total.to_vector()))
        return metrics_of(replace(total, patches=total.patches // spatial), names)  # a group's ranks each counted it

    def _rows(self, size: int) -> Rows:
        """Rows of each patch of a size that this rank sees."""
        spatial = self._splits[size]
        return slabs(size, spatial)[self._comm.rank % spatial]

    def _any_of_group(self, flag: bool, spatial: int) -> bool:
        """Nobody may leave a group while others wait for its rows."""
        if spatial == 1:
            return flag
        return bool(self._comm.group(spatial).sum(tf.constant(float(flag)), "scoring_interrupted") > 0)

    def _predicted(
        self, predict: Predict, tiles: list[Tile], size: int
    ) -> Iterator[tuple[Tile, np.ndarray, np.ndarray, np.ndarray]]:
        batch_size, runtime = self._batch_sizes[size], self._config.runtime
        groups = [tiles[i : i + batch_size] for i in range(0, len(tiles), batch_size)]
        rows, spatial = self._rows(size), self._splits[size]
        part = Part(0, rows.start, size, rows.stop - rows.start)
        jobs = ([partial(self._read, t, part) for t in group] for group in groups)
        batches = prefetched(jobs, runtime.read_threads, runtime.prefetch_batches)
        for group, (images, labels) in zip(groups, batches, strict=True):
            padding = np.zeros((batch_size - len(images), *images.shape[1:]), np.uint8)
            classes, log_odds = predict(tf.constant(np.concatenate([images, padding])), spatial)
            yield from zip(group, labels, classes.numpy()[: len(group)], log_odds.numpy()[: len(group)], strict=True)

    def _read(self, tile: Tile, part: Part | None = None) -> Patch:
        return self._store.read_at(tile.slide, tile.x, tile.y, tile.size, part)

    def pictures(self, predict: Predict, size: int) -> list[np.ndarray]:
        """The figure regions' predicted classes through patches of one size: [R, R] uint8 each, on rank 0.

        All ranks call it; those that do not share patches with rank 0 get nothing to do.
        """
        pictures = [
            self._picture(predict, r, size) for r in self.figure_regions() if self._comm.rank < self._splits[size]
        ]
        if self._splits[size] > 1:
            parts = [part for part in self._comm.gather(pictures) if part]
            pictures = [np.maximum.reduce(same) for same in zip(*parts, strict=True)]
        return pictures if self._comm.rank == 0 else []

    def _picture(self, predict: Predict, region: Tile, size: int) -> np.ndarray:
        """One region, stitched from this rank's rows of its tiles; zeros elsewhere."""
        stitched, rows = np.zeros((region.size, region.size), np.uint8), self._rows(size)
        downsample = self._index.infos[region.slide].downsample
        tiles = footprint_tiles([region], size, downsample)
        for tile, _, predicted, _ in self._predicted(predict, tiles, size):
            row, column = round((tile.y - region.y) / downsample), round((tile.x - region.x) / downsample)
            first = max(tile.skip_y, rows.start)
            target = stitched[row + first : row + rows.stop, column + tile.skip_x : column + size]
            target[:] = predicted[first - rows.start :, tile.skip_x :]
        return stitched

    def region_pixels(self, region: Tile) -> Patch:
        """One region's image and labels."""
        return self._read(region)

    def figure_regions(self) -> list[Tile]:
        """The regions whose classes are most mixed, from as many slides as possible: the ones worth looking at."""
        rows = {(int(self._index.slide[r]), int(self._index.x[r]), int(self._index.y[r])): r
                for r in self._index.select(self._config.patch_sizes[-1], "val")}  # fmt: skip

        def evenness(tile: Tile) -> float:
            share = self._index.label_fractions[rows[tile.slide, tile.x, tile.y]].astype(np.float64)
            return float(-(share * np.log(np.maximum(share, 1e-9))).sum())

        best = sorted(self.regions, key=lambda t: (-evenness(t), t.slide, t.y, t.x))
        firsts = list({t.slide: t for t in reversed(best)}.values())[::-1]
        return [*firsts, *(t for t in best if t not in firsts)][: self._config.evaluation.figure_regions]
