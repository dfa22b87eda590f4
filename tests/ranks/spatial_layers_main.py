"""Run under mpirun by test_spatial.py: random stacks of layers on slabs against the same stacks on one process.

spatial_layers_main.py NUM_STACKS SEED [mpi]
"""

from __future__ import annotations

import sys

import numpy as np

from trainer.errors import ModelError
from trainer.models.dilation import DilatedPooling
from trainer.models.graph import forward_of, padding_joined
from trainer.models.halos import check_split, slabs
from trainer.models.keras import keras, tf
from trainer.models.layers import Enlarge, ResizeLike
from trainer.models.noise import NoiseSource, with_noise
from trainer.models.norms import GroupNorm
from trainer.models.spatial import slab_of
from trainer.runtime import start_comm

num_stacks, seed = int(sys.argv[1]), int(sys.argv[2])
comm = start_comm("mpi" if "mpi" in sys.argv else "horovod")
tf.config.threading.set_intra_op_parallelism_threads(1)
tf.config.threading.set_inter_op_parallelism_threads(2)
keras.utils.set_random_seed(seed)
layers = keras.layers


def window(rng: np.random.Generator, max_stride: int, x: tf.Tensor) -> tuple[tf.Tensor, dict]:
    """Kernel, stride, dilation and padding of a convolution, and what it is to be called on."""
    size = int(rng.integers(1, 6))
    # TensorFlow 2.21 crashes in the gradient of a 1x1 convolution with stride 2 on so few channels, without us too
    stride = int(rng.integers(1, min(max_stride, size) + 1))
    dilation = int(rng.integers(1, 4)) if stride == 1 else 1
    settings = {"strides": stride, "dilation_rate": dilation, "padding": "same", "use_bias": bool(rng.integers(2))}
    if rng.integers(3) == 0:  # as backbones of Caffe's kind
        reach = (size - 1) * dilation
        before = int(rng.integers(reach + 1))
        x = layers.ZeroPadding2D(((before, reach - before), (before, reach - before)))(x)
        settings["padding"] = "valid"
    return x, {"kernel_size": size, **settings}


def convolution(rng: np.random.Generator, max_stride: int, x: tf.Tensor) -> tf.Tensor:
    x, settings = window(rng, max_stride, x)
    kind = rng.choice(["plain", "depthwise", "separable"])
    if kind == "depthwise":
        return layers.DepthwiseConv2D(**settings)(x)
    activation = str(rng.choice(["relu", "linear"]))
    return (layers.Conv2D if kind == "plain" else layers.SeparableConv2D)(4, activation=activation, **settings)(x)


def pooling(rng: np.random.Generator, max_stride: int, x: tf.Tensor) -> tf.Tensor:
    kind = layers.MaxPooling2D if rng.integers(2) else layers.AveragePooling2D
    stride = int(rng.integers(1, max_stride + 1))
    return kind(int(rng.integers(stride, 4)), stride, padding="same")(x)


def dilated_pooling(rng: np.random.Generator, max_stride: int, x: tf.Tensor) -> tf.Tensor:
    size, dilation = int(rng.integers(2, 4)), int(rng.integers(1, 4))
    reach = (size - 1) * dilation
    around = [(before, reach - before) for before in rng.integers(0, reach + 1, 2).tolist()]
    return DilatedPooling(str(rng.choice(["max", "mean"])), (size, size), dilation, around)(x)


def norm(rng: np.random.Generator, max_stride: int, x: tf.Tensor) -> tf.Tensor:
    return layers.BatchNormalization()(x) if rng.integers(2) else GroupNorm(2)(x)


def excitation(rng: np.random.Generator, max_stride: int, x: tf.Tensor) -> tf.Tensor:
    share = layers.Conv2D(x.shape[-1], 1, activation="sigmoid")(layers.GlobalAveragePooling2D(keepdims=True)(x))
    return layers.Multiply()([x, share])


def noise(rng: np.random.Generator, max_stride: int, x: tf.Tensor) -> tf.Tensor:
    return with_noise(x, 0.3, str(rng.choice(["value", "channel", "patch"])), source, f"noise{len(source_names)}")


def enlarging(rng: np.random.Generator, max_stride: int, x: tf.Tensor) -> tf.Tensor:
    """Of a smaller map, so that maps stay as small as they were."""
    return Enlarge(2)(layers.AveragePooling2D(2)(x)) if max_stride > 1 else x


