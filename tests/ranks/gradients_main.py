"""Run under mpirun by test_faults.py: N ranks with b patches each against one process with all N b patches."""

from __future__ import annotations

import numpy as np

from trainer.config.schema import ModelConfig, OptimizerConfig, TrainingConfig
from trainer.models import build_model
from trainer.models.keras import keras, tf
from trainer.runtime import Comm, SingleComm, start_comm
from trainer.train.step import make_optimizer, make_train_step

comm = start_comm("horovod")
tf.config.threading.set_intra_op_parallelism_threads(1)
tf.config.threading.set_inter_op_parallelism_threads(1)
keras.utils.set_random_seed(1)
rng = np.random.default_rng(0)
images = rng.integers(0, 256, (2 * comm.world_size, 64, 64, 3), np.uint8)
labels = rng.integers(0, 2, images.shape[:3], np.uint8)
labels[0, :50] = 255  # patches with few labelled pixels weigh on any rank what they weigh in one batch


def change(model: keras.Model, by: Comm, compression: str, mine: slice) -> np.ndarray:
    """What one step of plain gradient descent adds to all weights, as one vector; the weights are put back."""
    before = model.get_weights()
    config = TrainingConfig(
        compression=compression, optimizer=OptimizerConfig(name="sgd", momentum=0.0, learning_rate=1.0)
    )
    optimizer = make_optimizer(config.optimizer, "float32")
    start = [v.numpy() for v in model.trainable_variables]
    make_train_step(model, optimizer, config, by)(1)(images[mine], labels[mine], 0, False)
    steps = [(v.numpy() - old).ravel() for v, old in zip(model.trainable_variables, start, strict=True)]
    model.set_weights(before)
    return np.concatenate(steps)


shares = {"group": {"none": 1e-5, "fp16": 2e-3, "bf16": 2e-2}, "sync_batch": {"none": 1e-4}}
for norm, tolerances in shares.items():
    config = ModelConfig(backbone="resnet18", aspp_channels=16, decoder_channels=16, dropout=0.0, norm=norm)
    together = build_model(config, 2, all_reduce=comm.allreduce_tensor)
    comm.broadcast_variables(together.variables)
    alone = build_model(config, 2)
    alone.set_weights(together.get_weights())
    expected = change(alone, SingleComm(), "none", slice(None))
    for compression, tolerance in tolerances.items():
        found = change(together, comm, compression, slice(comm.rank, None, comm.world_size))
        error = float(np.linalg.norm(found - expected) / np.linalg.norm(expected))
        print(f"rank {comm.rank} {norm} {compression}: relative difference {error:.1e}", flush=True)
        assert error < tolerance, (norm, compression, error)
print(f"rank {comm.rank} ok", flush=True)
