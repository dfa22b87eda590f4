"""A run's network on tiles that several ranks share, each computing some rows: those that one has no memory for.

Who predicts a slide sees one network. On the other ranks of its group the same network serves: it computes the rows
that it is sent, with its neighbours' (`models/spatial.py`), until the first rank is done.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import numpy as np

from trainer.config import Config
from trainer.infer.run_network import probabilities_by, read_model
from trainer.infer.run_recipe import recipe_of, scored_checkpoint
from trainer.models.graph import forward_of, padding_joined
from trainer.models.halos import check_split, slabs
from trainer.models.keras import tf
from trainer.models.spatial import slab_of
from trainer.runtime import Comm
from trainer.runtime.team import Team

T = TypeVar("T")


class SharedNetwork:
    """The network of `RunNetwork` on groups of consecutive ranks. Made by all ranks; called on the first of a group.

    Args:
      tile: side of the tiles; None is the largest trained size.
    Raises:
      RunError, CheckpointError: as `RunNetwork`. ModelError: such tiles cannot be cut for so many ranks.
    """

    def __init__(self, config: Config, run: Path, comm: Comm, ranks_per_tile: int, tile: int | None) -> None:
        checkpoint = scored_checkpoint(run)
        model, self.recipe = read_model(config, checkpoint), recipe_of(config, checkpoint)
        check_split(model, tile or self.recipe.patch_sizes[-1], ranks_per_tile)
        self._team = Team(ranks_per_tile)
        comm.group(ranks_per_tile)  # a collective of all ranks, some of which may have no slide

        def logits(rows: tf.Tensor) -> tf.Tensor:
            slab = slab_of(comm, rows, ranks_per_tile, training=False)
            return forward_of(model, slab, padding_joined)(rows)

        self._probabilities = probabilities_by(logits)

    def __call__(self, images: np.ndarray) -> np.ndarray:
        cut = slabs(images.shape[1], self._team.size)
        whole = np.empty((*images.shape[:3], len(self.recipe.class_names)), np.float32)
        parts, results = ([array[:, rows.start : rows.stop] for rows in cut] for array in (images, whole))
        self._team.run(self._probabilities, parts, results)
        return whole

    def lead(self, work: Callable[[], T]) -> T | None:
        """Do `work` on each group's first rank, for its result; the others compute for it meanwhile, and get None."""
        if self._team.rank > 0:
            self._team.serve(self._probabilities)
            return None
        try:
            return work()
        finally:
            self._team.dismiss()
