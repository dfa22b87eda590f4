"""What a run says of how its slides are to be read. No TensorFlow: a slide that is finished needs no network."""

from __future__ import annotations

import hashlib
from pathlib import Path
from statistics import median

from trainer.config import Config
from trainer.config.schema import ResolutionConfig
from trainer.errors import CheckpointError
from trainer.infer.network import Recipe
from trainer.patches.index import read_slide_infos
from trainer.train.checkpoints import checkpoint_path, latest_checkpoint, read_best


def scored_checkpoint(run: Path) -> Path:
    """The checkpoint that scored best, or the newest one where none was scored.

    Raises:
      RunError, CheckpointError: there is none that can be read.
    """
    best = read_best(run)
    return checkpoint_path(run, best.step) if best else latest_checkpoint(run)[0]


def recipe_of(config: Config, checkpoint: Path) -> Recipe:
    """What the run's settings and its index say of how its patches were made.

    Raises:
      CheckpointError: the checkpoint cannot be read.
    """
    try:
        with checkpoint.open("rb") as file:
            hash_of_weights = hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise CheckpointError(
            f"cannot be read: {error.strerror}",
            where=str(checkpoint),
            fix="copy it again, or delete best.json beside it: the newest checkpoint is then taken",
        ) from None
    return Recipe(
        network=hash_of_weights,
        class_names=config.data.class_names,
        patch_sizes=config.patch_sizes,
        resolution=_resolution(config),
        mpp=config.data.mpp,
        tissue=config.index.tissue if config.index.min_tissue_fraction > 0 else None,
        min_tissue_fraction=config.index.min_tissue_fraction,
        stain=config.stain,
        seed=config.seed,
    )


def _resolution(config: Config) -> ResolutionConfig:
    """Of the run's patches in um/px, where slides said it; else the level that it asked for."""
    wanted = config.index.resolution
    infos = read_slide_infos(config.index_path) if wanted.mpp is None and config.index_path.exists() else ()
    known = [info.mpp * info.downsample for info in infos if info.mpp]
    return ResolutionConfig(mpp=median(known)) if known else wanted
