"""Run under mpirun by test_spatial.py: one patch in slabs on all ranks against the same patch on one process.

spatial_main.py BACKBONE STRIDE NORM PATCH_SIZE [recompute] [mixed_bfloat16] [mpi] [relu] [ARCHITECTURE]

Activations are smooth versions of ReLUs: where a value is rounded to the other side of a kink, its gradient is
another, and two right answers differ by 1e-3. With `relu` they are as they are.
"""

from __future__ import annotations

import sys

import numpy as np

from trainer.config.architectures import ARCHITECTURES
from trainer.config.schema import ModelConfig, OptimizerConfig, TrainingConfig
from trainer.models import build_model
from trainer.models.halos import check_split, halos_of, slabs
from trainer.models.keras import keras, tf
from trainer.runtime import Comm, SingleComm, start_comm
from trainer.train.step import INTER_OP_THREADS, TrainStep, make_optimizer

backbone, stride, norm, patch_size = sys.argv[1], int(sys.argv[2]), sys.argv[3], int(sys.argv[4])
recompute, backend = ("blocks" if "recompute" in sys.argv else "none"), ("mpi" if "mpi" in sys.argv else "horovod")
precision = "mixed_bfloat16" if "mixed_bfloat16" in sys.argv else "float32"
of_loss, of_gradients = (0.01, 0.1) if precision == "mixed_bfloat16" else (1e-5, 5e-3 if "relu" in sys.argv else 1e-5)
comm = start_comm(backend)
tf.config.threading.set_intra_op_parallelism_threads(1)
tf.config.threading.set_inter_op_parallelism_threads(INTER_OP_THREADS)
keras.utils.set_random_seed(1)
keras.mixed_precision.set_global_policy(precision)
PLAIN = OptimizerConfig(name="sgd", momentum=0.0, learning_rate=1.0)
TRAINING = TrainingConfig(compression="none", optimizer=PLAIN, recompute=recompute)

if "relu" not in sys.argv:
    keras.layers.ReLU.call = lambda self, x: tf.nn.softplus(x)
    keras.layers.Activation.call = lambda self, x: (
        tf.nn.softplus(x) if self.activation.__name__ == "relu" else self.activation(x)
    )

architecture = next((name for name in ARCHITECTURES if name in sys.argv), "deeplabv3plus")
channels = 16
if architecture != "deeplabv3plus":
    channels = 64  # the finest map has a sixteenth of them
    of_gradients = max(of_gradients, 1e-4)  # a bias' gradient is added up pixel by pixel, here of the whole patch
config = ModelConfig(
    architecture=architecture,
    backbone=backbone,
    output_stride=stride,
    norm=norm,
    aspp_channels=16,
    decoder_channels=channels,
    dropout=0.2,
)
model = build_model(config, 2, all_reduce=comm.allreduce_tensor)
comm.broadcast_variables(model.variables)
alone = build_model(config, 2)
alone.set_weights(model.get_weights())
check_split(model, patch_size, comm.world_size)

rng = np.random.default_rng(7)
images = rng.integers(0, 256, (1, patch_size, patch_size, 3), np.uint8)
labels = (images[..., 0] > 128).astype(np.uint8)
labels[0, : patch_size // 3, :50] = 255
rows = slabs(patch_size, comm.world_size)[comm.rank]


def error(found: np.ndarray, expected: np.ndarray) -> float:
    return float(np.linalg.norm(found - expected) / np.linalg.norm(expected))


def change(network: keras.Model, by: Comm, part: slice, spatial: int) -> tuple[float, list[np.ndarray], int]:
    """Loss of a step of plain gradient descent, what it adds to each weight, and bytes sent to neighbours."""
    before = [v.numpy() for v in network.variables]
    step = TrainStep(network, make_optimizer(PLAIN, precision), TRAINING, by, seed=3)
    loss = step(images[:, part], labels[:, part], 5, spatial=spatial).loss
    return (
        loss,
        [v.numpy() - old for v, old in zip(network.variables, before, strict=True)],
        step.halo_bytes.get((1, patch_size, spatial), 0),
    )


found_loss, found, halo_bytes = change(model, comm, slice(rows.start, rows.stop), comm.world_size)
loss, expected, none = change(alone, SingleComm(), slice(None), 1)
changed = [(f, e, v.name) for f, e, v in zip(found, expected, model.variables, strict=True) if v.dtype == tf.float32]
scale = max(np.linalg.norm(e) for _, e, _ in changed)
errors = {name: float(np.linalg.norm(f - e) / scale) for f, e, name in changed}
together = error(*(np.concatenate([c[i].ravel() for c in changed]) for i in (0, 1)))
worst = max(errors, key=errors.__getitem__)
print(
    f"rank {comm.rank} loss {abs(found_loss / loss - 1):.1e} weights {together:.1e} worst {errors[worst]:.1e} {worst}",
    flush=True,
)
assert abs(found_loss / loss - 1) < of_loss
assert together < of_gradients and errors[worst] < of_gradients
assert len(set(comm.gather(float(sum(np.abs(f).sum() for f in found))))) == 1, "replicas are equal"
sides = {"up": comm.rank > 0, "down": comm.rank + 1 < comm.world_size}
least = sum(h.sent_bytes(patch_size, 1, **sides) for h in halos_of(model))
assert none == 0 and (halo_bytes > least if recompute == "blocks" else halo_bytes == least), (halo_bytes, least)
print(f"rank {comm.rank} ok", flush=True)
