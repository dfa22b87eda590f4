"""What a training step will need, before it runs: memory from the network's graph."""

from __future__ import annotations

from collections.abc import Callable

from trainer.config import Config
from trainer.curriculum.batches import Fits
from trainer.errors import ConfigError
from trainer.models.keras import keras, tf
from trainer.models.memory import predicted_peak_bytes
from trainer.runtime.memory import rank_memory_bytes

_RESERVE = 0.15
"""As much as predicted and measured memory may differ (results/memory)."""
_OPTIMIZER_SLOTS = {"adam": 2, "adamw": 2, "sgd": 1}


def memory_model(model: keras.Model, config: Config, world_size: int) -> Callable[[int, int, int, int], int]:
    """(patch size, local batch size, forward passes per step, ranks that share a patch) -> predicted peak bytes of one
    rank."""

    def predict(patch_size: int, local_batch_size: int, passes: int, spatial: int) -> int:
        return predicted_peak_bytes(
            model,
            patch_size,
            local_batch_size,
            recompute=config.training.recompute == "blocks",
            optimizer_slots=_OPTIMIZER_SLOTS[config.training.optimizer.name],
            ema=config.training.ema_decay > 0,
            accumulate=passes > 1,
            world_size=world_size,
            checkpoints=True,
            spatial=spatial,
        )

    return predict


def memory_limit(config: Config, local_size: int) -> float:
    """Bytes that a rank may take which shares its node with `local_size` of them.

    Where `runtime.memory_gb` says nothing, a share stays free for what the model is wrong by and for others.
    """
    configured = config.runtime.memory_gb
    return rank_memory_bytes(configured, local_size) * (1.0 if configured else 1 - _RESERVE)


def fits_in_memory(model: keras.Model, config: Config, world_size: int, limit: float) -> Fits:
    """Whether a batch fits into so many bytes of a rank.

    Raises:
      ConfigError: when asked on a GPU, whose memory only `runtime.memory_gb` knows.
    """
    predict = memory_model(model, config, world_size)
    has_gpu = bool(tf.config.list_physical_devices("GPU"))

    def fits(patch_size: int, local_batch_size: int, passes: int, spatial: int) -> bool:
        if has_gpu and not config.runtime.memory_gb:
            raise ConfigError(
                "how much memory a GPU has is not known", where="local_batch_size = 'auto'", fix="runtime.memory_gb=..."
            )
        return predict(patch_size, local_batch_size, passes, spatial) <= limit

    return fits