def random_stack(rng: np.random.Generator) -> tuple[keras.Model, int]:
    """Some layers, back to the size of the image, and a patch size that they can be split at."""
    while True:
        model, size = any_stack(rng), 16 * int(rng.integers(comm.world_size, 13))
        try:
            check_split(model, size, comm.world_size)
        except ModelError as error:
            assert "thinner than the largest halo" in str(error), error
        else:
            return model, size


def any_stack(rng: np.random.Generator) -> keras.Model:
    image = keras.Input((None, None, 4))
    x, stride = image, 1
    for _ in range(int(rng.integers(2, 7))):
        kinds = [convolution, convolution, pooling, dilated_pooling, norm, excitation, noise, enlarging]
        source_names.append(len(source_names))
        before = x
        x = kinds[int(rng.integers(len(kinds)))](rng, 2 if stride < 16 else 1, x)
        stride *= strides_of(before, x)
    return keras.Model(image, layers.Conv2D(3, 1)(ResizeLike()([x, image])))


def strides_of(before: tf.Tensor, after: tf.Tensor) -> int:
    layer = after.node.layer
    return layer.strides[0] if hasattr(layer, "strides") else 1


def error(found: np.ndarray, expected: np.ndarray) -> float:
    return float(np.linalg.norm(found - expected) / max(np.linalg.norm(expected), 1.0))


worst = 0.0
for number in range(num_stacks):
    rng = np.random.default_rng([seed, number])
    source, source_names = NoiseSource(), []
    model, size = random_stack(rng)
    comm.broadcast_variables(model.variables)
    statistics = [v for v in model.non_trainable_variables if "moving" in v.name]
    source.seed.assign([seed, number])
    images = rng.normal(size=(2, size, size, 4)).astype(np.float32)
    weights = rng.normal(size=(2, size, size, 3)).astype(np.float32)
    rows = slabs(size, comm.world_size)[comm.rank]
    mine = slice(rows.start, rows.stop)

    @tf.function
    def on_slab(images: tf.Tensor, weights: tf.Tensor, model: keras.Model = model):
        slab = slab_of(comm, images, comm.world_size)
        with tf.GradientTape() as tape:
            tape.watch(images)
            logits = forward_of(model, slab, padding_joined)(images)
            loss = slab.sum(tf.reduce_sum(logits * weights))
        return logits, loss, tape.gradient(loss, [images, *model.trainable_variables])

    @tf.function
    def alone(images: tf.Tensor, weights: tf.Tensor, model: keras.Model = model):
        with tf.GradientTape() as tape:
            tape.watch(images)
            logits = model(images, training=True)
            loss = tf.reduce_sum(logits * weights)
        return logits, loss, tape.gradient(loss, [images, *model.trainable_variables])

    logits, loss, gradients = on_slab(tf.constant(images[:, mine]), tf.constant(weights[:, mine]))
    moved = [v.numpy() for v in statistics]
    for variable in statistics:
        variable.assign(tf.zeros_like(variable) if "mean" in variable.name else tf.ones_like(variable))
    true_logits, true_loss, true_gradients = alone(images, weights)
    gradients = [g.numpy() for g in gradients]
    # the loss of each rank is that of the patch: its gradient counts as often as there are ranks
    of_weights = [comm.allreduce(g) / comm.world_size for g in gradients[1:]]
    scale = max(1.0, *(float(np.linalg.norm(g)) for g in true_gradients))
    errors = {
        "logits": error(logits.numpy(), true_logits.numpy()[:, mine]),
        "image gradient": error(gradients[0] / comm.world_size, true_gradients[0].numpy()[:, mine]),
        "statistics": max((error(m, v.numpy()) for m, v in zip(moved, statistics, strict=True)), default=0.0),
        "loss": abs(float(loss - true_loss)) / max(float(np.linalg.norm(true_logits)), 1.0),
        "weight gradients": max(
            (float(np.linalg.norm(f - e)) / scale for f, e in zip(of_weights, true_gradients[1:], strict=True)),
            default=0.0,
        ),
    }
    description = [layer.name for layer in model.layers]
    # means of tens of thousands of numbers, added up in another order; Keras' batch norm takes a variance otherwise
    inexact = (GroupNorm, layers.BatchNormalization, layers.GlobalAveragePooling2D)
    tolerance = 1e-4 if any(isinstance(x, inexact) for x in model.layers) else 1e-5
    for what, value in errors.items():
        assert value < tolerance, f"stack {number}, {size} px, {what}: {value:.1e}\n{description}"
    worst = max(worst, *(value / tolerance for value in errors.values()))
assert len(set(comm.gather(num_stacks))) == 1
print(f"rank {comm.rank} ok, worst {worst:.2f} of what is allowed", flush=True)
