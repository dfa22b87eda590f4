"""What a training step will need, before it runs: memory from the network's graph."""

from __future__ import annotations

from collections.abc import Callable

from trainer.config import Config
from trainer.curriculum.batches import Fits
from trainer.models.keras import keras
from trainer.models.memory import predicted_peak_bytes
from trainer.runtime.memory import rank_memory_bytes

_OPTIMIZER_SLOTS = {"adam": 2, "adamw": 2, "sgd": 1}


def memory_model(model: keras.Model, config: Config, world_size: int) -> Callable[[int, int, int], int]:
    """(patch size, local batch size, forward passes per step) -> predicted peak bytes of one rank."""

    def predict(patch_size: int, local_batch_size: int, passes: int) -> int:
        return predicted_peak_bytes(
            model,
            patch_size,
            local_batch_size,
            recompute=config.training.recompute == "blocks",
            optimizer_slots=_OPTIMIZER_SLOTS[config.training.optimizer.name],
            ema=config.training.ema_decay > 0,
            accumulate=passes > 1,
            world_size=world_size,
        )

    return predict


def fits_in_memory(model: keras.Model, config: Config, world_size: int, local_size: int) -> Fits:
    """Whether a batch fits into the memory of a rank that shares its node with `local_size` of them."""
    limit = rank_memory_bytes(config.runtime.memory_gb, local_size)
    predict = memory_model(model, config, world_size)
    return lambda size, local_batch_size: predict(size, local_batch_size, 1) <= limit
