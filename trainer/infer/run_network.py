"""The network of a run directory, by TensorFlow."""

from __future__ import annotations

import hashlib
from pathlib import Path
from statistics import median

import numpy as np

from trainer.config import Config
from trainer.config.schema import ResolutionConfig
from trainer.infer.network import Recipe
from trainer.models import build_model
from trainer.models.keras import keras, tf
from trainer.patches.index import read_slide_infos
from trainer.train.checkpoint import load_scored_weights
from trainer.train.checkpoints import checkpoint_path, latest_checkpoint, read_best


class RunNetwork:
    """The weights that scored best, or those of the newest checkpoint where none was scored.

    Raises:
      RunError, CheckpointError: no checkpoint, or one of another architecture.
    """

    def __init__(self, config: Config, run: Path) -> None:
        best = read_best(run)
        path = checkpoint_path(run, best.step) if best else latest_checkpoint(run)[0]
        model = build_model(config.model, len(config.data.classes), read_weights=False)
        load_scored_weights(path, model)
        self.recipe = recipe_of(config, path)
        self._probabilities = _compiled(model)

    def __call__(self, images: np.ndarray) -> np.ndarray:
        return self._probabilities(tf.constant(images)).numpy()


def _compiled(model: keras.Model) -> tf.types.experimental.GenericFunction:
    @tf.function(reduce_retracing=False)
    def probabilities(images: tf.Tensor) -> tf.Tensor:
        return tf.nn.softmax(tf.cast(model(images, training=False), tf.float32))

    return probabilities


def recipe_of(config: Config, checkpoint: Path) -> Recipe:
    """What the run's settings and its index say of how its patches were made."""
    with checkpoint.open("rb") as file:
        hash_of_weights = hashlib.file_digest(file, "sha256").hexdigest()
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
