"""Patches of a run's index that an export is calibrated with and scored on."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial

from trainer.batches.loader import Patch, read_ahead
from trainer.config import Config
from trainer.errors import DataError, ExportError
from trainer.evaluate.tiles import Tile, drawn_tiles
from trainer.patches.index import PatchIndex, read_index
from trainer.stores import PatchStore, open_store

_READ_AHEAD = 2


@dataclass(frozen=True)
class Patches:
    """Patches of one size, read anew whenever they are gone through: they may be more than memory holds."""

    store: PatchStore
    tiles: Sequence[Tile]
    threads: int

    def __len__(self) -> int:
        return len(self.tiles)

    def __iter__(self) -> Iterator[Patch]:
        """Image [P, P, 3] uint8 and labels [P, P] uint8 of one after the other."""
        jobs = ([partial(self.store.read_at, t.slide, t.x, t.y, t.size)] for t in self.tiles)
        for (patch,) in read_ahead(jobs, self.threads, _READ_AHEAD):
            yield patch


def training_patches(config: Config, size: int, limit: int) -> Patches:
    """A seeded draw of the training patches of one size.

    Raises:
      ExportError: the run's index is not there, or holds no such patch.
      StoreError: extracted patches are not those of the index.
    """
    return _patches(config, "train", size, limit)


def validation_patches(config: Config, size: int) -> Patches:
    """The validation patches that `widefield evaluate` scores one size on; raises as `training_patches`."""
    return _patches(config, "val", size, config.evaluation.max_patches)


def _patches(config: Config, split: str, size: int, limit: int | None) -> Patches:
    index = _index(config)
    tiles = drawn_tiles(index, split, size, config.seed, limit)
    if not tiles:
        sizes = ", ".join(map(str, config.patch_sizes))
        raise ExportError(
            f"the run has no patches of {size} px on the side '{split}' of its split",
            where=str(config.index_path),
            fix=f"--patch-size with one of {sizes}; where no slide validates, export in fp16 or fp32, which need none",
        )
    return Patches(open_store(index, config), tiles, config.runtime.read_threads)


def _index(config: Config) -> PatchIndex:
    try:
        return read_index(config.index_path)
    except DataError as error:
        raise ExportError(
            f"the run's patches are not known, and INT8 and --compare need them: {error.what}",
            where=str(config.index_path),
            fix="`widefield index RUN_DIR/config.yaml` makes the index again; or export in fp16 or fp32",
        ) from None
